"""Settings as users write them: a wrong name, type or value is a `ConfigurationError` of one line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from semgrad_guard.errors import ConfigurationError, SemGradError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class Settings(BaseModel):
    """Base class of what users set up: frozen and strict, without unknown names.

    `raises` is the error that a wrong setting raises where the class is called. `model_validate`, which reads foreign
    data, raises pydantic's own.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True)
    raises: ClassVar[type[SemGradError]] = ConfigurationError

    def __init__(self, /, **settings: Any) -> None:
        """Check the settings.

        Raises:
            ConfigurationError: one is unknown, or has a wrong type or value; or what `raises` says.
        """
        fields = type(self).model_fields
        known = {*fields, *(field.alias for field in fields.values() if field.alias)}
        for name in settings.keys() - known:
            raise self.raises(unknown_name(type(self).__name__, name, fields))
        with checked(type(self), self.raises):
            super().__init__(**settings)

    # So that pydantic validates nested data itself, instead of calling __init__ for it.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


@contextmanager
def checked(owner: type[BaseModel], error: type[SemGradError] = ConfigurationError) -> Iterator[None]:
    """Turn pydantic's error about the settings of a class into one of ours.

    Raises:
        SemGradError: of the kind `error`, with the first fault in one line.
    """
    try:
        yield
    except ValidationError as failure:
        raise error(first_fault(failure, owner)) from None


def first_fault(failure: ValidationError, owner: type[BaseModel], written: Mapping[str, str] | None = None) -> str:
    """Say in one line what the first fault of pydantic's error is; `written` gives settings other names."""
    fault = failure.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    place = (written or {}).get(place, place)
    about = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should").rstrip(".")
    if fault["type"] != "value_error":  # pydantic's own words, which begin with a capital letter
        about = about[:1].lower() + about[1:]
    setting = f"{place}={shown(fault['input'])}" if fault["type"] != "missing" else place
    return f"{owner.__name__}({setting}): {about}." if place else f"{owner.__name__}: {about}."


def unknown_name(owner: str, name: str, known: Collection[str], also: Collection[str] = ()) -> str:
    """Say that there is no such setting, and which one was probably meant; `also` are known, but too many to list."""
    close = difflib.get_close_matches(name, [*known, *also], n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Expected one of {', '.join(sorted({*known}))}."
    return f"{owner} has no setting {name!r}. {hint}"


def shown(value: object) -> str:
    """Show a value in a few characters."""
    return _SHORT.repr(value)
