"""The search for the prompt token, the layers, mean or sum, and the weights of HybridGrad, on labelled answers.

One pass at the earliest token gives the gradients at all tokens after it and at all layers. So answers are scored once,
and every candidate is read off that. The Semantic Preservation Score can mislead: it favours tokens whose hidden states
feed the first word of the answer. Where there are labels, they decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import numpy as np
from sklearn.metrics import roc_auc_score

from semgrad_guard.calibration.answers import Answered
from semgrad_guard.calibration.fit import part_of
from semgrad_guard.errors import DataError
from semgrad_guard.records import Score
from semgrad_guard.scoring.semgrad import hybridgrad
from semgrad_guard.scoring.settings import Layers, Reduction, ScoringSettings, layer_indices

_TAUS = (0.1, 0.3, 1.0, 3.0, 10.0)
_BETAS = (0.1, 1.0, 10.0)  # times the ratio of the two scores' medians
_LAYERS: tuple[Layers, ...] = ("upper-half", "all")


@dataclass(frozen=True)
class Candidate:
    """A way to compute SemGrad, and how well it tells wrong answers from right ones: AUROC, 0.5 being chance."""

    position: int
    layers: tuple[int, ...]
    reduction: Reduction
    auroc: float


def read_off(score: Score, wide: ScoringSettings, narrow: ScoringSettings) -> Score:
    """Read the score that other settings would give off one that was computed with wider ones.

    Args:
        score: taken at an earlier prompt token, with `later`, and at all layers that are wanted.
        wide: its settings, resolved.
        narrow: the settings wanted, resolved; of the same norm, and without other weights or states.
    """
    rows = [score.layers, *score.later][(wide.token_position or 1) - (narrow.token_position or 1) :]
    if not rows:
        raise ValueError(f"t* = {narrow.token_position} is before {wide.token_position}, where the score was taken.")
    scale = {"mean": 1.0, "sum": float(score.length)}
    factor = scale[narrow.reduction] / scale[wide.reduction]
    places = [score.layer_indices.index(layer) for layer in narrow.layers if isinstance(layer, int)]
    by_token = [tuple(factor * row[place] for place in places) for row in rows]
    semgrad = sum(by_token[0]) / len(by_token[0])
    paragrad, exgrad = (None if value is None else factor * value for value in (score.paragrad, score.exgrad))
    mixed = None
    if paragrad is not None:
        mixed = hybridgrad(semgrad, paragrad, score.mean_entropy, tau=narrow.tau, beta=narrow.beta)
    return score.model_copy(
        update={
            "semgrad": semgrad,
            "paragrad": paragrad,
            "exgrad": exgrad,
            "hybridgrad": mixed,
            "layer_indices": tuple(narrow.layers),
            "layers": by_token[0],
            "later": tuple(by_token[1:]) if narrow.later else (),
        }
    )


def with_settings(answers: Sequence[Answered], wide: ScoringSettings, narrow: ScoringSettings) -> list[Answered]:
    """Give the answers the scores of narrower settings."""
    return [replace(item, score=read_off(item.score, wide, narrow)) for item in answers]


def compare_candidates(
    answers: Sequence[Answered],
    scoring: ScoringSettings,
    positions: Sequence[int],
    layers: Sequence[Layers] = _LAYERS,
) -> list[Candidate]:
    """Rank all candidates on the same answers, the best first.

    SemGrad has no parameters to fit, so fitting does not flatter its AUROC on these answers. Choosing the best of many
    does: give none of the answers that a threshold is to be tested on.

    Args:
        answers: labelled answers; those without a label are left out.
        scoring: the settings that they were scored with, resolved, at all layers and with `later`.
        positions: t* candidates, counted from the prompt's end, none before that of `scoring`.
        layers: choices of layers to take gradients at.

    Raises:
        DataError: all answers are right, or all wrong.
    """
    labelled = [item for item in answers if item.correct is not None]
    wrong = np.array([not item.correct for item in labelled])
    if len(np.unique(wrong)) < 2:
        raise DataError(
            f"{int(wrong.sum())} of {len(labelled)} labelled answers are wrong; both kinds are needed to compare."
        )
    reductions: tuple[Reduction, ...] = ("mean", "sum")
    candidates = []
    for position, choice, reduction in product(positions, layers, reductions):
        indices = layer_indices(choice, len(scoring.layers))
        narrow = scoring.changed(token_position=position, layers=indices, reduction=reduction, later=False)
        values = [read_off(item.score, scoring, narrow).semgrad for item in labelled]
        candidates.append(Candidate(position, indices, reduction, float(roc_auc_score(wrong, values))))
    return sorted(candidates, key=lambda candidate: -candidate.auroc)


def candidate_positions(rule: int, also: Sequence[int] = ()) -> list[int]:
    """Name the tokens to try: the last one, the rule's and the one after it, and some more."""
    return sorted({1, max(1, rule - 1), rule, *also})


def tuned_hybrid(answers: Sequence[Answered], seed: int) -> tuple[float, float]:
    """Choose HybridGrad's tau and beta, on the fitting part, by AUROC."""
    fitting = fitting_part(answers, seed)
    wrong = [not item.correct for item in fitting]
    if len(set(wrong)) < 2:
        raise DataError(f"{sum(wrong)} of {len(wrong)} labelled answers are wrong; both kinds are needed to compare.")
    ratio = median(item.score.semgrad for item in fitting) / median(item.score.paragrad or 1.0 for item in fitting)

    def auroc(setting: tuple[float, float]) -> float:
        return float(roc_auc_score(wrong, [_mixed(item.score, *setting).hybridgrad or 0.0 for item in fitting]))

    return max([(1.0, 1.0), *product(_TAUS, (ratio * factor for factor in _BETAS))], key=auroc)


def fitting_part(answers: Sequence[Answered], seed: int) -> list[Answered]:
    """Give the labelled answers that a profile is fitted on; nothing is tested on them."""
    labelled = [item for item in answers if item.correct is not None]
    part = part_of(((item.example.about, item.correct is True) for item in labelled), seed)
    return [item for item in labelled if part[item.example.about] == 0]


def _mixed(score: Score, tau: float, beta: float) -> Score:
    mixed = hybridgrad(score.semgrad, score.paragrad or 0.0, score.mean_entropy, tau=tau, beta=beta)
    return score.model_copy(update={"hybridgrad": mixed})
