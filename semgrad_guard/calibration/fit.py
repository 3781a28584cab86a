"""Fitting a profile's section: logistic regression on log scores against right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

from semgrad_guard.calibration.profile import Section, feature_values
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import Score

_FOLDS = 5
_QUANTILES = 101
_PENALTIES = (0.1, 1.0, 10.0, 100.0)  # inverse strengths of the l2 penalty
SCALARS = ("nll", "mean_nll", "mean_entropy", "max_entropy", "paragrad", "exgrad", "length")


def fused_features(layers: int) -> tuple[str, ...]:
    """Name the features of the fused score: the pass's scalars and SemGrad layer by layer."""
    return (*SCALARS, *(f"layers.{index}" for index in range(layers)))


def fit_section(
    scores: Sequence[Score],
    correct: Sequence[bool],
    features: tuple[str, ...],
    *,
    groups: Sequence[str] | None = None,
    threshold: float = 0.5,
    threshold_rule: str = "by default",
) -> Section:
    """Fit P(right | scores) by logistic regression on standardised logs, the penalty chosen by cross-validation.

    Args:
        scores: scores of answers.
        correct: whether each answer was right.
        features: names as in `feature_values`; one gives Platt scaling, several a fused score.
        groups: what each question is about; questions about the same are kept in one fold. None: each by itself.
        threshold: least confidence that passes by default.
        threshold_rule: how it was chosen, in words.

    Raises:
        ConfigurationError: all answers are right, or all wrong, or there are too few of a kind to cross-validate.
    """
    kinds = [sum(correct), len(correct) - sum(correct)]
    if min(kinds) < _FOLDS:
        raise ConfigurationError(
            f"{kinds[0]} right and {kinds[1]} wrong answers; a profile needs at least {_FOLDS} of each kind."
        )
    values = np.array([feature_values(score, features) for score in scores])
    center, scale = values.mean(0), np.maximum(values.std(0), 1e-9)
    folds = _folds(correct, groups)
    search = GridSearchCV(LogisticRegression(max_iter=5000), {"C": _PENALTIES}, scoring="neg_log_loss", cv=folds)
    model = search.fit((values - center) / scale, list(correct)).best_estimator_
    section = Section(
        features=features,
        lowest=tuple(values.min(0).tolist()),
        highest=tuple(values.max(0).tolist()),
        center=tuple(center.tolist()),
        scale=tuple(scale.tolist()),
        coefficients=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
        questions=len(correct),
        threshold=threshold,
        threshold_rule=threshold_rule,
    )
    return with_quantiles(section, scores)


def with_quantiles(section: Section, scores: Sequence[Score]) -> Section:
    """Remember how the confidences of these answers are spread, for a later look at drift."""
    found = np.quantile([section.confidence(score) for score in scores], np.linspace(0, 1, _QUANTILES))
    return section.model_copy(update={"quantiles": tuple(found.tolist())})


def out_of_fold(
    scores: Sequence[Score], correct: Sequence[bool], features: tuple[str, ...], groups: Sequence[str]
) -> list[float]:
    """Give each answer the confidence of a regression that was fitted without its group."""
    values = np.array([feature_values(score, features) for score in scores])
    confidences = np.zeros(len(correct))
    for inside, outside in _folds(correct, groups):
        center, scale = values[inside].mean(0), np.maximum(values[inside].std(0), 1e-9)
        model = LogisticRegression(max_iter=5000).fit((values[inside] - center) / scale, np.asarray(correct)[inside])
        confidences[outside] = model.predict_proba((values[outside] - center) / scale)[:, 1]
    found: list[float] = confidences.tolist()
    return found


def _folds(correct: Sequence[bool], groups: Sequence[str] | None) -> list[Any]:
    own = list(groups) if groups is not None else [str(index) for index in range(len(correct))]
    return list(StratifiedGroupKFold(_FOLDS).split(np.zeros(len(correct)), list(correct), own))


def threshold_passing(confidences: Sequence[float], share: float) -> float:
    """Give the threshold that at most a share of these confidences, those of wrong answers, reach."""
    ordered = np.sort(np.asarray(confidences))[::-1]
    allowed = int(np.floor(share * len(ordered)))
    return float(np.nextafter(ordered[allowed], 2.0)) if allowed < len(ordered) else 0.0
