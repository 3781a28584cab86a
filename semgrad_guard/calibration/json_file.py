"""Reading a profile's file strictly: whatever is wrong with it is one error that says what and where."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from semgrad_guard.errors import ProfileError


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object, no key of it twice.

    Raises:
        ProfileError: the file cannot be read, or holds something else.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ProfileError(f"Cannot read the profile {path}: {error.strerror}.") from error
    except (TypeError, ValueError) as error:
        raise ProfileError(f"Cannot read the profile {path!r}: expected the path of a JSON file.") from error
    if raw.startswith(codecs.BOM_UTF8):
        raise _malformed(path, "the file begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(path, f"byte {error.start} is not UTF-8") from error
    if not text.strip():
        raise _malformed(path, "the file is empty")
    try:
        found = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise _malformed(path, f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _malformed(path, what) from error
    if not isinstance(found, dict):
        raise _malformed(path, f"expected a JSON object, and the file holds a {type(found).__name__}")
    return found


def write_text(path: str | Path, text: str) -> None:
    """Write a profile's file.

    Raises:
        ProfileError: that cannot be done.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"Cannot write the profile {path}: {error.strerror}.") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in one object")
        found[key] = value
    return found


def _malformed(path: str | Path, what: str) -> ProfileError:
    return ProfileError(f"{path} is not a profile of version 1: {what}. Calibrate again to get one.")
