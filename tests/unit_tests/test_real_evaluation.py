"""The page about published models, from answers that are made up: what is computed, and what is left out."""

import math
import random

import numpy as np
import pytest
from scripted import score

from semgrad_guard.calibration.examples import Example
from semgrad_guard.evaluation import metrics
from tools.real import page as pages
from tools.real import tables
from tools.real.cells import Cell
from tools.real.collect import Row, collect, rows_of

KINDS = ("capital", "city", "currency")


def rows(n, seed, *, kinds=KINDS):
    """Answers whose scores and hidden states tell right from wrong to a degree."""
    rng = random.Random(seed)
    found = []
    for place in range(n):
        right = rng.random() < 0.5
        doubt = math.exp(rng.gauss(-0.7 if right else 0.7, 1.0))
        layers = tuple(doubt * math.exp(rng.gauss(0, 0.3)) for _ in range(4))
        length = rng.randint(1, 4)
        one = score(
            doubt,
            layer_indices=(0, 1, 2, 3),
            layers=layers,
            later=(layers, layers),
            nll=doubt * length,
            mean_nll=doubt,
            max_nll=doubt * length**0.5,
            max_entropy=doubt * math.exp(rng.gauss(0, 0.5)),
            mean_entropy=doubt,
            rauq=doubt,
            length=length,
        )
        states = np.random.default_rng(place + 1000 * seed).normal(size=(3, 4, 8)) + (1.0 if right else -1.0)
        found.append(Row(f"q{seed}-{place}?", rng.choice(kinds), "a", right, one, states.astype(np.float32)))
    return found


@pytest.fixture(scope="module")
def cells():
    return {
        Cell("gemma", "facts"): rows(130, 1),
        Cell("gemma", "sciq"): rows(120, 2, kinds=("",)),
        Cell("qwen", "facts"): rows(110, 3),
    }


@pytest.mark.slow
def test_the_page_has_every_table(cells, monkeypatch):
    monkeypatch.setattr(pages, "_SPLITS", 2)
    monkeypatch.setattr(pages, "_STREAMS", 2)
    monkeypatch.setattr(pages, "_COUNTS", (30, 0))
    assert pages._number(None) == ""
    text, quoted = pages.page(cells, "command", quick=True)
    assert "- Gemma 3 270M, 130 answers" in quoted
    for title in (
        "Without labels",
        "SemGrad by itself",
        "With labels, kinds of questions that were seen",
        "Kinds of questions that were left out",
        "One set of questions calibrated on",
        "`calibrate` with its defaults",
        "The promise",
        "Questions of another kind",
    ):
        assert f"## {title}" in text
    assert "nan" not in text
    assert "| Gemma 3 270M | world facts | 130 |" in text
    widths = {
        len(line.split("|"))
        for line in text.split("## The promise")[1].split("## ")[0].splitlines()
        if line.startswith("|")
    }
    assert len(widths) == 1


def test_scores_without_labels_are_not_flattered_by_labels(cells):
    found = tables.without_labels(cells, repeats=50)
    for cell, answers in cells.items():
        expected = metrics.auroc(np.array([row.score.nll for row in answers]), tables.right(answers))
        assert found["G-NLL"][cell].value == pytest.approx(expected)
        assert found["G-NLL"][cell].low < expected < found["G-NLL"][cell].high
        assert abs(found["length only"][cell].value - 0.5) < 0.2


def test_a_sum_over_tokens_is_the_mean_times_their_number(cells):
    variants = tables.semgrad_variants(cells)
    cell, answers = next(iter(cells.items()))
    upper = np.array([np.mean(row.score.layers[2:]) for row in answers])
    lengths = np.array([row.score.length for row in answers])
    place = "upper half of the layers, at the template's token"
    assert variants[f"sum, {place}"][cell] == pytest.approx(metrics.auroc(upper, tables.right(answers)))
    assert variants[f"mean, {place}"][cell] == pytest.approx(metrics.auroc(upper / lengths, tables.right(answers)))


@pytest.mark.slow
def test_methods_see_no_labels_of_the_answers_that_they_judge(cells):
    """With labels drawn by chance nothing can be told, whatever is fitted."""
    rng = random.Random(0)
    cell, answers = next(iter(cells.items()))
    drawn = [Row(row.query, row.stratum, row.answer, rng.random() < 0.5, row.score, row.states) for row in answers]
    table = tables.with_labels({cell: drawn}, (0,))
    for name, figures in table.items():
        assert abs(figures[cell][0] - 0.5) < 0.15, name


def test_answers_are_collected_once(tmp_path, monkeypatch):
    from models import tiny_model, tiny_tokenizer

    from tools.real import cells as cells_module
    from tools.real import collect as collect_module

    made = []

    def loaded(name, folder):
        made.append(name)
        return tiny_model(), tiny_tokenizer()

    monkeypatch.setattr(collect_module, "loaded", loaded)
    monkeypatch.setattr(
        cells_module.Cell,
        "examples",
        lambda self, facts, datasets: [Example(query=f"q{place}?", answers=("x",)) for place in range(20)],
    )
    where = {"facts": tmp_path, "datasets": None}
    cell = Cell("qwen", "sciq")
    for _ in range(2):
        collect(cell, tmp_path / "kept", models=tmp_path, **where)
    assert made == ["qwen"]
    (cell.folder(tmp_path / "kept") / "0001.json").unlink()
    collect(cell, tmp_path / "kept", models=tmp_path, **where)
    assert made == ["qwen", "qwen"]
    found = rows_of(cell, tmp_path / "kept", **where)
    assert all(row.score.rauq is not None and row.states.shape == (3, 4, 32) for row in found)


def test_half_of_the_rejections():
    correct = np.array([True, False, True, False])
    uncertainty = np.array([0.1, 0.9, 0.2, 0.3])
    assert metrics.prr(uncertainty, correct) == pytest.approx(1.0)
    assert metrics.prr(uncertainty, correct, most=0.5) == pytest.approx(1.0)
    assert metrics.prr(-uncertainty, correct, most=0.5) < 0
    risk = metrics.risk_coverage(np.array([0.1, 0.2, 0.3, 0.4]), correct)[1]
    best = metrics.risk_coverage((~correct).astype(float), correct)[1]
    expected = (0.5 - risk[1:].mean()) / (0.5 - best[1:].mean())
    assert metrics.prr(np.array([0.1, 0.2, 0.3, 0.4]), correct, most=0.5) == pytest.approx(expected)
