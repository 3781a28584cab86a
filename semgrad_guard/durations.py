"""Lengths of time that users set: finite numbers of seconds that clocks, threads and databases can count."""

from __future__ import annotations

import math
from numbers import Real
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from semgrad_guard.errors import ConfigurationError

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
