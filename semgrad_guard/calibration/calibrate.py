"""From labelled answers to a profile whose threshold keeps a promise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.metrics import roc_auc_score

from semgrad_guard.calibration.fit import (
    SCALARS,
    fit_section,
    later_features,
    layer_features,
    out_of_fold,
    with_quantiles,
)
from semgrad_guard.calibration.guarantee import guaranteed_threshold, labels_needed, thresholds_to_try
from semgrad_guard.calibration.needs import labels_to_promise
from semgrad_guard.calibration.profile import Section, feature_values
from semgrad_guard.calibration.split import part_of
from semgrad_guard.errors import ConfigurationError, DataError
from semgrad_guard.records import Score

Method = Literal["auto", "fused", "semgrad", "hybridgrad", "paragrad"]
_SINGLES: tuple[Method, ...] = ("semgrad", "hybridgrad", "paragrad")
_PER_FEATURE = 10  # right and wrong answers that each feature needs


@dataclass(frozen=True)
class Labelled:
    """An answer's score and whether it was right; `about` is the unit of splitting."""

    about: str
    score: Score
    correct: bool


@dataclass(frozen=True)
class Calibrated:
    """A fitted section, the method it uses, and the out-of-fold AUROC of every method compared, in fitting."""

    method: str
    section: Section
    compared: dict[str, float]


def calibrate_section(
    labelled: Sequence[Labelled], *, method: Method = "auto", risk: float, delta: float, seed: int = 0
) -> Calibrated:
    """Fit a section and set its threshold so that of the answers that pass at most a share `risk` are wrong.

    The questions are split by what they are about: one half to fit the confidence on, a part to choose thresholds from,
    and the rest, one answer of each group, to test them on; right and wrong answers are in each part in proportion.

    The section's threshold is None where no promise can be kept.

    Raises:
        DataError: there are too few labels to fit anything, or all are alike.
    """
    fitting, choosing, testing = _split(labelled, seed)
    chosen, features, compared = _features(fitting, method)
    fitted = fit_section(
        [item.score for item in fitting],
        [item.correct for item in fitting],
        features,
        groups=[item.about for item in fitting],
    )
    # What drift is seen against are answers that nothing was fitted on, as fresh ones are.
    section = with_quantiles(fitted, [item.score for item in (*choosing, *testing)])
    tried = thresholds_to_try([section.confidence(item.score) for item in choosing])
    tested = _one_of_each(testing, seed)
    confidences, correct = [section.confidence(item.score) for item in tested], [item.correct for item in tested]
    found = guaranteed_threshold(confidences, correct, tried, risk=risk, delta=delta)
    if found is None:
        passing = [_passing(confidences, correct, threshold) for threshold in tried]
        rule = (
            f"none of {len(tried)} thresholds keeps a risk of {risk:.3g} with certainty {1 - delta:.3g} on "
            f"{len(tested)} answers; at least {labels_needed(risk, delta)} must pass without an error, or "
            f"{labels_needed(risk, delta, 5)} with five; "
            + labels_to_promise(passing, len(tested), len(labelled), risk=risk, delta=delta)
        )
        return Calibrated(chosen, section.model_copy(update={"threshold": None, "threshold_rule": rule}), compared)
    threshold, guarantee = found
    rule = (
        f"of the answers that pass at most {risk:.3g} are wrong, with certainty {1 - delta:.3g}: {guarantee.errors} of "
        f"{guarantee.n} were, in the test"
    )
    kept = {"threshold": threshold, "threshold_rule": rule, "guarantee": guarantee}
    return Calibrated(chosen, section.model_copy(update=kept), compared)


