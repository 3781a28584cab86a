"""Fitting a profile's section: logistic regression on log scores against right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from semgrad_guard.calibration.needs import FEWEST
from semgrad_guard.calibration.profile import Section, feature_values
from semgrad_guard.errors import DataError
from semgrad_guard.records import Score

_FOLDS = FEWEST
_QUANTILES = 101
_PENALTIES = (0.1, 1.0, 10.0, 100.0)  # inverse strengths of the l2 penalty
_ENOUGH_FOR_STEPS = 1000  # labels from which on isotonic regression beats the two parameters of Platt scaling
WITHOUT_GRADIENTS = ("nll", "mean_nll", "mean_entropy", "max_entropy", "length")
SCALARS = (*WITHOUT_GRADIENTS, "paragrad", "exgrad")


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
    """Fit P(right | scores) by logistic regression on standardised logs, the penalty chosen by cross-validation.

    From a thousand labels on, isotonic regression on out-of-fold probabilities corrects what is left of its shape.

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
    """Remember how the confidences of these answers are spread, for a later look at drift."""
    found = np.quantile([section.confidence(score) for score in scores], np.linspace(0, 1, _QUANTILES))
    return section.model_copy(update={"quantiles": tuple(found.tolist()), "spread_of": len(scores)})


def out_of_fold(
    scores: Sequence[Score], correct: Sequence[bool], features: tuple[str, ...], groups: Sequence[str]
) -> list[float]:
    """Give each answer the confidence of a regression that was fitted without its group.

    Raises:
        DataError: all answers are right, or all wrong, or there are too few of a kind to cross-validate.
    """
    found: list[float] = _regression(np.array([feature_values(s, features) for s in scores]), correct, groups)[
        1
    ].tolist()
    return found


def _regression(values: Any, correct: Sequence[bool], groups: Sequence[str] | None) -> tuple[Any, Any]:
    """Fit on everything, and give everything its probability by fits that left its group out."""
    kinds = [sum(correct), len(correct) - sum(correct)]
    if min(kinds) < _FOLDS:
        raise DataError(
            f"{kinds[0]} right and {kinds[1]} wrong answers; a profile needs at least {_FOLDS} of each kind."
        )
    right = np.asarray(correct)
    own = list(groups) if groups is not None else [str(index) for index in range(len(right))]
    folds = list(StratifiedGroupKFold(_FOLDS).split(values, right, own))
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
