"""Limits on other people's code: deadlines for retrievers and reviewers, and budgets of calls."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from semgrad_guard.errors import ConfigurationError, TimedOutError
from semgrad_guard.settings import check_seconds, warn_of_old


def call_within(seconds: float | None, function: Callable[[], Any]) -> Any:
    """Call a function and give up waiting after some seconds; it may go on in its thread, unheeded.

    Raises:
        TimedOutError: it did not return in time.
    """
    if seconds is None:
        return function()
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # of any kind: the waiting thread raises it
            failure.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(run), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimedOutError(f"no answer within {seconds:g} s")
    if failure:
        raise failure[0]
    return result[0]


async def await_within(seconds: float | None, awaitable: Awaitable[Any]) -> Any:
    """Await something and cancel it after some seconds.

    Raises:
        TimedOutError: it did not finish in time.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            return await awaitable
    except TimeoutError as error:
        if limit.expired():  # else it is an error of what was awaited
            raise TimedOutError(f"no answer within {seconds:g} s") from error
        raise


class RateLimit:
    """Allows at most so many calls in any window of time; each call that is allowed counts.

    Guards that share one share its budget.
    """

    def __init__(self, calls: int, *, per: float | None = None) -> None:
        """Set the budget.

        Args:
            calls: how many are allowed, >= 0.
            per: length of the window in seconds; None for all time.

        Raises:
            ConfigurationError: a negative number, or a window without length.
        """
        whole = isinstance(calls, int) and not isinstance(calls, bool)  # NaN would let any number of calls through
        length = per is None or (isinstance(per, int | float) and per > 0)
        if not (whole and calls >= 0 and length):
            raise ConfigurationError(
                f"RateLimit({calls!r}, per={per!r}): expected calls >= 0, a whole number, and per > 0 seconds or None."
            )
        self.calls, self.per = calls, None if per is None else check_seconds("per", per)
        self._made: deque[float] = deque()
        self._lock = threading.Lock()

    def __call__(self) -> bool:
        """Tell whether another call is allowed, and count it if so."""
        with self._lock:
            now = time.monotonic()
            while self._made and self.per is not None and now - self._made[0] >= self.per:
                self._made.popleft()
            if len(self._made) >= self.calls:
                return False
            self._made.append(now)
            return True

    def __repr__(self) -> str:
        """Show the budget."""
        return f"RateLimit({self.calls}, per={self.per})"


class AtMost(RateLimit):
    """The old name of `RateLimit`."""

    def __init__(self, calls: int, *, per: float | None = None) -> None:
        """Set the budget, and warn of the name."""
        warn_of_old("AtMost", "RateLimit")
        super().__init__(calls, per=per)
