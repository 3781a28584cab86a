"""The arithmetic of docs/scale.md counts the operations that are really done."""

from pathlib import Path

import pytest
import typer

from semgrad_guard.evaluation.metrics import operations
from semgrad_guard.evaluation.overhead import numbered_tokenizer, random_llama
from semgrad_guard.scoring.scorer import SemGradScorer, without_boundary
from tools import cost
from tools.cost import Gpu, Shape, Step, reading, scoring, scoring_ids, writing

SHAPE = Shape(layers=4, hidden=128, intermediate=341, kv=128, vocabulary=1000)
PROMPT, RESPONSE, BATCH = 96, 12, 2


@pytest.fixture(scope="module")
def counted():
    """What PyTorch counts on a random Llama of that shape."""
    model, tokenizer = random_llama(SHAPE.hidden, SHAPE.layers, SHAPE.vocabulary), numbered_tokenizer(SHAPE.vocabulary)
    assert model.config.intermediate_size == SHAPE.intermediate
    model.set_attn_implementation("eager")  # PyTorch does not count the fused attention of CPUs
    scorer = SemGradScorer(model, tokenizer, token_position=3, upper_replay=True)
    ids = [[1 + (row + place) % 999 for place in range(PROMPT)] for row in range(BATCH)]

    def generate():
        return scorer.generate(ids, max_new_tokens=RESPONSE, min_new_tokens=RESPONSE, do_sample=False)

    made = generate()
    plain = without_boundary(made)
    responses = [list(row.response_ids) for row in made]
    return {
        "generating": operations(generate),
        "upper": operations(lambda: scorer.score(made)),
        "semgrad": operations(lambda: scorer.score(made, parameters=False)),
        "plain": operations(lambda: scorer.score(plain)),
        "ids": operations(lambda: scorer.score_ids(ids, responses)),
    }


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("generating", reading(SHAPE, PROMPT, BATCH) + writing(SHAPE, PROMPT, RESPONSE, BATCH)),
        ("upper", scoring(SHAPE, PROMPT, RESPONSE, BATCH)),
        ("semgrad", scoring(SHAPE, PROMPT, RESPONSE, BATCH, parameters=False)),
        ("plain", scoring(SHAPE, PROMPT, RESPONSE, BATCH, upper=False)),
        ("ids", scoring_ids(SHAPE, PROMPT, RESPONSE, BATCH)),
    ],
)
def test_the_operations_are_those_that_are_done(counted, name, steps):
    assert sum(step.operations for step in steps) == pytest.approx(counted[name], rel=0.02)


def test_a_step_takes_as_long_as_the_slower_of_computing_and_reading():
    gpu = Gpu(flops=10, bandwidth=5, price=7.2)
    assert gpu.seconds([Step(operations=20, read=5), Step(operations=20, read=20)]) == 2 + 4
    assert gpu.per_million(0.5) == 1000


def test_more_rows_share_the_reading_of_the_weights():
    gpu = Gpu(flops=1e14, bandwidth=1e12, price=1)
    alone, together = (gpu.seconds(writing(SHAPE, PROMPT, RESPONSE, rows)) / rows for rows in (1, 8))
    assert together < alone / 4


def test_the_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{cost.MARKS[0]}\nold\n{cost.MARKS[1]}\nafter\n", encoding="utf-8")
    for _ in range(2):  # the second time over its own
        cost.main(page, price=2, lengths="64:16", batches="1,8")
    before, *lines, after = page.read_text(encoding="utf-8").splitlines()
    assert (before, after, "old" in lines) == ("before", "after", False)
    assert "costs 2 an hour" in lines[1]
    assert [line.split(" | ")[:3] for line in lines[-3:-1]] == [["| 64", "16", "1"], ["| 64", "16", "8"]]
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(typer.BadParameter, match="no place for the table"):
        cost.main(page)


def test_the_page_is_what_the_command_writes(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "scale.md"
    again = tmp_path / "scale.md"
    again.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    cost.main(again)
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
