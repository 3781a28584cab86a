"""From labelled answers to a section of a profile: the split into parts, the features, and the regressions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.cluster import KMeans
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from semgrad_guard.calibration import blend
from semgrad_guard.calibration.blend import Parts
from semgrad_guard.calibration.counts import FEWEST
from semgrad_guard.calibration.profile import Section, feature_values
from semgrad_guard.calibration.section import Column, Evidence, KindsFrom
from semgrad_guard.errors import DataError
from semgrad_guard.records import Score
from semgrad_guard.scoring.registry import known_score, known_scores, names_of
from semgrad_guard.scoring.states import PLACES, StateReading

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
_BANDS = 16  # of layers, in a head: deep models have more layers than labels can carry
_MOST_COMPONENTS, _LABELS_PER_COMPONENT = 8, 12  # of hidden states, at each place and layer
_TO_SORT_BY = 4
_PER_CLUSTER, _MOST_CLUSTERS = 40, 8
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
    return fit_out_of_fold(
        scores, correct, features, groups=groups, threshold=threshold, threshold_rule=threshold_rule
    )[0]


def fit_out_of_fold(
    scores: Sequence[Score],
    correct: Sequence[bool],
    features: tuple[str, ...],
    *,
    groups: Sequence[str] | None = None,
    threshold: float = 0.5,
    threshold_rule: str = "by default",
) -> tuple[Section, NDArray[np.float64]]:
    """Fit as `fit_section` does, and give each answer's probability by a fit that left its group out, too, [n]."""
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
    return with_quantiles(section, scores), probabilities


def with_quantiles(section: Section, scores: Sequence[Score]) -> Section:
    """Add how the confidences of these answers are spread, for a later look at drift."""
    quantiles = np.quantile([section.confidence(score) for score in scores], np.linspace(0, 1, _QUANTILES))
    return section.model_copy(update={"quantiles": tuple(quantiles.tolist()), "spread_of": len(scores)})


def with_samples(section: Section, scores: Sequence[Score]) -> Section:
    """Add what fresh answers are compared with one by one: the core of these answers, and how far out they lie."""
    core = [feature_values(score, ("combined",))[0] for score in scores]
    distances = [score.distance for score in scores if score.distance is not None]
    return section.model_copy(update={"core_sample": tuple(sorted(core)), "distance_sample": tuple(sorted(distances))})


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
    _check_both(correct)
    right = np.asarray(correct)
    units = list(groups) if groups is not None else [str(index) for index in range(len(right))]
    folds = list(StratifiedGroupKFold(_FOLDS).split(values, right, units))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    search = GridSearchCV(pipeline, {"logisticregression__C": _PENALTIES}, scoring="neg_log_loss", cv=folds)
    model = search.fit(values, right).best_estimator_
    return model, cross_val_predict(model, values, right, cv=folds, method="predict_proba")[:, 1]


def _check_both(correct: Sequence[bool]) -> None:
    kinds = [sum(correct), len(correct) - sum(correct)]
    if min(kinds) < _FOLDS:
        raise DataError(
            f"{kinds[0]} right and {kinds[1]} wrong answers; a profile needs at least {_FOLDS} of each kind."
        )


def _steps(probabilities: Any, correct: Sequence[bool]) -> tuple[tuple[float, float], ...]:
    """Fit isotonic regression; what n answers show is never surer than 1 - 1 / (n + 2)."""
    edge = 1.0 / (len(correct) + 2)
    fitted = IsotonicRegression(y_min=edge, y_max=1.0 - edge, out_of_bounds="clip").fit(probabilities, list(correct))
    return tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True))


def core_features() -> tuple[str, ...]:
    """Name the scores of the core."""
    return tuple(names_of("core"))


def head_features(score: Score) -> tuple[str, ...]:
    """Name everything that a head may use: scores, SemGrad in bands of layers, and components of hidden states."""
    count = len(score.layers)
    edges = [round(place * count / min(count, _BANDS)) for place in range(min(count, _BANDS) + 1)]
    bands = [f"layers.{low}" if high == low + 1 else f"layers.{low}:{high}" for low, high in pairwise(edges)]
    states = [f"states.{place}" for place in range(len(score.states))]
    return tuple(dict.fromkeys((*core_features(), *scalar_features(), *bands, *states)))


