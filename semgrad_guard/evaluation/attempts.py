"""Work on one question, piece by piece: what succeeds is timed, what fails is noted and ends nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from semgrad_guard.errors import SemGradError

_Made = TypeVar("_Made")
# Memory that runs out is a RuntimeError in torch; a value that is not finite is an ArithmeticError here.
_FAILURES = (SemGradError, RuntimeError, MemoryError, ArithmeticError)


class Attempts:
    """Does pieces of work by name; `seconds` holds what the finished ones took, `failures` why the others failed."""

    def __init__(self) -> None:
        """Begin with nothing done."""
        self.seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}

    def __call__(self, name: str, work: Callable[[], _Made]) -> _Made | None:
        """Do a piece of work and give what it made; None if it failed."""
        begun = time.perf_counter()
        try:
            made = work()
        except _FAILURES as error:
            self.failures[name] = f"{type(error).__name__}: {error}"
            return None
        self.seconds[name] = time.perf_counter() - begun
        return made
