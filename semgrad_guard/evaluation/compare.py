"""From results to a comparison: every method's uncertainty, and how well each tells right from wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.methods import Method
from semgrad_guard.evaluation.run import Result

_COVERAGES = (0.95, 0.9, 0.8, 0.7)
_MOST = np.finfo(np.float64).max


def uncertainties(results: Sequence[Result], methods: Iterable[Method]) -> dict[str, metrics.Numbers]:
    """Give the uncertainty of every answer by every method, by shown name; what failed is most uncertain."""
    values = {method.shown: np.array([method.value(result) for result in results], float) for method in methods}
    return {name: np.where(np.isfinite(column), column, _MOST) for name, column in values.items()}


def compare(
    results: Sequence[Result],
    methods: Sequence[Method],
    profile: Profile | None,
    *,
    repeats: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the methods on the results that have a label.

    Figures that cannot be had are None, and `missing` says why. Intervals are 95 %, by resampling groups of questions.
    `overhead` is the time of generating with a method over that of generating alone; at the top that of the one pass.
    """
    labelled = [result for result in results if result.correct is not None]
    correct = np.array([bool(result.correct) for result in labelled])
    summary: dict[str, Any] = {
        "questions": len(results),
        "labelled": len(labelled),
        "failed": sum(result.score is None for result in results),
        "accuracy": float(correct.mean()) if labelled else None,
        "overhead": _overhead(results, ("scoring",)),
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
    for method, (name, doubt) in zip(methods, uncertainties(labelled, methods).items(), strict=True):
        low, high = metrics.bootstrap(metrics.auroc, doubt, correct, groups=groups, repeats=repeats, seed=seed)
        summary["methods"][name] = {
            "auroc": metrics.auroc(doubt, correct),
            "auroc_interval": [low, high],
            "auc_pr": metrics.auc_pr(doubt, correct),
            "prr": metrics.prr(doubt, correct),
            "aurc": metrics.aurc(doubt, correct),
            "excess_aurc": metrics.excess_aurc(doubt, correct),
            **{f"accuracy_at_{share:.0%}": metrics.selective_accuracy(doubt, correct, share) for share in _COVERAGES},
            "overhead": _overhead(results, method.spends),
            "failed": int((doubt == _MOST).sum()),
        }
    if profile is not None:
        summary["confidence"] = _confidence(labelled, correct, profile)
    return summary


def difference(
    results: Sequence[Result], first: Method, second: Method, *, repeats: int = 1000
) -> tuple[float, float, float]:
    """Give by how much the AUROC of one method is above another's, with a paired 95 % interval."""
    labelled = [result for result in results if result.correct is not None]
    correct = np.array([bool(result.correct) for result in labelled])
    doubts = uncertainties(labelled, (first, second))
    ours, theirs = doubts[first.shown], doubts[second.shown]
    low, high = metrics.bootstrap(
        _gain, ours, theirs, correct, groups=[result.about for result in labelled], repeats=repeats
    )
    return _gain(ours, theirs, correct), low, high


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


def _overhead(results: Sequence[Result], spends: Sequence[str]) -> dict[str, float] | None:
    """Give how many times as long an answer took as generating it, where all that was to be done succeeded."""
    timed = [result.seconds for result in results if {"generating", *spends} <= result.seconds.keys()]
    if not timed:
        return None
    times = [1.0 + sum(seconds[name] for name in spends) / seconds["generating"] for seconds in timed]
    middle, late = np.quantile(times, [0.5, 0.95])
    return {"median": float(middle), "p95": float(late)}
