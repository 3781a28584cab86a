"""Sessions: who is logged in, until when, and which have ended before."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

LONGEST = 12 * 3600  # seconds after the login, until reviewers log in again


class Sessions:
    """Begins and ends sessions, which are in signed cookies; what is kept here is which of them were ended.

    That is forgotten when the server is started again; the sessions' own end is not.
    """

    def __init__(self) -> None:
        """Begin with none ended."""
        self._ended: dict[str, float] = {}
        self._lock = threading.Lock()

    def begin(self, session: dict[str, Any], reviewer: str) -> None:
        """Log a reviewer in."""
        session |= {"reviewer": reviewer, "id": secrets.token_urlsafe(16), "until": time.time() + LONGEST}

    def end(self, session: dict[str, Any]) -> None:
        """Log whoever has this session out, and whoever has a copy of its cookie."""
        with self._lock:
            now = time.time()
            self._ended = {id_: until for id_, until in self._ended.items() if until > now}
            if "id" in session:
                self._ended[session["id"]] = session["until"]
        session.clear()

    def ended(self, session: dict[str, Any]) -> bool:
        """Tell whether a session with a reviewer is over."""
        return "reviewer" in session and (session["until"] < time.time() or session["id"] in self._ended)
