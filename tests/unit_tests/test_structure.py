"""The page about the structure is what the code says, and one question goes a short way."""

import statistics
from pathlib import Path

from semgrad_guard import Abstain, SemGradGuard
from semgrad_guard.demo import embedded_model, embedded_profile
from tools.moves import QUESTION, moves
from tools.structure import drawn, imports, modules, written_into

PAGE = Path(__file__).parents[2] / "docs" / "how_it_is_built.md"


def test_the_picture_and_the_modules_on_the_page_are_the_code_s():
    page = PAGE.read_text(encoding="utf-8")
    assert written_into(page, drawn()) == page, "run: make structure"


def test_parts_of_a_page_are_put_between_their_marks():
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert written_into(page, {"x": "new\nlines"}) == "a\n<!-- x -->\nnew\nlines\n<!-- /x -->\nb\n"


def test_no_room_imports_one_that_imports_it():
    edges = imports(modules())
    assert [(room, target) for room in edges for target in edges[room] if room in edges[target]] == []


# Modules that are short for a reason: what alembic reads, what both of the parts that use Ray share, and another
# paper's equation.
SHORT = {"env.py", "0002_doubt.py", "cluster.py", "rauq.py"}


def test_a_module_is_one_sitting():
    paths = [path for room in modules().values() for path in room]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(paths) < 125
    assert 150 <= statistics.median(lengths.values()) <= 250
    assert {path.name for path, length in lengths.items() if length < 60} == SHORT
    assert max(lengths.values()) <= 500


def test_one_question_goes_a_short_way():
    guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[Abstain("no")])
    calls = moves(lambda: guard.invoke(QUESTION))
    assert len({file for _, file in calls}) <= 20
    assert len(calls) <= 50
