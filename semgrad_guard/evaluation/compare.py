"""The methods of an evaluation: their names, their values in a result, their time, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.run import Result
from semgrad_guard.evaluation.sampling import inconsistency, same_words, semantic_entropy
from semgrad_guard.scoring.registry import ScoreKind, known_scores


@dataclass(frozen=True)
class Method:
    """A measure of uncertainty; `shown` is its name in reports.

    `value` reads it from a result: *higher = more uncertain*, None or not finite where it failed. `spends` names those
    of a result's seconds that it takes on top of generating. `ours` marks the scores of this package's own method.
    Curves are drawn of the methods with `drawn`: more could not be told apart.
    """

    shown: str
    value: Callable[[Result], float | None]
    spends: tuple[str, ...] = ("scoring",)
    ours: bool = False
    drawn: bool = False


def _score(kind: ScoreKind, result: Result) -> float | None:
    return None if result.score is None else kind.uncertainty(result.score)


def _confidence(profile: Profile, result: Result) -> float | None:
    return None if result.score is None else -profile.answer.confidence(result.score)


def _polygraph(name: str, result: Result) -> float | None:
    return result.polygraph.get(name)


_OURS = ("semgrad", "semgrad_upper")
_DRAWN = ("semgrad", "nll", "mean_entropy")


def _one_pass() -> dict[str, Method]:
    """Give the scores that are known by name, as methods."""
    return {
        kind.option: Method(
            kind.title,
            partial(_score, kind),
            spends=() if kind.name == "length" else ("scoring",),
            ours=kind.name in _OURS,
            drawn=kind.name in _DRAWN,
        )
        for kind in known_scores()
    }


def _words(result: Result) -> tuple[tuple[str, ...], ...]:
    return same_words((result.answer, *result.samples))


_SAMPLING = {
    "self-consistency": Method(
        "self-consistency (same words)", lambda result: inconsistency(_words(result)), ("sampling",), drawn=True
    ),
    "semantic-entropy": Method(
        "semantic entropy (same words)", lambda result: semantic_entropy(_words(result)), ("sampling",), drawn=True
    ),
    "p-true": Method("P(True)", lambda result: None if result.p_true is None else 1.0 - result.p_true, ("p-true",)),
}
ENTAILMENT = {
    "self-consistency-nli": Method(
        "self-consistency (entailment)", lambda result: inconsistency(result.meanings), ("sampling", "entailment")
    ),
    "semantic-entropy-nli": Method(
        "semantic entropy (entailment)", lambda result: semantic_entropy(result.meanings), ("sampling", "entailment")
    ),
}
POLYGRAPH = {
    "degmat": Method("Deg", partial(_polygraph, "degmat"), ("sampling", "degmat")),
    "eigenscore": Method("EigenScore", partial(_polygraph, "eigenscore"), ("sampling", "reading", "eigenscore")),
    "sar": Method("SAR", partial(_polygraph, "sar"), ("sampling", "reading", "sar")),
    "semantic-density": Method(
        "semantic density", partial(_polygraph, "semantic-density"), ("sampling", "reading", "semantic-density")
    ),
    "ln-pe": Method("LN-PE", partial(_polygraph, "ln-pe"), ("sampling", "reading", "ln-pe")),
}


def choose(
    names: Sequence[str], profile: Profile | None, *, sampling: bool = False, entailment: bool = False
) -> dict[str, Method]:
    """Look methods up by name; without names, all of the one pass, and with `sampling` those that ask again.

    With `entailment` too, these are also those that compare answers with an entailment classifier.

    Raises:
        ConfigurationError: there is no method of a name, or "confidence" is asked for without a profile.
    """
    once = _one_pass()
    if profile is not None:
        shown = f"confidence ({profile.method})"
        once = {"confidence": Method(shown, partial(_confidence, profile), ours=True, drawn=True), **once}
    if not names:
        unasked = {kind.option for kind in known_scores() if "report" not in kind.uses}
        once = {name: method for name, method in once.items() if name not in unasked}
        return {**once, **(_SAMPLING if sampling else {}), **(ENTAILMENT if sampling and entailment else {})}
    known = {**once, **_SAMPLING, **ENTAILMENT, **POLYGRAPH}
    for name in names:
        if name == "confidence" and profile is None:
            raise ConfigurationError("methods='confidence': there is no confidence without a profile. Give one.")
        if name not in known:
            raise ConfigurationError(f"methods={name!r}: expected some of {', '.join(known)}, with commas between.")
    return {name: known[name] for name in names}


_COVERAGES = (0.95, 0.9, 0.8, 0.7)
_WORST = 10
_MOST = np.finfo(np.float64).max


def uncertainties(results: Sequence[Result], methods: Iterable[Method]) -> dict[str, metrics.Numbers]:
    """Give the uncertainty of every answer by every method, by shown name; what failed is most uncertain."""
    values = {method.shown: np.array([method.value(result) for result in results], float) for method in methods}
    return {name: np.where(np.isfinite(column), column, _MOST) for name, column in values.items()}


def surest_errors(results: Sequence[Result], method: Method) -> list[Result]:
    """List the wrong answers that a method is surest of, the surest first."""
    wrong = [result for result in results if result.correct is False and result.score is not None]
    if not wrong:
        return []
    values = uncertainties(wrong, [method])[method.shown]
    return [wrong[place] for place in np.argsort(values, kind="stable")[:_WORST]]


def compare(
    results: Sequence[Result],
    methods: Sequence[Method],
    profile: Profile | None,
    *,
    repeats: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the methods on the results that have a label.

    A figure that does not exist is None, and `missing` says why. Intervals are 95 %, by resampling groups of questions.
    `differences` say by how much the AUROC of our scores lies above that of each other method, paired. `overhead` is
    the time of generating with a method over that of generating alone; at the top that of the one pass.
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
    by_method = uncertainties(labelled, methods)
    drawn = _aurocs(by_method, correct, [result.about for result in labelled], repeats, seed)
    for method, (name, values) in zip(methods, by_method.items(), strict=True):
        summary["methods"][name] = {
            "auroc": metrics.auroc(values, correct),
            "auroc_interval": metrics.interval(drawn[name]),
            "auc_pr": metrics.auc_pr(values, correct),
            "prr": metrics.prr(values, correct),
            "aurc": metrics.aurc(values, correct),
            "excess_aurc": metrics.excess_aurc(values, correct),
            **{f"accuracy_at_{share:.0%}": metrics.selective_accuracy(values, correct, share) for share in _COVERAGES},
            "overhead": _overhead(results, method.spends),
            "failed": int((values == _MOST).sum()),
        }
    auroc = {name: row["auroc"] for name, row in summary["methods"].items()}
    summary["differences"] = [
        {
            "ours": ours,
            "other": other,
            "auroc": auroc[ours] - auroc[other],
            "interval": metrics.interval([one - two for one, two in zip(drawn[ours], drawn[other], strict=True)]),
        }
        for ours in [method.shown for method in methods if method.ours]
        for other in auroc
        if other != ours
    ]
    summary["confidence"] = None if profile is None else promise_figures(labelled, profile)
    return summary


def _aurocs(
    by_method: Mapping[str, metrics.Numbers], correct: Any, groups: Sequence[str], repeats: int, seed: int
) -> dict[str, list[float]]:
    """Give every method's AUROC on the same resamples; those that are all right or all wrong are left out."""
    aurocs: dict[str, list[float]] = {name: [] for name in by_method}
    for drawn in metrics.resamples(groups, repeats=repeats, seed=seed):
        if len(np.unique(correct[drawn])) > 1:
            for name, values in by_method.items():
                aurocs[name].append(metrics.auroc(values[drawn], correct[drawn]))
    return aurocs


