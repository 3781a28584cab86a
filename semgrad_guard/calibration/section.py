"""A section of a profile: its features, read off a score, and the regression that makes them a confidence."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

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
_COMPONENT = re.compile(rf"states\.(?P<first>{_INDEX})")


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
        if component := _COMPONENT.fullmatch(name):
            return cls(name, "states", first=int(component["first"]), end=int(component["first"]) + 1)
        match = _BY_LAYER.fullmatch(name)
        if match is None:
            known = names_of()
            if name in known:
                return cls(name, name)
            raise ValueError(
                f"{name!r} is no feature; expected {', '.join(known)}, layers.L, layers.L:M, layers_unweighted.L, "
                "later.T.L, states.K, or a score that was added by register_score"
            )
        first, token = int(match["first"]), match["token"]
        end = first + 1 if match["end"] is None else int(match["end"])
        if end <= first:
            raise ValueError(f"{name!r} is an empty range of layers; expected the greater number last")
        return cls(name, match["field"].split(".")[0], None if token is None else int(token), first, end)

    def missing(self, *, layers: int, later: int, unweighted: bool, attention: bool, states: int) -> str:
        """Say why scores of these settings lack the feature; "" if they have it.

        Args:
            layers: hidden states that gradients are taken at.
            later: prompt tokens after t* that have gradients too.
            unweighted: whether SemGrad is computed without entropy weights as well.
            attention: whether attention weights are read.
            states: components of hidden states that are computed.
        """
        if self.field == "rauq" and not attention:
            return f"{self.name!r} needs attention, which the profile does not bind"
        if self.field == "states":
            return "" if self.first < states else f"{self.name!r} reaches beyond the {states} components that are read"
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
    """Read the named features off a score: their logarithms, and components of hidden states as they are.

    Raises:
        ProfileError: a feature was not computed.
        ValueError: there is no feature of that name.
    """
    return [_feature_value(score, name) for name in features]


def _feature_value(score: Score, name: str) -> float:
    if name in _NUMBERS:
        return math.log(max(_computed(name, getattr(score, name)), _FLOOR))
    feature = Feature.of(name)
    value = feature.value(score)
    return value if feature.field == "states" else math.log(max(value, _FLOOR))


def _computed(name: str, value: float | None) -> float:
    if value is None:
        raise ProfileError(
            f"The profile needs {name!r}, which was not computed: score as the profile is bound, with its parameters."
        )
    return value


# Isotonic probabilities are equal over whole steps. This much of the regression's own keeps answers on a step apart, so
# that a threshold on confidence is one on the score.
_KEPT = 1e-3


KindsFrom = Literal["strata", "clusters", "none"]


class Column(Checked):
    """An AUROC, 0.5 being chance, with a 95 % interval; None where it cannot be told."""

    auroc: Share
    low: Share | None = None
    high: Share | None = None


class Evidence(Checked):
    """How well a confidence told right answers from wrong ones, by fits that had not seen them.

    `same` is about questions of the kinds that were fitted on, `unseen` about kinds that were left out one by one, None
    where the data cannot tell. `core` says the same of the core alone. `share` is the head's. `kinds` counts the kinds
    that were left out, and `kinds_from` says what a kind was.
    """

    share: Share = 0.0
    same: Column
    unseen: Column | None = None
    core_same: Column | None = None
    core_unseen: Column | None = None
    kinds: Count = 0
    kinds_from: KindsFrom = "none"


class Section(Checked):
    """A logistic regression on log scores, and the least confidence that passes unless the user sets another.

    With one feature it is Platt scaling, with several a fused score. `steps`, where there are any, map the regression's
    probabilities to isotonic ones: pairs of both, ascending. A `threshold` of None lets nothing pass, since none keeps
    the promise. `guarantee` is the promise of the threshold; `void` says why a former one does not hold any more.
    `quantiles` are evenly spaced ones of the confidences of `spread_of` answers, from least to greatest, or empty.
    `evidence` says how well the confidence told right answers from wrong ones in fitting. `core_sample` holds the
    logarithms of `combined`, and `distance_sample` the distances of hidden states, of answers that nothing was fitted
    on, ascending: what fresh answers are compared with.

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
    evidence: Evidence | None = None
    core_sample: tuple[Number, ...] = ()
    distance_sample: tuple[Number, ...] = ()
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

    def familiarity(self, score: Score) -> float | None:
        """Give the share of the calibration's questions that lie as far out as this one or farther, in (0, 1].

        A small one says that questions of this kind were hardly seen. None where hidden states are not read.
        """
        if not self.distance_sample or score.distance is None:
            return None
        count = len(self.distance_sample)
        nearer = bisect_left(self.distance_sample, score.distance) if math.isfinite(score.distance) else count
        return (1 + count - nearer) / (count + 1)

    def passes(self, score: Score) -> bool:
        """Tell whether an answer with this score passes at the section's own threshold; without one, never."""
        confidence = self.confidence(score)
        return self.threshold is not None and confidence > 0 and confidence >= self.threshold
