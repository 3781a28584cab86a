"""Fitting a profile's section: logistic regression on log scores against right and wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from semgrad_guard.calibration.profile import Section, feature_values
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import Score

SCALARS = ("nll", "mean_nll", "mean_entropy", "max_entropy", "paragrad", "exgrad", "length")


def fused_features(layers: int) -> tuple[str, ...]:
    """Name the features of the fused score: the pass's scalars and SemGrad layer by layer."""
    return (*SCALARS, *(f"layers.{index}" for index in range(layers)))


def fit_section(
    scores: Sequence[Score], correct: Sequence[bool], features: tuple[str, ...], *, penalty: float = 1.0
) -> Section:
    """Fit P(right | scores) by logistic regression on standardised logs.

    Args:
        scores: scores of answers.
        correct: whether each answer was right.
        features: names as in `feature_values`; one gives Platt scaling, several a fused score.
        penalty: inverse strength of the l2 penalty.

    Raises:
        ConfigurationError: all answers are right, or all wrong; nothing can be told apart.
    """
    if len(set(correct)) < 2:
        raise ConfigurationError(
            f"All {len(correct)} answers are {'right' if any(correct) else 'wrong'}; a profile needs both kinds."
        )
    values = np.array([feature_values(score, features) for score in scores])
    center, scale = values.mean(0), np.maximum(values.std(0), 1e-9)
    model = LogisticRegression(C=penalty, max_iter=5000).fit((values - center) / scale, list(correct))
    return Section(
        features=features,
        lowest=tuple(values.min(0).tolist()),
        highest=tuple(values.max(0).tolist()),
        center=tuple(center.tolist()),
        scale=tuple(scale.tolist()),
        coefficients=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
        questions=len(correct),
    )


def threshold_passing(confidences: Sequence[float], share: float) -> float:
    """Give the threshold that at most a share of these confidences, those of wrong answers, reach."""
    ordered = np.sort(np.asarray(confidences))[::-1]
    allowed = int(np.floor(share * len(ordered)))
    return float(np.nextafter(ordered[allowed], 2.0)) if allowed < len(ordered) else 0.0
