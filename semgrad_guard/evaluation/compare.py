"""From results to a comparison: every method's uncertainty, and how well each tells right from wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.run import Result
from semgrad_guard.evaluation.sampling import inconsistency, semantic_entropy

_COVERAGES = (0.95, 0.9, 0.8, 0.7)
_SCORES = {
    "SemGrad": "semgrad",
    "HybridGrad": "hybridgrad",
    "ParaGrad": "paragrad",
    "ExGrad": "exgrad",
    "G-NLL": "nll",
    "LN-NLL": "mean_nll",
    "mean entropy": "mean_entropy",
    "max entropy": "max_entropy",
    "length": "length",
}
_SAMPLED: dict[str, Callable[[Result], float]] = {
    "self-consistency": lambda result: inconsistency(result.answer, result.samples),
    "semantic entropy": lambda result: semantic_entropy(result.samples),
    "P(True)": lambda result: math.nan if result.p_true is None else 1.0 - result.p_true,
}


def uncertainties(results: Sequence[Result], profile: Profile | None) -> dict[str, metrics.Numbers]:
    """Give the uncertainty of every answer by every method that the results allow; what failed is most uncertain."""
    found: dict[str, list[float]] = {}
    if profile is not None:
        section = profile.answer
        found[f"confidence ({profile.method})"] = [
            math.nan if result.score is None else -section.confidence(result.score) for result in results
        ]
    for name, field in _SCORES.items():
        values = [None if result.score is None else getattr(result.score, field) for result in results]
        found[name] = [math.nan if value is None else float(value) for value in values]
    if all(result.samples for result in results):
        found |= {name: [value(result) for result in results] for name, value in _SAMPLED.items()}
    return {
        name: np.where(np.isfinite(values), values, np.finfo(np.float64).max)
        for name, values in ((name, np.array(column)) for name, column in found.items())
    }


def compare(
    results: Sequence[Result], profile: Profile | None, *, repeats: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compare the methods on the results that have a label.

    Figures that cannot be had are None, and `missing` says why. Intervals are 95 %, by resampling groups of questions.
    """
    labelled = [result for result in results if result.correct is not None]
    correct = np.array([bool(result.correct) for result in labelled])
    summary: dict[str, Any] = {
        "questions": len(results),
        "labelled": len(labelled),
        "failed": sum(result.score is None for result in results),
        "accuracy": float(correct.mean()) if labelled else None,
        "overhead": _overhead(results),
        "missing": "",
        "methods": {},
    }
    if len(np.unique(correct)) < 2:
        kind = (
            "no answer has a label"
            if not labelled
            else "all answers are right"
            if correct[0]
            else "all answers are wrong"
        )
        return summary | {"missing": f"{kind}, so that nothing can be told apart"}
    groups = [result.about for result in labelled]
    for name, doubt in uncertainties(labelled, profile).items():
        low, high = metrics.bootstrap(metrics.auroc, doubt, correct, groups=groups, repeats=repeats, seed=seed)
        summary["methods"][name] = {
            "auroc": metrics.auroc(doubt, correct),
            "auroc_interval": [low, high],
            "auc_pr": metrics.auc_pr(doubt, correct),
            "prr": metrics.prr(doubt, correct),
            "aurc": metrics.aurc(doubt, correct),
            "excess_aurc": metrics.excess_aurc(doubt, correct),
            **{f"accuracy_at_{share:.0%}": metrics.selective_accuracy(doubt, correct, share) for share in _COVERAGES},
        }
    if profile is not None:
        summary["confidence"] = _confidence(labelled, correct, profile)
    return summary


def difference(
    results: Sequence[Result], first: str, second: str, profile: Profile | None, *, repeats: int = 1000
) -> tuple[float, float, float]:
    """Give by how much the AUROC of one method is above another's, with a paired 95 % interval."""
    labelled = [result for result in results if result.correct is not None]
    correct = np.array([bool(result.correct) for result in labelled])
    doubts = uncertainties(labelled, profile)
    low, high = metrics.bootstrap(
        _gain, doubts[first], doubts[second], correct, groups=[result.about for result in labelled], repeats=repeats
    )
    return _gain(doubts[first], doubts[second], correct), low, high


def _gain(first: metrics.Numbers, second: metrics.Numbers, correct: Any) -> float:
    return metrics.auroc(first, correct) - metrics.auroc(second, correct)


def _confidence(labelled: Sequence[Result], correct: Any, profile: Profile) -> dict[str, Any]:
    section = profile.answer
    values = np.array([0.0 if result.score is None else section.confidence(result.score) for result in labelled])
    passing = values >= section.threshold if section.threshold is not None else np.zeros(len(values), dtype=bool)
    return {
        "brier": metrics.brier(values, correct),
        "ece_15_bins": metrics.calibration_error(values, correct),
        "smooth_ece": metrics.smooth_calibration_error(values, correct),
        "threshold": section.threshold,
        "coverage": float(passing.mean()),
        "risk": float((~correct[passing]).mean()) if passing.any() else None,
        "guarantee": None if section.guarantee is None else section.guarantee.model_dump(),
    }


def _overhead(results: Sequence[Result]) -> dict[str, float] | None:
    shares = [result.scoring / result.generating for result in results if result.score is not None]
    if not shares:
        return None
    middle, late = np.quantile(shares, [0.5, 0.95])
    return {"median": float(middle), "p95": float(late)}
