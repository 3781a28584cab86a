"""The baselines compute the same SemGrad as we do, only slower; the benchmark's records are what they say."""

import json

import pytest
from models import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from semgrad_guard import SemGradScorer
from semgrad_guard.cli import app
from semgrad_guard.evaluation.sampling import competent, official_style


@pytest.mark.parametrize("baseline", [official_style, competent])
def test_baselines_give_the_same_semgrad_and_leave_no_hooks(baseline):
    model = tiny_model()
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=3, reduction="mean")  # the authors average
    (generation,) = scorer.generate([list(range(5, 25))], max_new_tokens=6)
    expected = scorer.score([generation])[0].semgrad
    assert baseline(model, generation, 3, scorer.layers) == pytest.approx(expected, rel=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_benchmark_reports_ratios(tmp_path):
    arguments = ["--prompts", "16", "--responses", "2,4", "--hidden", "64", "--layers", "2", "--vocabularies", "500"]
    result = CliRunner().invoke(
        app, ["bench", *arguments, "--batches", "1,2", "--repeats", "1", "--plot", str(tmp_path / "o.svg"), "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["hidden"], report["threads"], report["device"]) == (64, 1, "cpu")
    sizes = [(row["batch"], row["prompt"], row["response"]) for row in report["rows"]]
    assert sizes == [(1, 16, 2), (1, 16, 4), (2, 16, 2), (2, 16, 4)]
    assert all(value > 0 for row in report["rows"] for value in row.values())
    assert (tmp_path / "o.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert CliRunner().invoke(app, ["bench", "--prompts", "many"]).exit_code == 2
