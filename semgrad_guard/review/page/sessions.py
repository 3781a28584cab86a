"""How often anybody may try to log in."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from typing import Any

from semgrad_guard.routing.limits import RateLimit

_TRIES, _SECONDS = 10, 60.0
_ADDRESSES = 1000  # remembered; whoever comes from more is forgotten, the oldest first


class Attempts:
    """Lets every address try ten times a minute."""

    def __init__(self) -> None:
        """Start with nobody known."""
        self._known: OrderedDict[str, RateLimit] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, address: str) -> bool:
        """Tell whether an address may try now, and count it."""
        with self._lock:
            allowance = self._known.setdefault(address, RateLimit(_TRIES, per=_SECONDS))
            self._known.move_to_end(address)
            if len(self._known) > _ADDRESSES:
                self._known.popitem(last=False)
        return allowance()


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
