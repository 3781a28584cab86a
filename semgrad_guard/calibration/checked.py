"""Profiles and sections as files of JSON: their content is checked, and an error names the place of a fault."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Strict

from semgrad_guard.errors import ProfileError

# Numbers are numbers: no texts or truth values that look like some.
Number = Annotated[float, Strict()]
Positive = Annotated[float, Strict(), Field(gt=0)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Chance = Annotated[float, Strict(), Field(gt=0, lt=1)]
Count = Annotated[int, Strict(), Field(ge=0, le=10**12)]
OneOrMore = Annotated[int, Strict(), Field(ge=1, le=10**12)]
Flag = Annotated[bool, Strict()]


class Checked(BaseModel):
    """A frozen record of finite numbers without unknown keys; a changed copy is checked like a new one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; other values must be valid too.

        Raises:
            ValidationError: (of pydantic) they are not.
        """
        copied = super().model_copy(deep=deep)
        return type(self).model_validate({**dict(copied), **update}) if update else copied


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
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise _malformed(path, f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _malformed(path, what) from error
    if not isinstance(content, dict):
        raise _malformed(path, f"expected a JSON object, and the file holds a {type(content).__name__}")
    return content


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
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"the key {key!r} stands twice in one object")
        members[key] = value
    return members


def _malformed(path: str | Path, what: str) -> ProfileError:
    return ProfileError(f"{path} is not a profile of version 1: {what}. Calibrate again to get one.")
