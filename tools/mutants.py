"""Mutation testing, room by room: mutmut makes small mistakes in the code, one at a time; some test must notice each.

    make mutants ROOMS="routing calibration"
    .venv-mutants/bin/python tools/mutants.py [ROOM ...] [--only limits] [--children 1]

mutmut works in a copy of the repository under .cache/mutants/ROOM, where a later run goes on. A survivor is a mutant
that no test noticed. Each is looked up in tests/mutants.md; those without a judgement there are printed as rows of its
table, and the exit code is 1. mutmut does not mutate decorated functions, properties among them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
JUDGEMENTS = ROOT / "tests" / "mutants.md"

# For each room, the tests about it. Of these, mutmut runs the ones that call the mutated function. Their
# parameters have ids without backslashes: mutmut does not find others again.
ROOMS = {
    "routing": (
        "ladder", "guard", "guard_inputs", "retrieve", "escalate_and_raise", "human_review_queue", "own_routes",
        "timeouts", "locks", "linear_time",
    ),
    "calibration": (
        "calibration", "calibration_splits", "guarantee", "promises", "profiles", "labels", "watch", "raw_watch",
        "guard", "cut_off_answers", "prompts", "paraphrases",
    ),
    "scoring": (
        "scorer", "scores_against_reference", "half_precision", "parts_of_answers", "preservation",
        "observability_metrics", "locks",
    ),
}  # fmt: skip
_SETTINGS = """
[tool.mutmut]
source_paths = ["semgrad_guard"]
only_mutate = ["semgrad_guard/{room}/*.py"]
also_copy = ["tools", "README.md"]
pytest_add_cli_args = ["-q", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
do_not_mutate_patterns = ['raise \\w+Error\\(', '^\\s*f?"[^:]*"[,)]*$']  # what errors say
track_dependencies = false
use_git_change_detection = false
"""
# Between mutmut's letters stand a class, if there is one, a function, and the number of the mutant.
_NAME = re.compile(r"\.x_?(?:ǁ(?P<owner>\w+)ǁ)?(?P<function>\w+)__mutmut_\d+$")
_ROW = re.compile(r"^\| `(?P<where>[^`]+)` \| `(?P<change>[^`]+)` \| (?P<judgement>.*?) *\|$")


@dataclass(frozen=True, order=True)
class Mutant:
    """A change of the code, with its function: unlike mutmut's numbers and files, these last."""

    where: str
    change: str

    @classmethod
    def of(cls, name: str, diff: str) -> Mutant:
        """Read mutmut's name of a mutant, and its unified diff."""
        match = _NAME.search(name)
        if match is None:
            raise ValueError(f"{name!r}: expected mutmut's name of a mutant, such as 'package.module.x_f__mutmut_1'.")
        lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
        before, after = (" ".join(line[1:].strip() for line in lines if line[:1] == sign) for sign in "-+")
        where = ".".join(part for part in (match["owner"], match["function"]) if part)
        return cls(where, _plain(f"{before} -> {after}"))

    def row(self, judgement: str = "") -> str:
        """Write it as a row of the table."""
        return f"| `{self.where}` | `{self.change}` | {judgement} |"


def _plain(code: str) -> str:
    """Leave out what would end a cell of a table."""
    return code.replace("`", "'").replace("|", "¦")


def read_judgements(text: str) -> dict[str, dict[Mutant, str]]:
    """Read the judgements of survivors, by room.

    Args:
        text: the text of tests/mutants.md.

    Raises:
        ValueError: a survivor has no judgement.
    """
    rooms: dict[str, dict[Mutant, str]] = {}
    room = ""
    for line in text.splitlines():
        if line.startswith("## "):
            room = line.removeprefix("## ").strip()
            rooms[room] = {}
        elif match := _ROW.match(line):
            if not match["judgement"]:
                raise ValueError(f"{line!r} has no judgement: equivalent, or not worth a test, and why.")
            rooms[room][Mutant(match["where"], match["change"])] = match["judgement"]
    return rooms


def copy_repository(room: str) -> Path:
    """Copy the tracked files of the repository and mutmut's settings to a folder of the room, and give its path.

    Results of an earlier run stay there, and mutmut goes on from them.
    """
    work = ROOT / ".cache" / "mutants" / room
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name)
    tests = [f"tests/unit_tests/test_{name}.py" for name in ROOMS[room]]
    with (work / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(_SETTINGS.format(room=room, tests=tests))
    return work


def survivors_in(work: Path, room: str, only: str, children: int) -> list[Mutant]:
    """Run mutmut, and give the survivors in modules whose names begin with `only`."""
    pattern = f"semgrad_guard.{room}.{only}*"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    mutmut = [sys.executable, "-m", "mutmut"]
    subprocess.run([*mutmut, "run", "--max-children", str(children), pattern], cwd=work, check=True, env=environment)
    results = subprocess.run([*mutmut, "results"], cwd=work, check=True, capture_output=True, text=True).stdout
    names = [
        line.partition(":")[0].strip() for line in results.splitlines() if line.endswith((": survived", ": no tests"))
    ]
    chosen = [name for name in names if name.startswith(pattern.removesuffix("*"))]
    return sorted({Mutant.of(name, _diff(mutmut, work, name)) for name in chosen})


def _diff(mutmut: Sequence[str], work: Path, name: str) -> str:
    return subprocess.run([*mutmut, "show", name], cwd=work, check=True, capture_output=True, text=True).stdout


def unjudged(survivors: Iterable[Mutant], judgements: dict[Mutant, str]) -> list[Mutant]:
    """Give the survivors without a judgement."""
    return sorted(set(survivors) - set(judgements))


def main() -> None:
    """Mutate rooms, and print the survivors without a judgement."""
    parser = argparse.ArgumentParser(description="Make small mistakes in rooms of the package; some test must notice.")
    parser.add_argument("rooms", nargs="*", help=f"rooms to mutate, of {', '.join(ROOMS)}; all if none is given")
    parser.add_argument("--only", default="", help="mutate only modules whose names begin with this")
    parser.add_argument("--children", type=int, default=1, help="number of mutants that are tested at the same time")
    options = parser.parse_args()
    if unknown := set(options.rooms) - set(ROOMS):
        parser.error(f"{', '.join(sorted(unknown))}: expected rooms of {', '.join(ROOMS)}.")
    judgements, count = read_judgements(JUDGEMENTS.read_text(encoding="utf-8")), 0
    for room in options.rooms or ROOMS:
        survivors = survivors_in(copy_repository(room), room, options.only, options.children)
        new = unjudged(survivors, judgements.get(room, {}))
        print(f"{room}: {len(survivors)} survivors, {len(new)} of them without a judgement in {JUDGEMENTS.name}")
        print("\n".join(mutant.row() for mutant in new))
        count += len(new)
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    main()
