"""A budget of calls: so many in a length of time, over all threads."""

from __future__ import annotations

import threading
import time
from collections import deque

from semgrad_guard.durations import check_seconds
from semgrad_guard.errors import ConfigurationError


class AtMost:
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
                f"AtMost({calls!r}, per={per!r}): expected calls >= 0, a whole number, and per > 0 seconds or None."
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
        return f"AtMost({self.calls}, per={self.per})"
