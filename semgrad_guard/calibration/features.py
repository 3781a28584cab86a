"""The features that confidence is made from: their names, and their values in a score."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from semgrad_guard.errors import ProfileError
from semgrad_guard.records import Score

_FLOOR = 1e-30  # scores are >= 0; a logarithm needs more
_SCALARS = (
    "semgrad",
    "semgrad_unweighted",
    "paragrad",
    "exgrad",
    "hybridgrad",
    "nll",
    "mean_nll",
    "mean_entropy",
    "max_entropy",
    "length",
)
_INDEX = "(?:0|[1-9][0-9]{0,5})"
_BY_LAYER = re.compile(
    rf"(?P<field>layers|layers_unweighted|later\.(?P<token>{_INDEX}))\.(?P<first>{_INDEX})(?::(?P<end>{_INDEX}))?"
)


@dataclass(frozen=True)
class Feature:
    """A feature's name, taken apart.

    `layers.2` is the third value of `layers`, `layers.2:4` the mean of the third and fourth, and `later.0.2` the third
    at the first prompt token after t*. `first` and `end` are such places, and 0 and 1 for plain fields of a score;
    `token` is None but for `later`.
    """

    name: str
    field: str
    token: int | None = None
    first: int = 0
    end: int = 1

    @classmethod
    def of(cls, name: str) -> Feature:
        """Take a name apart.

        Raises:
            ValueError: no score has such a feature.
        """
        if name in _SCALARS:
            return cls(name, name)
        match = _BY_LAYER.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name!r} is no feature; expected {', '.join(_SCALARS)}, layers.L, layers.L:M, layers_unweighted.L or "
                "later.T.L"
            )
        first, token = int(match["first"]), match["token"]
        end = first + 1 if match["end"] is None else int(match["end"])
        if end <= first:
            raise ValueError(f"{name!r} is an empty range of layers; expected the greater number last")
        return cls(name, match["field"].split(".")[0], None if token is None else int(token), first, end)

    def missing(self, *, layers: int, later: int, unweighted: bool) -> str:
        """Say why scores of these settings lack the feature; "" if they have it.

        Args:
            layers: hidden states that gradients are taken at.
            later: prompt tokens after t* that have gradients too.
            unweighted: whether SemGrad is computed without entropy weights as well.
        """
        if "unweighted" in self.field and not unweighted:
            return f"{self.name!r} needs unweighted, which the profile does not bind"
        if self.field in _SCALARS:
            return ""
        if self.end > layers:
            return f"{self.name!r} reaches beyond the {layers} layers of the span"
        if self.token is not None and self.token >= later:
            return f"{self.name!r} needs more prompt tokens after t* than the {later} that are scored"
        return ""

    def value(self, score: Score) -> float:
        """Read the feature off a score.

        Raises:
            ProfileError: it was not computed.
        """
        values = getattr(score, self.field)
        try:
            if self.field in _SCALARS:
                return float(values)
            row = values if self.token is None else values[self.token]
            if self.end > len(row):
                raise IndexError(self.end)
            return float(np.mean(row[self.first : self.end]))
        except (IndexError, TypeError) as error:
            raise ProfileError(
                f"The profile needs {self.name!r}, which was not computed: score as the profile is bound, with its "
                "parameters."
            ) from error


def feature_values(score: Score, features: tuple[str, ...]) -> list[float]:
    """Read the logarithms of the named features off a score.

    Raises:
        ProfileError: a feature was not computed.
        ValueError: there is no feature of that name.
    """
    return [math.log(max(Feature.of(name).value(score), _FLOOR)) for name in features]
