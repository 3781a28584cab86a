"""What profiles are made of: frozen records whose numbers are finite, and which no change makes invalid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Strict

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
