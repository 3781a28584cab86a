"""Count how one question moves through the package: the files it passes through, and the calls from file to file."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import semgrad_guard
from semgrad_guard import Abstain, SemGradGuard
from semgrad_guard.demo import embedded_model, embedded_profile

PACKAGE = Path(semgrad_guard.__file__).parent
QUESTION = "What is the capital of France?"


def moves(call: Callable[[], object]) -> list[tuple[str, str]]:
    """Give the calls from one file of the package to another while something is done; "" stands for outside.

    It is done once before, since what only the first call does is not counted.
    """
    call()
    calls: list[tuple[str, str]] = []

    def hear(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (callee := _file_of(frame)):
            caller, file = frame.f_back, ""
            while caller is not None and not (file := _file_of(caller)):
                caller = caller.f_back
            if file != callee:
                calls.append((file, callee))

    threading.setprofile(hear)  # threads that are there already are not heard
    sys.setprofile(hear)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def _file_of(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ""


if __name__ == "__main__":
    guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[Abstain("no")])
    counted = moves(lambda: guard.invoke(QUESTION))
    print(f"{len({file for _, file in counted})} files, {len(counted)} moves")
    for (origin, target), times in Counter(counted).items():
        print(f"{times:3} {origin or 'outside':32} -> {target}")