def promise_figures(results: Sequence[Result], profile: Profile) -> dict[str, Any]:
    """Measure a profile: how good its probabilities are, how much passes its threshold, and how much of that is wrong.

    Where confidence is only an ordering, there are no probabilities, and their figures are None.
    """
    labelled = [result for result in results if result.correct is not None]
    correct, section = np.array([bool(result.correct) for result in labelled]), profile.answer
    values = np.array([0.0 if result.score is None else section.confidence(result.score) for result in labelled])
    passing = values >= section.threshold if section.threshold is not None else np.zeros(len(values), dtype=bool)
    promise = section.guarantee
    coverage, risk = metrics.risk_coverage(-values, correct)
    figures = {
        "brier": metrics.brier,
        "ece_15_bins": metrics.calibration_error,
        "smooth_ece": metrics.smooth_calibration_error,
    }
    return {
        "calibrated": profile.calibrated,
        **{name: figure(values, correct) if profile.calibrated else None for name, figure in figures.items()},
        "threshold": section.threshold,
        "coverage": float(passing.mean()),
        "risk": float((~correct[passing]).mean()) if passing.any() else None,
        "guarantee": None if promise is None else promise.model_dump(exclude={"threshold", "seal"}),
        "void": section.void,
        # What the same confidence would let through if the errors here were known.
        "best_coverage": None if promise is None else float(np.max(coverage, initial=0.0, where=risk <= promise.risk)),
    }


def _overhead(results: Sequence[Result], spends: Sequence[str]) -> dict[str, float] | None:
    """Give the time of an answer over that of generating it alone, where all the work succeeded."""
    timed = [result.seconds for result in results if {"generating", *spends} <= result.seconds.keys()]
    if not timed:
        return None
    times = [1.0 + sum(seconds[name] for name in spends) / seconds["generating"] for seconds in timed]
    middle, late = np.quantile(times, [0.5, 0.95])
    return {"median": float(middle), "p95": float(late)}
