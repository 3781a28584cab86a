"""How often anybody may try to log in."""

from __future__ import annotations

import threading
from collections import OrderedDict

from semgrad_guard.routing.allowance import AtMost

_TRIES, _SECONDS = 10, 60.0
_ADDRESSES = 1000  # remembered; whoever comes from more is forgotten, the oldest first


class Attempts:
    """Lets every address try ten times a minute."""

    def __init__(self) -> None:
        """Start with nobody known."""
        self._known: OrderedDict[str, AtMost] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, address: str) -> bool:
        """Tell whether an address may try now, and count it."""
        with self._lock:
            allowance = self._known.setdefault(address, AtMost(_TRIES, per=_SECONDS))
            self._known.move_to_end(address)
            if len(self._known) > _ADDRESSES:
                self._known.popitem(last=False)
        return allowance()
