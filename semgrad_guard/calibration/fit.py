"""From labelled answers to a section of a profile: the split, the fit, and the threshold that keeps a promise."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from semgrad_guard.calibration.counts import FEWEST, labels_to_promise
from semgrad_guard.calibration.guarantee import guaranteed_threshold, labels_needed, thresholds_to_try
from semgrad_guard.calibration.profile import Section, feature_values
from semgrad_guard.errors import ConfigurationError, DataError
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import known_score, known_scores, names_of

_PARTS = ("fit on", "choose thresholds from", "test on")
_SHARES = (0.5, 0.15, 0.35)


def part_of(labels: Iterable[tuple[str, bool]], seed: int) -> dict[str, int]:
    """Split the groups of questions: 0 to fit on, 1 to choose thresholds from, 2 to test them on.

    Args:
        labels: what each answer is about, and whether it is right.
        seed: random seed of the draw.

    Raises:
        DataError: there are too few to have some of each.
    """
    part = _stratified(labels, _SHARES, seed)
    for index, name in enumerate(_PARTS):
        if index not in part.values():
            raise DataError(f"Labelled answers about {len(part)} things leave none to {name}; give more of them.")
    return part


def first_half(labels: Iterable[tuple[str, bool]], seed: int) -> set[str]:
    """Draw one half of the groups of questions."""
    return {about for about, index in _stratified(labels, (0.5, 0.5), seed).items() if index == 0}


def _stratified(labels: Iterable[tuple[str, bool]], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Draw parts of given shares from groups whose answers are all wrong, of both kinds, and all right.

    Each part has its share of each of the three, to within one group, and its share of all.

    The promise of a threshold rests on the part that it is tested on. Which groups of a kind are tested is chance, so
    that their scores are those of fresh groups of that kind, and tell nothing of the groups that were fitted on. Only
    the number of wrong groups in the test is no longer drawn by chance from all: it is their share, rounded. Its mean
    is the same and its variance smaller, so that errors among those that pass are spread less than the binomial
    distribution says. Few errors at a threshold that is too loose are then less probable: the exact test is on the safe
    side. tests/unit_tests/test_guarantee.py simulates it.
    """
    kinds: dict[str, set[bool]] = {}
    for about, correct in labels:
        kinds.setdefault(about, set()).add(correct)
    rng, part, start = random.Random(seed), dict[str, int](), 0
    cumulated = [0.0, *(sum(shares[: index + 1]) for index in range(len(shares)))]
    for kind in ({False}, {False, True}, {True}):
        groups = sorted(about for about, labels_of_group in kinds.items() if labels_of_group == kind)
        rng.shuffle(groups)
        end = start + len(groups)
        # Of the first n groups, a share of n: rounding over all kinds together keeps the parts' sizes.
        sizes = [round(share * end) - round(share * start) for share in cumulated]
        for index, (first, last) in enumerate(pairwise(sizes)):
            part |= dict.fromkeys(groups[first:last], index)
        start = end
    return part


_FOLDS = FEWEST
_QUANTILES = 101
_PENALTIES = (0.1, 1.0, 10.0, 100.0)  # inverse strengths of the l2 penalty
_ENOUGH_FOR_STEPS = 1000  # labels from which on isotonic regression beats the two parameters of Platt scaling


def scalar_features(*, gradients: bool = True) -> tuple[str, ...]:
    """Name the scores that are features of a fused score, those without gradients first."""
    kinds = sorted(known_scores("fused"), key=lambda kind: kind.gradient)
    return tuple(kind.name for kind in kinds if gradients or not kind.gradient)


def layer_features(score: Score) -> tuple[str, ...]:
    """Name SemGrad layer by layer at t*, and unweighted too where that was computed."""
    weights = ("layers", "layers_unweighted") if score.layers_unweighted else ("layers",)
    return tuple(f"{field}.{layer}" for field in weights for layer in range(len(score.layers)))


def later_features(score: Score) -> tuple[str, ...]:
    """Name SemGrad layer by layer at the prompt tokens after t*, where it was computed."""
    return tuple(f"later.{token}.{layer}" for token, layers in enumerate(score.later) for layer in range(len(layers)))


def fit_section(
    scores: Sequence[Score],
    correct: Sequence[bool],
    features: tuple[str, ...],
    *,
    groups: Sequence[str] | None = None,
    threshold: float = 0.5,
    threshold_rule: str = "by default",
) -> Section:
    """Fit P(right | scores) by logistic regression on standardised logs; cross-validation chooses the penalty.

    From a thousand labels on, isotonic regression on out-of-fold probabilities corrects the rest of its shape.

    Args:
        scores: scores of answers.
        correct: whether each answer was right.
        features: names as in `feature_values`; one gives Platt scaling, several a fused score.
        groups: what each question is about; questions about the same are kept in one fold. None: each by itself.
        threshold: least confidence that passes by default.
        threshold_rule: how it was chosen, in words.

    Raises:
        DataError: all answers are right, or all wrong, or there are too few of a kind to cross-validate.
    """
    values = np.array([feature_values(score, features) for score in scores])
    model, probabilities = _regression(values, correct, groups)
    scaler, regression = model[0], model[-1]
    section = Section(
        features=features,
        lowest=tuple(values.min(0).tolist()),
        highest=tuple(values.max(0).tolist()),
        center=tuple(scaler.mean_.tolist()),
        scale=tuple(scaler.scale_.tolist()),
        coefficients=tuple(regression.coef_[0].tolist()),
        intercept=float(regression.intercept_[0]),
        steps=_steps(probabilities, correct) if len(correct) >= _ENOUGH_FOR_STEPS else (),
        questions=len(correct),
        threshold=threshold,
        threshold_rule=threshold_rule,
    )
    return with_quantiles(section, scores)