def blended_section(
    scores: Sequence[Score],
    correct: Sequence[bool],
    *,
    groups: Sequence[str],
    kinds: Sequence[str],
    kinds_from: KindsFrom,
    head: bool = True,
    seed: int = 0,
) -> Section:
    """Fit core and head, mixed as kinds that are left out allow; see `semgrad_guard.calibration.blend`.

    Args:
        scores: scores of answers.
        correct: whether each answer was right.
        groups: what each question is about; questions about the same are kept in one fold.
        kinds: the kind of each question.
        kinds_from: what the kinds are, for the record.
        head: give the head a share at all.
        seed: random seed of the folds and the intervals.

    Raises:
        DataError: there are too few answers of a kind to cross-validate.
    """
    _check_both(correct)
    core = core_features()
    features = head_features(scores[0]) if head else core
    values = np.array([feature_values(score, features) for score in scores])
    signs = np.array([-1.0 if known_score(name).direction == "uncertainty" else 1.0 for name in core])
    places = [features.index(name) for name in core]
    right = np.asarray(correct, dtype=bool)
    parts = Parts(values[:, places], signs, values if head else values[:, :0], right, groups, kinds)
    found = blend.blended(parts, shares=blend.SHARES if head else (0.0,), seed=seed)
    features, values = (features, values) if found.share else (core, values[:, places])
    logits = found.mixed(found.same)
    line = blend.levelled(blend.joined(found, features, core, values), logits, right)
    level = blend.levelled(blend.Linear(np.zeros(1), np.ones(1), np.ones(1), 0.0), logits, right)
    probabilities = expit(level.logits(logits[:, None]))
    return Section(
        features=features,
        lowest=tuple(values.min(0).tolist()),
        highest=tuple(values.max(0).tolist()),
        center=tuple(line.center.tolist()),
        scale=tuple(line.scale.tolist()),
        coefficients=tuple(line.coefficients.tolist()),
        intercept=line.intercept,
        steps=_steps(probabilities, correct) if len(correct) >= _ENOUGH_FOR_STEPS else (),
        questions=len(correct),
        evidence=_evidence(found, parts, kinds_from, seed),
        threshold=0.5,
        threshold_rule="by default",
    )


def _evidence(found: blend.Blend, parts: Parts, kinds_from: KindsFrom, seed: int) -> Evidence:
    """Say how well the blend, and its core alone, tell right answers from wrong ones that they were not fitted on."""

    def column(logits: Any, measure: Any) -> Column | None:
        if (value := measure(logits, parts)) is None:
            return None
        low, high = blend.auroc_interval(logits, parts, measure, seed=seed) or (None, None)
        return Column(auroc=value, low=low, high=high)

    same, unseen = (blend.mix(logits, found.share) for logits in (found.same, found.unseen))
    whole = column(same, blend.over_all)
    return Evidence(
        share=found.share,
        same=whole or Column(auroc=0.5),
        unseen=column(unseen, blend.across_kinds),
        core_same=column(found.same[:, 0], blend.over_all),
        core_unseen=column(found.unseen[:, 0], blend.across_kinds),
        kinds=len(blend.telling_kinds(parts, unseen)),
        kinds_from=kinds_from,
    )


def single_evidence(parts: Parts, kinds_from: KindsFrom, seed: int) -> Evidence:
    """Say how well one score tells right answers from wrong ones, given as the only feature of a core."""
    logits = parts.core[:, :1].repeat(2, axis=1)
    line = blend.Linear(np.zeros(1), np.ones(1), np.ones(1), 0.0)
    return _evidence(blend.Blend(line, line, 0.0, logits, logits), parts, kinds_from, seed).model_copy(
        update={"core_same": None, "core_unseen": None}
    )


def components_for(labels: int) -> int:
    """Give how many components of hidden states, at each place and layer, so many labels carry."""
    return min(_MOST_COMPONENTS, max(2, labels // _LABELS_PER_COMPONENT))


def before_answers(states: NDArray[Any]) -> NDArray[np.float64]:
    """Give a few components of the hidden states before the answers, to sort questions by, [n, K].

    Args:
        states: [n, 3, layers, D]; the first of the three places counts.
    """
    first = states[:, :1].repeat(PLACES, axis=1)
    return StateReading.fit(first, range(first.shape[2]), _TO_SORT_BY).project(first)


def kinds_of(strata: Sequence[str], states: Any, correct: Sequence[bool], seed: int) -> tuple[list[str], KindsFrom]:
    """Give the kind of each question: its stratum where these tell kinds apart, else its cluster of hidden states.

    Args:
        strata: as the data names them, "" where it does not.
        states: components of hidden states at the prompt's last token, [n, K]; None without.
        correct: whether each answer is right.
        seed: random seed of the clusters.
    """
    if blend.can_leave_out(strata, correct):
        return list(strata), "strata"
    if states is not None and states.shape[1] and len(states) >= 2 * _PER_CLUSTER:
        count = min(_MOST_CLUSTERS, len(states) // _PER_CLUSTER)
        clusters = KMeans(count, n_init=4, random_state=seed).fit_predict(states)
        return [str(cluster) for cluster in clusters], "clusters"
    return [""] * len(strata), "none"


def threshold_passing(confidences: Sequence[float], share: float) -> float:
    """Give the threshold that at most a share of these confidences, those of wrong answers, reach."""
    ordered = np.sort(np.asarray(confidences))[::-1]
    allowed = int(np.floor(share * len(ordered)))
    return float(np.nextafter(ordered[allowed], 2.0)) if allowed < len(ordered) else 0.0
