"""The scores that the package knows by name. Thresholds, calibration, evaluation and help texts read this list.

A new score is one entry and its computation:

    register_score(ScoreKind("top_layer", "SemGrad at the topmost layer.", read=lambda score: score.layers[-1]))

Then `SemGradGuard(..., score_threshold=, method="top_layer")`, calibration and evaluation take it by its name, and a
profile may have it as a feature. The list belongs to one process: register a score before its profile is read.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from semgrad_guard.errors import ConfigurationError, described
from semgrad_guard.records import Score, as_number

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Direction = Literal["uncertainty", "certainty"]
Use = Literal["alone", "core", "fused", "report"]


@dataclass(frozen=True)
class ScoreKind:
    """A score by its name: its computation, its direction, its uses, and a line of help.

    `read` takes it from a `Score` and gives None where it was not computed. `measure` computes it in the pass instead,
    from log p(y_t) and the entropies w_t of the response's tokens, both [T] in float64; `Score.more` keeps it. With
    neither, it is the field of that name. Values are >= 0, since calibration takes their logarithms. `direction` says
    what a larger value means.

    Of `uses`, "alone" allows a threshold on it and a confidence made from it alone, "core" makes it a feature of the
    core of a confidence, where its coefficient keeps the sign of its direction, "fused" one of the fused score and of a
    head, and "report" lists it in every evaluation.
    `gradient` marks what is taken from gradients. `title` is the name in reports, and `option` that of the evaluation's
    methods.
    """

    name: str
    help: str
    read: Callable[[Score], float | None] | None = None
    measure: Callable[[Tensor, Tensor], float] | None = None
    direction: Direction = "uncertainty"
    uses: tuple[Use, ...] = ("alone", "report")
    gradient: bool = False
    title: str = ""
    option: str = ""

    def __post_init__(self) -> None:
        """Check the name, and fill in what follows from it.

        Raises:
            ConfigurationError: the name is none, or there are two computations.
        """
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ConfigurationError(f"ScoreKind(name={self.name!r}): expected small letters, digits and underscores.")
        if self.read is not None and self.measure is not None:
            raise ConfigurationError(f"ScoreKind({self.name!r}): expected read or measure, not both.")
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))
        object.__setattr__(self, "option", self.option or self.name.replace("_", "-"))

    def value(self, score: Score) -> float | None:
        """Read the score off; None where it was not computed, NaN where that fails."""
        if self.read is not None:
            value = _attempt(self.name, partial(self.read, score))
        elif self.name in Score.model_fields:
            value = getattr(score, self.name)
        elif self.name in score.more:
            value = math.nan if score.more[self.name] is None else score.more[self.name]
        else:
            value = None
        return None if value is None else float(value)

    def uncertainty(self, score: Score) -> float | None:
        """Give the score so that a larger value means more uncertainty; None where it was not computed."""
        value = self.value(score)
        return -value if value is not None and self.direction == "certainty" else value

    def reaches(self, value: float, threshold: float) -> bool:
        """Tell whether a value is at least as sure as a threshold; NaN is not."""
        return value <= threshold if self.direction == "uncertainty" else value >= threshold


_SCORES: dict[str, ScoreKind] = {}
measured: tuple[ScoreKind, ...] = ()  # those that a pass computes
_RESERVED = ("auto", "core", "blend", "fused", "confidence")
_LEAST = 1e-30  # scores are >= 0; a logarithm needs more


def register_score(kind: ScoreKind) -> None:
    """Add a score to those that are known by name in this process.

    Raises:
        ConfigurationError: the name or the option is taken.
    """
    options = {known.option for known in _SCORES.values()}
    if kind.name in _SCORES or kind.name in _RESERVED or kind.option in options:
        raise ConfigurationError(f"There is a score {kind.name!r} already; expected another name.")
    if kind.read is None and kind.measure is None and kind.name not in Score.model_fields:
        raise ConfigurationError(f"ScoreKind({kind.name!r}): expected read or measure, since Score has no such field.")
    if kind.name in Score.model_fields and (kind.read is not None or kind.measure is not None):
        raise ConfigurationError(f"ScoreKind({kind.name!r}): Score has a field of that name; expected another name.")
    _SCORES[kind.name] = kind
    _note_measured()


def unregister_score(name: str) -> None:
    """Take a score off the list."""
    _SCORES.pop(name, None)
    _note_measured()


def _note_measured() -> None:
    global measured
    measured = tuple(kind for kind in _SCORES.values() if kind.measure is not None)


def known_scores(use: Use | None = None) -> tuple[ScoreKind, ...]:
    """List the scores that are known by name, or those of one use, in the order of their registration."""
    return tuple(kind for kind in list(_SCORES.values()) if use is None or use in kind.uses)


def names_of(use: Use | None = None) -> list[str]:
    """Name the scores that are known, or those of one use."""
    return [kind.name for kind in known_scores(use)]


def known_score(name: str) -> ScoreKind:
    """Give the score of a name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in _SCORES:
        raise ConfigurationError(
            f"There is no score {name!r}. Expected one of {', '.join(_SCORES)}; register_score adds one of your own."
        )
    return _SCORES[name]


