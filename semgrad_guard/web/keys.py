"""Who reaches an application: API keys, and addresses that only this machine reaches. It needs no extra."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

from semgrad_guard.errors import ConfigurationError

VARIABLE = "SEMGRAD_GUARD_API_KEY"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")
_SHORTEST = 16  # characters; shorter ones can be tried out


class ApiKeys:
    """A set of keys that can tell whether it holds one, in a time that does not depend on which, or how nearly."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Keep the digests of keys.

        Raises:
            ConfigurationError: one has blanks or other than printable ASCII characters, or is shorter than 16.
        """
        keys = list(keys)
        for place, key in enumerate(keys, start=1):
            if not (key.isascii() and key.isprintable() and " " not in key and len(key) >= _SHORTEST):
                raise ConfigurationError(
                    f"API key {place} of {len(keys)} cannot be used: expected at least {_SHORTEST} printable ASCII "
                    "characters without blanks; `openssl rand -hex 24` makes one."
                )
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, file: Path | None = None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
        """Read keys from a file, one a line, or else from the variable SEMGRAD_GUARD_API_KEY, separated by commas.

        Raises:
            ConfigurationError: the file cannot be read or has no key, or a key cannot be used.
        """
        if file is None:
            return cls(key for part in environment.get(VARIABLE, "").split(",") if (key := part.strip()))
        try:
            keys = [key for line in file.read_text(encoding="utf-8").splitlines() if (key := line.strip())]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"Cannot read the API keys in {file}: {error}") from error
        if not keys:
            raise ConfigurationError(f"The file {file} has no API key; expected one a line.")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, key: str | None) -> bool:
        """Tell whether this is one of the keys; without keys, everybody is let in."""
        if not self._digests:
            return True
        presented = _digest(key or "")
        matches = [
            hmac.compare_digest(presented, digest) for digest in self._digests
        ]  # all, so that time tells nothing
        return any(matches)


def check_address(host: str, keys: ApiKeys) -> None:
    """Let a service without keys listen to its own machine only.

    Raises:
        ConfigurationError: others could reach it, and it has no keys.
    """
    if not keys and not is_loopback(host):
        raise ConfigurationError(
            f"host={host!r} can be reached from other machines, and there is no API key; set {VARIABLE}, or listen to "
            "127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address; a name other than localhost may be anything."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
