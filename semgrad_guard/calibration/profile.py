"""The profile: what turns the scores of one particular model into a confidence, saved as a versioned JSON."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semgrad_guard.calibration.guarantee import Guarantee
from semgrad_guard.errors import ProfileError
from semgrad_guard.records import AnswerKind, Score
from semgrad_guard.scoring.preservation import Preservation

PositionSource = Literal["template", "preservation", "labels", "caller"]

_FLOOR = 1e-30  # scores are >= 0; a logarithm needs more
# Isotonic probabilities are equal over whole steps. This much of the regression's own keeps answers on a step apart, so
# that a threshold on confidence is one on the score.
_KEPT = 1e-3


def feature_values(score: Score, features: tuple[str, ...]) -> list[float]:
    """Read the named features off a score: logs of its fields or of what is in them.

    `layers.2` is the third value of `layers`, `layers.2:4` the mean of the third and fourth, and `later.0.2` the third
    at the first token after t*.

    Raises:
        ProfileError: a feature was not computed.
    """
    return [math.log(max(_value(score, name), _FLOOR)) for name in features]


def _value(score: Score, name: str) -> float:
    field, *places = name.split(".")
    value = getattr(score, field)
    try:
        for place in places:
            first, colon, end = place.partition(":")
            value = np.mean(value[int(first) : int(end)]) if colon else value[int(first)]
        return float(value)
    except (IndexError, TypeError) as error:
        raise ProfileError(
            f"The profile needs {name!r}, which was not computed: score as the profile is bound, with its parameters."
        ) from error


class Section(BaseModel):
    """A logistic regression on log scores, and the confidence that passes unless the user says otherwise.

    With one feature it is Platt scaling, with several a fused score. `steps`, where there are any, map the regression's
    probabilities to isotonic ones: pairs of both, ascending. A `threshold` of None lets nothing pass: none was found
    that keeps what was to be promised. `guarantee` is the promise that goes with the threshold. `quantiles` are
    evenly spaced ones of the confidences of `spread_of` answers, from least to greatest; empty if they were not kept.

    A value outside the range met in fitting counts as the nearest one met, so that no answer is confident by
    extrapolation.
    """

    model_config = ConfigDict(frozen=True)

    features: tuple[str, ...] = Field(min_length=1)
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    steps: tuple[tuple[float, float], ...] = ()
    questions: int
    threshold: float | None = Field(ge=0, le=1)
    threshold_rule: str
    guarantee: Guarantee | None = None
    quantiles: tuple[float, ...] = ()
    spread_of: int = 0

    def confidence(self, score: Score) -> float:
        """Give the probability that the answer is right, in [0, 1]; NaN for a score that is not finite."""
        if not score.finite():
            return math.nan
        values = np.clip(feature_values(score, self.features), self.lowest, self.highest)
        logit = self.intercept + float(
            np.dot((values - np.array(self.center)) / np.array(self.scale), self.coefficients)
        )
        probability = 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, logit))))
        if not self.steps:
            return probability
        plain, isotonic = np.array(self.steps).T
        return (1.0 - _KEPT) * float(np.interp(probability, plain, isotonic)) + _KEPT * probability

    def passes(self, score: Score) -> bool:
        """Tell whether an answer with this score passes at the section's own threshold; without a finite one, never."""
        return self.threshold is not None and self.confidence(score) >= self.threshold


class Binding(BaseModel):
    """What a profile belongs to: a model's weights and chat template, and how its scores are computed."""

    model_config = ConfigDict(frozen=True)

    model: str
    fingerprint: str
    template: str
    token_position: int
    span: tuple[int, ...]
    reduction: Literal["mean", "sum"]
    norm: Literal["l1", "l2"]
    tau: float = 1.0
    beta: float = 1.0
    unweighted: bool = False
    later: bool = False

    def settings(self) -> dict[str, Any]:
        """Give the keywords of `SemGradScorer` that score as the profile was fitted."""
        return self.model_dump(exclude={"model", "fingerprint", "template"})


class Profile(BaseModel):
    """Confidence for one model: a section for each kind of answer that it was fitted on.

    `answer` judges answers from memory, `grounded` those from passages or from the results of tools, `tool_call` whole
    tool calls and `argument` single arguments of them. `position_from` says how t* was found: by the chat template's
    generation prompt, by the `preservation` score, by labels, or by the caller.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    package: str
    method: str
    bound_to: Binding
    answer: Section
    grounded: Section | None = None
    tool_call: Section | None = None
    argument: Section | None = None
    label_source: str
    position_from: PositionSource = "template"
    preservation: Preservation | None = None
    seed: int
    created: date | None = None

    def section(self, kind: AnswerKind = "answer") -> Section | None:
        """Give the section that judges answers of a kind.

        Where none was fitted for answers from passages, the one for answers from memory stands in; for tool calls and
        arguments, whose scores are about other tokens, nothing does.
        """
        if kind == "grounded":
            return self.grounded or self.answer
        section: Section | None = getattr(self, kind)
        return section

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile from a JSON file.

        Raises:
            ProfileError: there is no such file, or it is not a profile of this version.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"Cannot read the profile {path}: {error.strerror}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ProfileError(
                f"{path} is not a profile of version 1: {place}: {first['msg']}. Calibrate again to get one."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def check(self, fingerprint: str, template: str) -> None:
        """Refuse a model or chat template other than the one the profile was fitted on.

        Raises:
            ProfileError: naming what differs.
        """
        for what, given, expected in (
            ("weights", fingerprint, self.bound_to.fingerprint),
            ("chat template", template, self.bound_to.template),
        ):
            if given != expected:
                raise ProfileError(
                    f"This profile was fitted on {self.bound_to.model} with {what} {expected}; the model given has "
                    f"{given}. Confidence does not carry over: calibrate a profile for this model, or use "
                    "score_threshold without one."
                )