def measured_scores(log_probs: Tensor, entropies: Tensor) -> dict[str, float | None]:
    """Compute the scores that have a `measure`; one whose computation fails, or is not finite, is None."""
    values = {
        kind.name: as_number(_attempt(kind.name, partial(kind.measure, log_probs, entropies)))
        for kind in measured
        if kind.measure is not None
    }
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _attempt(name: str, work: Callable[[], float | None]) -> float | None:
    """Run a user's computation; a failure is logged and gives NaN, which passes nothing."""
    try:
        value = work()
        return None if value is None else float(value)
    except Exception as error:
        logger.warning("The score %s cannot be computed: %s", name, described(error))
        return math.nan


def _combined(score: Score) -> float | None:
    """Give the geometric mean of the answer's surprise in all, per token, and at its least probable token, in nats.

    The first favours short answers, the second long ones, and the third looks at one token alone. docs/real_models.md
    compares them on published models.
    """
    if score.max_nll is None:
        return None
    values = (score.nll, score.mean_nll, score.max_nll)
    return math.exp(sum(math.log(max(value, _LEAST)) for value in values) / len(values))


def _sum_entropy(score: Score) -> float:
    return score.mean_entropy * score.length


def _upper_half(score: Score) -> float:
    """Give SemGrad over the paper's layers, also where it was taken at all of them."""
    if score.layer_indices[0] != 0:
        return score.semgrad
    upper = score.layers[len(score.layers) // 2 :]
    return sum(upper) / len(upper)


for _kind in (
    ScoreKind(
        "semgrad",
        "The gradient at the hidden states of the semantic preserving token; equation (4).",
        gradient=True,
        title="SemGrad",
    ),
    ScoreKind(
        "semgrad_upper",
        "SemGrad over the upper half of the layers, also where it is taken at all of them.",
        read=_upper_half,
        uses=("report",),
        gradient=True,
        title="SemGrad, upper half",
    ),
    ScoreKind(
        "semgrad_unweighted", "SemGrad without entropy weights.", uses=(), gradient=True, title="SemGrad, unweighted"
    ),
    ScoreKind(
        "hybridgrad",
        "SemGrad and ParaGrad, mixed by the mean entropy; equation (6).",
        gradient=True,
        title="HybridGrad",
    ),
    ScoreKind(
        "paragrad",
        "The gradient at the output head's weights; equation (5).",
        uses=("alone", "fused", "report"),
        gradient=True,
        title="ParaGrad",
    ),
    ScoreKind(
        "exgrad",
        "ParaGrad without entropy weights.",
        uses=("alone", "fused", "report"),
        gradient=True,
        title="ExGrad",
    ),
    ScoreKind(
        "combined",
        "The geometric mean of G-NLL, LN-NLL and that of the least probable token, in nats; it needs no labels.",
        read=_combined,
    ),
    ScoreKind(
        "nll",
        "The answer's negative log-likelihood, in nats.",
        uses=("alone", "core", "fused", "report"),
        title="G-NLL",
        option="g-nll",
    ),
    ScoreKind(
        "mean_nll",
        "The negative log-likelihood per token, in nats.",
        uses=("alone", "core", "fused", "report"),
        title="LN-NLL",
        option="ln-nll",
    ),
    ScoreKind("mean_entropy", "The mean entropy of the output, in nats.", uses=("alone", "core", "fused", "report")),
    ScoreKind("max_entropy", "The largest entropy of the output, in nats.", uses=("alone", "fused", "report")),
    ScoreKind(
        "sum_entropy",
        "The entropy of the output, added up over the tokens, in nats.",
        read=_sum_entropy,
    ),
    ScoreKind("first_entropy", "The entropy at the answer's first token, in nats.", uses=("alone", "fused", "report")),
    ScoreKind(
        "max_nll",
        "The negative log-probability of the least probable token, in nats.",
        uses=("alone", "core", "fused", "report"),
        title="least probable token",
        option="min-probability",
    ),
    ScoreKind(
        "rauq",
        "Token probabilities carried along the attention to the token before, in nats per token (arXiv 2505.20045). "
        "It needs the setting attention.",
        uses=("alone",),
        title="RAUQ",
    ),
    ScoreKind("length", "The number of the answer's tokens.", uses=("fused", "report")),
):
    register_score(_kind)
