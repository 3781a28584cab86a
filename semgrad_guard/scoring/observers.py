"""Scoring as it happens, for whoever wants to hear of it: how long each pass took, and over how much.

Without listeners nothing is measured. Nobody gets to see what was scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import Literal

import torch

from semgrad_guard.errors import described
from semgrad_guard.records import Generation, ReplayPath, Score

logger = logging.getLogger(__name__)

PassFailure = Literal["scoring", "out_of_memory"]


@dataclass(frozen=True)
class ScoringPass:
    """One forward over the rows of a batch, and the backwards after it.

    `seconds` is wall-clock time, `tokens` the number of response tokens over all rows. `path` tells how the prompt was
    replayed: from what the generation kept ("upper", "cache"), or anew ("prefix", "full"); None if the pass failed.
    """

    seconds: float
    rows: int
    tokens: int
    path: ReplayPath | None
    failure: PassFailure | None = None


Listener = Callable[[ScoringPass], None]

_LOCK = Lock()
_listeners: tuple[Listener, ...] = ()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a listener told of every pass in this process, in the thread that scored; one that raises is not heeded."""
    global _listeners
    with _LOCK:
        _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        with _LOCK:
            place = _listeners.index(listener)
            _listeners = _listeners[:place] + _listeners[place + 1 :]


def observed(generations: Sequence[Generation], work: Callable[[], list[list[Score]]]) -> list[list[Score]]:
    """Score generations, and tell the listeners how that went; what it raises is raised."""
    if not _listeners:
        return work()
    rows, tokens = len(generations), sum(len(generation.response_ids) for generation in generations)
    begun = perf_counter()
    try:
        found = work()
    except Exception as error:
        _tell(ScoringPass(perf_counter() - begun, rows, tokens, None, _kind(error)))
        raise
    path = next((score.path for scores in found for score in scores), None)
    _tell(ScoringPass(perf_counter() - begun, rows, tokens, path))
    return found


def _kind(error: Exception) -> PassFailure:
    # torch reports exhausted main memory as a plain RuntimeError
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return "out_of_memory" if exhausted else "scoring"


def _tell(happened: ScoringPass) -> None:
    for listener in _listeners:
        try:
            listener(happened)
        except Exception as error:  # whoever listens must not break scoring
            logger.warning("A listener to scoring failed: %s", described(error))
