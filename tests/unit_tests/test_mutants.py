"""Mutation testing: its judgements can be read, and are about code and tests that there are."""

import ast
from pathlib import Path

import pytest

import semgrad_guard
from tools.mutants import JUDGEMENTS, ROOMS, Mutant, read_judgements, unjudged

PACKAGE = Path(semgrad_guard.__file__).parent
DIFF = """--- semgrad_guard/routing/limits.py
+++ semgrad_guard/routing/limits.py
@@ -1,3 +1,3 @@
     with self._lock:
-        if len(self._made) >= self.calls or x | y:
+        if len(self._made) > self.calls or x | y:
             return False
"""
NAME = "semgrad_guard.routing.limits.xǁAtMostǁ__call____mutmut_9"


def functions(room):
    """Name every function and method in a room, as mutants do."""
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name
            elif isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{part.name}" for part in node.body if hasattr(part, "name"))


def test_a_mutant_is_known_by_its_function_and_its_change():
    mutant = Mutant.of(NAME, DIFF)
    assert mutant.where == "AtMost.__call__"
    before, after = (f"if len(self._made) {sign} self.calls or x ¦ y:" for sign in (">=", ">"))
    assert mutant.change == f"{before} -> {after}"
    assert Mutant.of("semgrad_guard.routing.limits.x_call_within__mutmut_12", DIFF).where == "call_within"
    assert Mutant.of("semgrad_guard.routing.limits.x__private__mutmut_1", DIFF).where == "_private"
    with pytest.raises(ValueError, match="expected mutmut's name"):
        Mutant.of("call_within", DIFF)


def test_what_was_judged_is_not_asked_about_again():
    mutant, other = Mutant.of(NAME, DIFF), Mutant("f", "a -> b")
    rooms = read_judgements(
        f"# Title\n\n## routing\n\n| Where | Change | Judgement |\n|---|---|---|\n{mutant.row('Equivalent.')}\n"
    )
    assert rooms == {"routing": {mutant: "Equivalent."}}
    assert unjudged([mutant, other], rooms["routing"]) == [other]
    with pytest.raises(ValueError, match="has no judgement"):
        read_judgements("## routing\n" + mutant.row())


def test_judgements_are_of_functions_and_tests_that_there_are():
    rooms = read_judgements(JUDGEMENTS.read_text(encoding="utf-8"))
    assert rooms
    assert set(rooms) <= set(ROOMS)
    for room, survivors in rooms.items():
        assert {mutant.where for mutant in survivors} <= set(functions(room))
    tests = Path(__file__).parent
    assert all((tests / f"test_{name}.py").is_file() for names in ROOMS.values() for name in names)