def with_quantiles(section: Section, scores: Sequence[Score]) -> Section:
    """Add how the confidences of these answers are spread, for a later look at drift."""
    quantiles = np.quantile([section.confidence(score) for score in scores], np.linspace(0, 1, _QUANTILES))
    return section.model_copy(update={"quantiles": tuple(quantiles.tolist()), "spread_of": len(scores)})


def out_of_fold(
    scores: Sequence[Score], correct: Sequence[bool], features: tuple[str, ...], groups: Sequence[str]
) -> list[float]:
    """Give each answer the confidence of a regression that was fitted without its group.

    Raises:
        DataError: all answers are right, or all wrong, or there are too few of a kind to cross-validate.
    """
    probabilities: list[float] = _regression(np.array([feature_values(s, features) for s in scores]), correct, groups)[
        1
    ].tolist()
    return probabilities


def _regression(values: Any, correct: Sequence[bool], groups: Sequence[str] | None) -> tuple[Any, Any]:
    """Fit on everything, and give every answer its probability by a fit that left its group out."""
    kinds = [sum(correct), len(correct) - sum(correct)]
    if min(kinds) < _FOLDS:
        raise DataError(
            f"{kinds[0]} right and {kinds[1]} wrong answers; a profile needs at least {_FOLDS} of each kind."
        )
    right = np.asarray(correct)
    units = list(groups) if groups is not None else [str(index) for index in range(len(right))]
    folds = list(StratifiedGroupKFold(_FOLDS).split(values, right, units))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    search = GridSearchCV(pipeline, {"logisticregression__C": _PENALTIES}, scoring="neg_log_loss", cv=folds)
    model = search.fit(values, right).best_estimator_
    return model, cross_val_predict(model, values, right, cv=folds, method="predict_proba")[:, 1]


def _steps(probabilities: Any, correct: Sequence[bool]) -> tuple[tuple[float, float], ...]:
    """Fit isotonic regression; what n answers show is never surer than 1 - 1 / (n + 2)."""
    edge = 1.0 / (len(correct) + 2)
    fitted = IsotonicRegression(y_min=edge, y_max=1.0 - edge, out_of_bounds="clip").fit(probabilities, list(correct))
    return tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True))


def threshold_passing(confidences: Sequence[float], share: float) -> float:
    """Give the threshold that at most a share of these confidences, those of wrong answers, reach."""
    ordered = np.sort(np.asarray(confidences))[::-1]
    allowed = int(np.floor(share * len(ordered)))
    return float(np.nextafter(ordered[allowed], 2.0)) if allowed < len(ordered) else 0.0


Method = str  # "auto", "fused", or the name of a score
_PER_FEATURE = 10  # right and wrong answers that each feature needs


def methods() -> tuple[Method, ...]:
    """Name what a confidence can be made from."""
    return ("auto", "fused", *names_of("alone"))


def check_method(method: Method) -> None:
    """Refuse what no confidence can be made from.

    Raises:
        ConfigurationError: naming what is expected.
    """
    if method not in methods():
        raise ConfigurationError(f"method={method!r}: expected one of {', '.join(methods())}.")


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
    """Fit a section and set its threshold so that at most a share `risk` of the answers that pass are wrong.

    The groups of questions are split: one half to fit the confidence on, a part to choose thresholds from, and the
    rest, one answer of each group, to test them on. Each part has right and wrong answers in proportion.

    The threshold is None where no promise can be kept.

    Raises:
        DataError: there are too few labels to fit anything, or all are alike.
        ConfigurationError: there is no such method.
    """
    check_method(method)
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


def cover_section(scores: Sequence[Score], *, coverage: float, method: Method = "semgrad") -> Section:
    """Set a threshold without labels, so that a share of these answers passes. It promises coverage, not risk.

    The confidence is only an ordering: the place of the log score among these, brought into (0, 1).

    Raises:
        ConfigurationError: coverage is not in (0, 1], there is no such method, or it needs labels.
        DataError: there are no scores.
    """
    check_method(method)
    if not 0 < coverage <= 1:
        raise ConfigurationError(f"coverage={coverage}: expected a share in (0, 1].")
    if method in ("auto", "fused"):
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
    scalars = scalar_features()
    sets = [(*scalars, *layers, *later), (*scalars, *layers), scalars]
    return next((features for features in sets if rarer >= _PER_FEATURE * len(features)), None)


def _features(fitting: Sequence[Labelled], method: Method) -> tuple[str, tuple[str, ...], dict[str, float]]:
    """Choose the features: those of the method, or the fused ones.

    "auto" takes the fused score unless a single one separates right from wrong better, out of fold.
    """
    first = fitting[0].score
    if method == "semgrad" and first.semgrad_unweighted is not None:
        return method, ("semgrad_unweighted",), {}  # computed only where it is wanted
    if method not in ("auto", "fused"):
        return method, (method,), {}
    fused = fused_features(fitting)
    if method == "fused":
        return ("semgrad", ("semgrad",), {}) if fused is None else ("fused", fused, {})
    singles = {kind.name: (kind.name,) for kind in known_scores("auto")}
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
