"""A section of a profile: its features, read off a score, and the regression that makes them a confidence."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from semgrad_guard.calibration.checked import Checked, Count, Number, OneOrMore, Positive, Share
from semgrad_guard.calibration.guarantee import Guarantee
from semgrad_guard.errors import ProfileError
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import known_score, names_of

_NUMBERS = {name for name, field in Score.model_fields.items() if field.annotation in (float, int, float | None)}
_FLOOR = 1e-30  # scores are >= 0; a logarithm needs more
_INDEX = "(?:0|[1-9][0-9]{0,5})"
_BY_LAYER = re.compile(
    rf"(?P<field>layers|layers_unweighted|later\.(?P<token>{_INDEX}))\.(?P<first>{_INDEX})(?::(?P<end>{_INDEX}))?"
)


@dataclass(frozen=True)
class Feature:
    """A feature's name, taken apart.

    `layers.2` is the third value of `layers`, `layers.2:4` the mean of the third and fourth, and `later.0.2` the third
    at the first prompt token after t*. `first` and `end` are such places, `token` is that of `later`; scores that are
    known by name have none of them.
    """

    name: str
    field: str
    token: int | None = None
    first: int = 0
    end: int | None = None

    @classmethod
    def of(cls, name: str) -> Feature:
        """Take a name apart.

        Raises:
            ValueError: no score has such a feature.
        """
        match = _BY_LAYER.fullmatch(name)
        if match is None:
            known = names_of()
            if name in known:
                return cls(name, name)
            raise ValueError(
                f"{name!r} is no feature; expected {', '.join(known)}, layers.L, layers.L:M, layers_unweighted.L, "
                "later.T.L, or a score that was added by register_score"
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
        if self.end is None:
            return ""
        if self.end > layers:
            return f"{self.name!r} reaches beyond the {layers} layers that are scored"
        if self.token is not None and self.token >= later:
            return f"{self.name!r} needs more prompt tokens after t* than the {later} that are scored"
        return ""

    def value(self, score: Score) -> float:
        """Read the feature off a score.

        Raises:
            ProfileError: it was not computed.
        """
        if self.end is None:
            value = known_score(self.name).value(score)
        else:
            rows = getattr(score, self.field)
            if self.token is not None:
                rows = rows[self.token] if self.token < len(rows) else ()
            value = float(np.mean(rows[self.first : self.end])) if self.end <= len(rows) else None
        return _computed(self.name, value)


def feature_values(score: Score, features: tuple[str, ...]) -> list[float]:
    """Read the logarithms of the named features off a score.

    Raises:
        ProfileError: a feature was not computed.
        ValueError: there is no feature of that name.
    """
    values = [
        _computed(name, getattr(score, name)) if name in _NUMBERS else Feature.of(name).value(score)
        for name in features
    ]
    return [math.log(max(value, _FLOOR)) for value in values]


def _computed(name: str, value: float | None) -> float:
    if value is None:
        raise ProfileError(
            f"The profile needs {name!r}, which was not computed: score as the profile is bound, with its parameters."
        )
    return value


# Isotonic probabilities are equal over whole steps. This much of the regression's own keeps answers on a step apart, so
# that a threshold on confidence is one on the score.
_KEPT = 1e-3


class Section(Checked):
    """A logistic regression on log scores, and the least confidence that passes unless the user sets another.

    With one feature it is Platt scaling, with several a fused score. `steps`, where there are any, map the regression's
    probabilities to isotonic ones: pairs of both, ascending. A `threshold` of None lets nothing pass, since none keeps
    the promise. `guarantee` is the promise of the threshold; `void` says why a former one does not hold any more.
    `quantiles` are evenly spaced ones of the confidences of `spread_of` answers, from least to greatest, or empty.

    A value outside the range of the fitting counts as the nearest inside it, so that no answer is confident by
    extrapolation.

    Raises:
        ValidationError: (of pydantic) a number is not finite or out of range, vectors differ in length, or a feature is
            unknown.
    """

    features: tuple[str, ...] = Field(min_length=1)
    lowest: tuple[Number, ...]
    highest: tuple[Number, ...]
    center: tuple[Number, ...]
    scale: tuple[Positive, ...]
    coefficients: tuple[Number, ...]
    intercept: Number
    steps: tuple[tuple[Share, Share], ...] = ()
    questions: OneOrMore
    threshold: Share | None
    threshold_rule: str
    guarantee: Guarantee | None = None
    void: str = ""
    quantiles: tuple[Share, ...] = ()
    spread_of: Count = 0

    @field_validator("features")
    @classmethod
    def _are_known(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        for name in features:
            Feature.of(name)
            if features.count(name) > 1:
                raise ValueError(f"{name!r} stands there twice")
        return features

    @field_validator("steps")
    @classmethod
    def _rise(cls, steps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for (x, y), (next_x, next_y) in pairwise(steps):
            if not (x < next_x and y <= next_y):
                raise ValueError(f"({x}, {y}) is followed by ({next_x}, {next_y}); expected rising steps")
        return steps

    @field_validator("quantiles")
    @classmethod
    def _are_sorted(cls, quantiles: tuple[float, ...]) -> tuple[float, ...]:
        if len(quantiles) == 1 or any(low > high for low, high in pairwise(quantiles)):
            raise ValueError("expected at least two numbers, from least to greatest")
        return quantiles

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("lowest", "highest", "center", "scale", "coefficients"):
            if len(getattr(self, name)) != len(self.features):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} numbers; expected {len(self.features)}, one for each "
                    "feature"
                )
        for name, low, high in zip(self.features, self.lowest, self.highest, strict=True):
            if low > high:
                raise ValueError(f"lowest {low} of {name!r} is above highest {high}")
        if bool(self.quantiles) != bool(self.spread_of):
            raise ValueError(f"{len(self.quantiles)} quantiles of {self.spread_of} answers; expected both or neither")
        if self.guarantee is not None and self.void:
            raise ValueError("there is a guarantee, and void says why there is none")
        return self

    def confidence(self, score: Score) -> float:
        """Give the probability that the answer is right, in [0, 1], or its place where a profile only orders.

        It is 0 exactly where the score, or a number made from it, is not finite.
        """
        if not score.finite():
            return 0.0
        values = np.clip(feature_values(score, self.features), self.lowest, self.highest)
        with np.errstate(all="ignore"):
            logit = self.intercept + float(
                np.dot((values - np.array(self.center)) / np.array(self.scale), self.coefficients)
            )
        if not math.isfinite(logit):
            return 0.0
        probability = 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, logit))))
        if self.steps:
            plain, isotonic = np.array(self.steps).T
            probability = (1.0 - _KEPT) * float(np.interp(probability, plain, isotonic)) + _KEPT * probability
        return probability if 0.0 <= probability <= 1.0 else 0.0

    def passes(self, score: Score) -> bool:
        """Tell whether an answer with this score passes at the section's own threshold; without one, never."""
        confidence = self.confidence(score)
        return self.threshold is not None and confidence > 0 and confidence >= self.threshold
