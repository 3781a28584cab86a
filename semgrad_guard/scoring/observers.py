"""Listeners to scoring: they hear how long each pass took, and over how many rows and tokens.

Without listeners nothing is measured. A listener never sees what was scored.
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

    `seconds` is wall-clock time, and `tokens` counts the response tokens of all rows. `path` says how the prompt was
    replayed: from the generation's own states ("upper", "cache") or anew ("prefix", "full"). It is None if the pass
    failed, and `failure` says why.
    """

    seconds: float
    rows: int
    tokens: int
    path: ReplayPath | None
    failure: PassFailure | None = None


Listener = Callable[[ScoringPass], None]

_LOCK = Lock()
listeners: tuple[Listener, ...] = ()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call a listener after every pass in this process, in the thread that scored; its errors are logged."""
    global listeners
    with _LOCK:
        listeners = (*listeners, listener)
    try:
        yield
    finally:
        with _LOCK:
            place = listeners.index(listener)
            listeners = listeners[:place] + listeners[place + 1 :]


def observed(generations: Sequence[Generation], work: Callable[[], list[list[Score]]]) -> list[list[Score]]:
    """Score generations, and notify the listeners of how it went; an error of scoring is raised again."""
    rows, tokens = len(generations), sum(len(generation.response_ids) for generation in generations)
    start = perf_counter()
    try:
        scores_by_row = work()
    except Exception as error:
        _notify(ScoringPass(perf_counter() - start, rows, tokens, None, _kind(error)))
        raise
    path = next((score.path for scores in scores_by_row for score in scores), None)
    _notify(ScoringPass(perf_counter() - start, rows, tokens, path))
    return scores_by_row


def _kind(error: Exception) -> PassFailure:
    # torch reports exhausted main memory as a plain RuntimeError
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return "out_of_memory" if exhausted else "scoring"


def _notify(scoring_pass: ScoringPass) -> None:
    for listener in listeners:
        try:
            listener(scoring_pass)
        except Exception as error:  # a listener must not break scoring
            logger.warning("A listener to scoring failed: %s", described(error))
