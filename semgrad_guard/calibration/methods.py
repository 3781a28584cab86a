"""What a confidence is made from, by method and by the labels at hand, and the threshold that keeps a promise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from semgrad_guard.calibration.blend import Parts, across_kinds, over_all
from semgrad_guard.calibration.counts import labels_to_promise
from semgrad_guard.calibration.fit import (
    blended_section,
    fit_out_of_fold,
    later_features,
    layer_features,
    part_of,
    scalar_features,
    single_evidence,
    with_quantiles,
    with_samples,
)
from semgrad_guard.calibration.guarantee import guaranteed_threshold, labels_needed, thresholds_to_try
from semgrad_guard.calibration.profile import SEVERAL, Section, feature_values
from semgrad_guard.calibration.section import Evidence, KindsFrom
from semgrad_guard.errors import ConfigurationError, DataError
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import known_score, names_of

Method = str  # "auto", "blend", "core", "fused", or the name of a score
_PER_FEATURE = 10  # right and wrong answers that each feature of a fused score needs
# Answers of the rarer kind, right or wrong, in fitting: fewer carry no more than one number, or no head.
_FOR_CORE, _FOR_HEAD = 8, 10
_LABELS_FOR_HEAD = 50
_SHOWN = ("combined", "semgrad", "nll")  # scores that are compared without labels of their own


def methods() -> tuple[Method, ...]:
    """Name what a confidence can be made from."""
    return ("auto", *SEVERAL, *names_of("alone"))


def check_method(method: Method) -> None:
    """Refuse what no confidence can be made from.

    Raises:
        ConfigurationError: naming what is expected.
    """
    if method not in methods():
        raise ConfigurationError(f"method={method!r}: expected one of {', '.join(methods())}.")


Compared = dict[str, tuple[float, float | None]]
"""By method, the AUROC for kinds of questions that were fitted on, and for others; None where it cannot be told."""


@dataclass(frozen=True)
class Labelled:
    """An answer's score and whether it was right; `about` is the unit of splitting, `kind` that of the question."""

    about: str
    score: Score
    correct: bool
    kind: str = ""


@dataclass(frozen=True)
class Calibrated:
    """A fitted section, the method it uses, and what every method compared in fitting brought."""

    method: str
    section: Section
    compared: Compared


def calibrate_section(
    labelled: Sequence[Labelled],
    *,
    method: Method = "auto",
    risk: float,
    delta: float,
    kinds_from: KindsFrom = "strata",
    seed: int = 0,
) -> Calibrated:
    """Fit a section and set its threshold so that at most a share `risk` of the answers that pass are wrong.

    The groups of questions are split: one half to fit the confidence on, a part to choose thresholds from, and the
    rest, one answer of each group, to test them on. Each part has right and wrong answers in proportion.

    The threshold is None where no promise can be kept.

    Args:
        labelled: answers with scores and labels.
        method: what the confidence is made from. "auto" takes as much as the labels carry: `combined` by itself where
            few are right or wrong, then a core with coefficients of its own, then a blend of core and head.
        risk: largest share of wrong answers among those that pass.
        delta: probability that the promise does not hold.
        kinds_from: what the kinds of the questions are, for the record.
        seed: random seed of the split.

    Raises:
        DataError: there are too few labels to fit anything, or all are alike.
        ConfigurationError: there is no such method.
    """
    check_method(method)
    fitting, choosing, testing = _split(labelled, seed)
    chosen, fitted, compared = fitted_section(fitting, method, kinds_from, seed)
    # What drift is seen against are answers that nothing was fitted on, as fresh ones are.
    fresh = [item.score for item in (*choosing, *testing)]
    section = with_samples(with_quantiles(fitted, fresh), fresh)
    tried = thresholds_to_try([section.confidence(item.score) for item in choosing])
    tested = _one_of_each(testing, seed)
    confidences, correct = [section.confidence(item.score) for item in tested], [item.correct for item in tested]
    tested_threshold = guaranteed_threshold(confidences, correct, tried, risk=risk, delta=delta)
    if tested_threshold is None:
        passing = [_passing(confidences, correct, threshold) for threshold in tried]
        rule = (
            f"none of {len(tried)} thresholds keeps a risk of {risk:.3g} with certainty {1 - delta:.3g} on "
            f"{len(tested)} answers; at least {labels_needed(risk, delta)} must pass without an error, or "
            f"{labels_needed(risk, delta, 5)} with five; "
            + labels_to_promise(passing, len(tested), len(labelled), risk=risk, delta=delta)
        )
        return Calibrated(chosen, section.model_copy(update={"threshold": None, "threshold_rule": rule}), compared)
    threshold, guarantee = tested_threshold
    rule = (
        f"of the answers that pass at most {risk:.3g} are wrong, with certainty {1 - delta:.3g}: {guarantee.errors} of "
        f"{guarantee.n} were, in the test"
    )
    promise = {"threshold": threshold, "threshold_rule": rule, "guarantee": guarantee}
    return Calibrated(chosen, section.model_copy(update=promise), compared)


