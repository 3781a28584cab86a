"""How long the server waits for a request. Needs `uvicorn`."""

from __future__ import annotations

import asyncio

from semgrad_guard._compat import H11Protocol

# Seconds that a connection is kept without a request. Clients keep theirs for less (httpx for 5, as uvicorn would), so
# that it is they who hang up, and not the server on a request that is already under way.
KEPT = 75
_SECONDS = 10.0


class Patient(H11Protocol):
    """Hangs up where the head of a request has not come within ten seconds; uvicorn itself would wait for ever."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on; a request whose head is there is being answered."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        elif self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(_SECONDS, self.transport.close)
