"""Optional parts: imported on use, with an error that names the extra where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from semgrad_guard.errors import ConfigurationError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import within it what an extra brings.

    Args:
        extra: its name.
        what: what is asked for, and what that needs, as the error is to begin: "ReviewQueue needs sqlalchemy".

    Raises:
        ConfigurationError: something cannot be imported; the cause is kept.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(f'{what}; install the extra: pip install "semgrad-guard[{extra}]"') from error