def cover_section(scores: Sequence[Score], *, coverage: float, method: Method = "semgrad") -> Section:
    """Set a threshold without labels, so that a share of these answers passes. It promises coverage, not risk.

    The confidence is only an ordering: the place of the log score among these, brought into (0, 1).

    Raises:
        ConfigurationError: coverage is not in (0, 1], or the method needs labels.
        DataError: there are no scores.
    """
    if not 0 < coverage <= 1:
        raise ConfigurationError(f"coverage={coverage}: expected a share in (0, 1].")
    if method in ("auto", "fused"):
        raise ConfigurationError(f"method={method!r} needs labels; without them, use one of {', '.join(_SINGLES)}.")
    if not scores:
        raise DataError("There are no answers to set a threshold from.")
    values = np.array([feature_values(score, (method,)) for score in scores])
    section = Section(
        features=(method,),
        lowest=tuple(values.min(0).tolist()),
        highest=tuple(values.max(0).tolist()),
        center=tuple(values.mean(0).tolist()),
        scale=tuple(np.maximum(values.std(0), 1e-9).tolist()),
        coefficients=(-1.0,),
        intercept=0.0,
        questions=len(scores),
        threshold=0.0,
        threshold_rule=f"{coverage:.3g} of {len(scores)} unlabelled answers pass; nothing is promised about errors",
    )
    confidences = sorted((section.confidence(score) for score in scores), reverse=True)
    allowed = max(1, int(np.floor(coverage * len(confidences))))
    return with_quantiles(section.model_copy(update={"threshold": confidences[allowed - 1]}), scores)


def _passing(confidences: Sequence[float], correct: Sequence[bool], threshold: float) -> tuple[int, int]:
    """Count the answers that pass, and the wrong ones among them."""
    passing = [right for value, right in zip(confidences, correct, strict=True) if value >= threshold]
    return len(passing), len(passing) - sum(passing)


def _one_of_each(labelled: Sequence[Labelled], seed: int) -> list[Labelled]:
    """Draw one answer of each group: two about the same are not independent."""
    rng = random.Random(seed)
    groups: dict[str, list[Labelled]] = {}
    for item in labelled:
        groups.setdefault(item.about, []).append(item)
    return [rng.choice(members) for members in groups.values()]


def _split(labelled: Sequence[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    part = part_of(((item.about, item.correct) for item in labelled), seed)
    parts: tuple[list[Labelled], list[Labelled], list[Labelled]] = ([], [], [])
    for item in labelled:
        parts[part[item.about]].append(item)
    return parts


def fused_features(fitting: Sequence[Labelled]) -> tuple[str, ...] | None:
    """Name the features of a fused score: all, or without the tokens after t*, or without layers, or none at all.

    The rarer kind of answer, right or wrong, must have ten for each of them.
    """
    first, rarer = fitting[0].score, min(sum(i.correct for i in fitting), sum(not i.correct for i in fitting))
    layers, later = layer_features(first), later_features(first)
    sets = [(*SCALARS, *layers, *later), (*SCALARS, *layers), SCALARS]
    return next((features for features in sets if rarer >= _PER_FEATURE * len(features)), None)


def _features(fitting: Sequence[Labelled], method: Method) -> tuple[str, tuple[str, ...], dict[str, float]]:
    """Choose features: those that the method names, or the fused ones.

    "auto" takes the fused score unless a single one separates right from wrong better, out of fold.
    """
    first = fitting[0].score
    singles: dict[str, tuple[str, ...]] = {name: (name,) for name in _SINGLES}
    if method == "semgrad" and first.semgrad_unweighted is not None:
        return method, ("semgrad_unweighted",), {}  # computed only where it is wanted
    if method in singles:
        return method, singles[method], {}
    fused = fused_features(fitting)
    if method == "fused":
        return ("semgrad", ("semgrad",), {}) if fused is None else ("fused", fused, {})
    if first.semgrad_unweighted is not None:
        singles["semgrad_unweighted"] = ("semgrad_unweighted",)
    candidates = singles if fused is None else {"fused": fused, **singles}
    correct, groups = [item.correct for item in fitting], [item.about for item in fitting]
    ranked = {
        name: float(roc_auc_score(correct, out_of_fold([item.score for item in fitting], correct, features, groups)))
        for name, features in candidates.items()
    }
    best = max(ranked, key=lambda name: ranked[name])  # the first of equals: fused
    return best, candidates[best], ranked
