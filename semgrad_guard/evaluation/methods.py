"""The methods that an evaluation compares: how each is called, how it is read from a result, and what it spends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from semgrad_guard.calibration.profile import Profile
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.evaluation.run import Result
from semgrad_guard.evaluation.sampling import inconsistency, semantic_entropy


@dataclass(frozen=True)
class Method:
    """A way to say how uncertain an answer is; `shown` is its name in reports.

    `value` reads it from a result: *higher = more uncertain*, None or not finite where it failed. `spends` names those
    of a result's seconds that it takes on top of generating; `ours` is what this package is there for, and
    `drawn` what curves are drawn of: all of them could not be told apart.
    """

    shown: str
    value: Callable[[Result], float | None]
    spends: tuple[str, ...] = ("scoring",)
    ours: bool = False
    drawn: bool = False


def _score(field: str, result: Result) -> float | None:
    value = None if result.score is None else getattr(result.score, field)
    return None if value is None else float(value)


def _upper_half(result: Result) -> float | None:
    """Give SemGrad over the paper's layers where it was taken at all of them."""
    score = result.score
    if score is None or score.span[0] != 0:
        return _score("semgrad", result)
    upper = score.layers[len(score.layers) // 2 :]
    return sum(upper) / len(upper)


def _confidence(profile: Profile, result: Result) -> float | None:
    return None if result.score is None else -profile.answer.confidence(result.score)


def _polygraph(name: str, result: Result) -> float | None:
    return result.polygraph.get(name)


_ONE_PASS = {
    "semgrad": Method("SemGrad", partial(_score, "semgrad"), ours=True, drawn=True),
    "semgrad-upper": Method("SemGrad, upper half", _upper_half, ours=True),
    "hybridgrad": Method("HybridGrad", partial(_score, "hybridgrad")),
    "paragrad": Method("ParaGrad", partial(_score, "paragrad")),
    "exgrad": Method("ExGrad", partial(_score, "exgrad")),
    "g-nll": Method("G-NLL", partial(_score, "nll"), drawn=True),
    "ln-nll": Method("LN-NLL", partial(_score, "mean_nll")),
    "mean-entropy": Method("mean entropy", partial(_score, "mean_entropy"), drawn=True),
    "max-entropy": Method("max entropy", partial(_score, "max_entropy")),
    "length": Method("length", partial(_score, "length"), spends=()),
}
_SAMPLING = {
    "self-consistency": Method(
        "self-consistency", lambda result: inconsistency(result.answer, result.samples), ("sampling",), drawn=True
    ),
    "semantic-entropy": Method(
        "semantic entropy", lambda result: semantic_entropy(result.samples), ("sampling",), drawn=True
    ),
    "p-true": Method("P(True)", lambda result: None if result.p_true is None else 1.0 - result.p_true, ("p-true",)),
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


def choose(names: Sequence[str], profile: Profile | None, *, sampling: bool = False) -> dict[str, Method]:
    """Look methods up by name; without names, all that the one pass gives, and with `sampling` those that ask again.

    Raises:
        ConfigurationError: there is no method of a name, or "confidence" is asked for without a profile.
    """
    once = dict(_ONE_PASS)
    if profile is not None:
        shown = f"confidence ({profile.method})"
        once = {"confidence": Method(shown, partial(_confidence, profile), ours=True, drawn=True), **once}
    if not names:
        return {**once, **(_SAMPLING if sampling else {})}
    known = {**once, **_SAMPLING, **POLYGRAPH}
    for name in names:
        if name == "confidence" and profile is None:
            raise ConfigurationError("methods='confidence': there is no confidence without a profile. Give one.")
        if name not in known:
            raise ConfigurationError(f"methods={name!r}: expected some of {', '.join(known)}, with commas between.")
    return {name: known[name] for name in names}
