"""Settings as users write them: a wrong name, type or value is a `ConfigurationError` of one line."""

from __future__ import annotations

import difflib
import math
import reprlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

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


def warn_of_old(old: str, new: str, *, level: int = 3) -> None:
    """Warn of an old name, which works for one more release; `level` is where the user wrote it."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next release.", DeprecationWarning, level)


def renamed(settings: dict[str, Any], owner: str, *, level: int = 4, **names: str) -> dict[str, Any]:
    """Take settings under their old names out of `settings`, warn of each, and give them under their new names."""
    taken = {}
    for old, new in names.items():
        if old in settings:
            warn_of_old(f"{owner}({old}=...)", f"{owner}({new}=...)", level=level)
            taken[new] = settings.pop(old)
    return taken


def shown(value: object) -> str:
    """Show a value in a few characters."""
    return _SHORT.repr(value)


DAY = 86_400.0
CENTURY = 36_525 * DAY


def check_seconds(name: str, value: Any, *, zero: bool = False, most: float = CENTURY) -> float:
    """Check a length of time, and give it as a float.

    Args:
        name: what the user calls it.
        value: seconds.
        zero: 0 is allowed too.
        most: the longest that is allowed, in seconds.

    Raises:
        ConfigurationError: it is no number, not finite, negative, zero where that is not allowed, or too long.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not (0 <= number <= most and (zero or number > 0)):
        least = ">= 0" if zero else "> 0"
        shown = repr(value) if len(repr(value)) <= 60 else f"a {type(value).__name__}"
        raise ConfigurationError(f"{name}={shown}: expected seconds {least}, a finite number of at most {most:,.0f}.")
    return number


def _seconds(value: Any, info: ValidationInfo) -> float | None:
    return None if value is None else check_seconds(info.field_name or "seconds", value)


def _seconds_or_zero(value: Any, info: ValidationInfo) -> float:
    return check_seconds(info.field_name or "seconds", value, zero=True)


# Fields of models: seconds > 0, which may be None, or seconds >= 0.
Seconds = Annotated[float, BeforeValidator(_seconds)]
SecondsOrNone = Annotated[float | None, BeforeValidator(_seconds)]
SecondsOrZero = Annotated[float, BeforeValidator(_seconds_or_zero)]
