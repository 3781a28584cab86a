"""What a table of faults is made of: each fault is brought about for real, and tells in words what was seen.

A module `faults_*.py` beside this one registers its faults by being imported:

    @fault("the disk is full", "abstains: ...")
    def disk_full(folder: Path) -> str:
        ...  # bring it about, using the folder, and say what came of it

Seen and expected must be the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class NotRun(Exception):  # noqa: N818 - it is no error
    """The fault cannot be brought about here; the text says why."""


@dataclass(frozen=True)
class Fault:
    """A fault: what happens, what is to come of it, and a function that brings it about and tells what did."""

    name: str
    expected: str
    bring_about: Callable[[Path], str]


FAULTS: list[Fault] = []


def fault(name: str, expected: str) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Register a function that brings a fault about in an empty folder, and tells what was seen."""

    def register(bring_about: Callable[[Path], str]) -> Callable[[Path], str]:
        FAULTS.append(Fault(name, expected, bring_about))
        return bring_about

    return register