def cover_section(scores: Sequence[Score], *, coverage: float, method: Method = "combined") -> Section:
    """Set a threshold without labels, so that a share of these answers passes. It promises coverage, not risk.

    The confidence is only an ordering: the place of the log score among these, brought into (0, 1).

    Raises:
        ConfigurationError: coverage is not in (0, 1], there is no such method, or it needs labels.
        DataError: there are no scores.
    """
    check_method(method)
    if not 0 < coverage <= 1:
        raise ConfigurationError(f"coverage={coverage}: expected a share in (0, 1].")
    if method in ("auto", *SEVERAL):
        singles = ", ".join(names_of("alone"))
        raise ConfigurationError(f"method={method!r} needs labels; without them, use one of {singles}.")
    if not scores:
        raise DataError("There are no answers to set a threshold from.")
    values = np.array([feature_values(score, (method,)) for score in scores])
    section = Section(
        features=(method,),
        lowest=tuple(values.min(0).tolist()),
        highest=tuple(values.max(0).tolist()),
        center=tuple(values.mean(0).tolist()),
        scale=tuple(np.maximum(values.std(0), 1e-9).tolist()),
        coefficients=(-1.0 if known_score(method).direction == "uncertainty" else 1.0,),
        intercept=0.0,
        questions=len(scores),
        threshold=0.0,
        threshold_rule=f"{coverage:.3g} of {len(scores)} unlabelled answers pass; nothing is promised about errors",
    )
    confidences = sorted((section.confidence(score) for score in scores), reverse=True)
    allowed = max(1, int(np.floor(coverage * len(confidences))))
    threshold = {"threshold": confidences[allowed - 1]}
    return with_samples(with_quantiles(section.model_copy(update=threshold), scores), scores)


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
    scalars = scalar_features()
    sets = [(*scalars, *layers, *later), (*scalars, *layers), scalars]
    return next((features for features in sets if rarer >= _PER_FEATURE * len(features)), None)


def fitted_section(
    fitting: Sequence[Labelled], method: Method, kinds_from: KindsFrom, seed: int
) -> tuple[str, Section, Compared]:
    """Fit the confidence of a method; "auto" takes as much of core and head as the labels carry."""
    scores, correct = [item.score for item in fitting], [item.correct for item in fitting]
    groups, kinds = [item.about for item in fitting], [item.kind for item in fitting]
    wanted = _for_labels(fitting) if method == "auto" else method
    if wanted in ("core", "blend"):
        section = blended_section(
            scores,
            correct,
            groups=groups,
            kinds=kinds,
            kinds_from=kinds_from,
            head=wanted == "blend",
            seed=seed,
        )
        name = "blend" if section.evidence is not None and section.evidence.share else "core"
        return name, section, _compared(section.evidence, name, fitting)
    features = _features(fitting, wanted)
    name = wanted if wanted != "fused" or len(features) > 1 else features[0]
    section, probabilities = fit_out_of_fold(scores, correct, features, groups=groups)
    if len(features) == 1:
        parts = _single(fitting, features[0])
    else:
        parts = replace(_single(fitting, "combined"), core=probabilities[:, None], kinds=[""] * len(fitting))
    section = section.model_copy(update={"evidence": single_evidence(parts, kinds_from, seed)})
    return name, section, _compared(section.evidence, name, fitting)


def _single(labelled: Sequence[Labelled], feature: str) -> Parts:
    values = np.array([feature_values(item.score, (feature,)) for item in labelled])
    sign = 1.0 if feature in names_of() and known_score(feature).direction == "certainty" else -1.0
    right, kinds = np.array([item.correct for item in labelled]), [item.kind for item in labelled]
    return Parts(sign * values, np.ones(1), values, right, [item.about for item in labelled], kinds)


def _compared(evidence: Evidence | None, name: str, fitting: Sequence[Labelled]) -> Compared:
    """List what was fitted, its core, and scores that need no labels."""
    rows: Compared = {}
    if evidence is not None:
        rows[name] = (evidence.same.auroc, None if evidence.unseen is None else evidence.unseen.auroc)
        if evidence.core_same is not None:
            unseen = evidence.core_unseen
            rows["core"] = (evidence.core_same.auroc, None if unseen is None else unseen.auroc)
    for single in _SHOWN:
        parts = _single(fitting, single)
        rows.setdefault(single, (over_all(parts.core[:, 0], parts) or 0.5, across_kinds(parts.core[:, 0], parts)))
    return rows


def _for_labels(fitting: Sequence[Labelled]) -> Method:
    rarer = min(sum(item.correct for item in fitting), sum(not item.correct for item in fitting))
    if rarer < _FOR_CORE:
        return "combined"
    return "blend" if rarer >= _FOR_HEAD and len(fitting) >= _LABELS_FOR_HEAD else "core"


def _features(fitting: Sequence[Labelled], method: Method) -> tuple[str, ...]:
    """Name the features of a fused or single score."""
    if method == "semgrad" and fitting[0].score.semgrad_unweighted is not None:
        return ("semgrad_unweighted",)  # computed only where it is wanted
    return (fused_features(fitting) or ("semgrad",)) if method == "fused" else (method,)
