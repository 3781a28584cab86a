"""The search for the prompt token, the layers, mean or sum, and the weights, on labelled answers.

The Semantic Preservation Score can mislead: it favours tokens whose hidden states feed the first word of the answer.
Where there are labels, they decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from semgrad_guard.calibration.answers import Answered, rescored
from semgrad_guard.calibration.fit import Method, later_features, layer_features, out_of_fold, part_of, scalar_features
from semgrad_guard.errors import DataError
from semgrad_guard.records import Score
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.semgrad import hybridgrad
from semgrad_guard.scoring.settings import Layers, Reduction, layer_indices

_TAUS = (0.1, 0.3, 1.0, 3.0, 10.0)
_BETAS = (0.1, 1.0, 10.0)  # times the ratio of the two scores' medians
_LAYERS: tuple[Layers, ...] = ("upper-half", "all")


@dataclass(frozen=True)
class Candidate:
    """A way to compute SemGrad, and how well it tells wrong answers from right ones: AUROC, 0.5 being chance.

    `fused` is about the regression on everything that a pass at this prompt token gives, out of fold.
    """

    position: int
    layers: tuple[int, ...]
    reduction: Reduction
    weighted: bool
    auroc: float
    fused: bool = False

    @property
    def name(self) -> str:
        """The computation there, in words."""
        return "fused" if self.fused else f"SemGrad, {self.reduction}{'' if self.weighted else ', unweighted'}"


def compare_candidates(
    scorer: SemGradScorer,
    answers: Sequence[Answered],
    positions: Sequence[int],
    layers: Sequence[Layers] = _LAYERS,
    *,
    fused: bool = False,
) -> list[Candidate]:
    """Score the same answers at every candidate position, and rank all candidates, the best first.

    SemGrad has no parameters to fit, so fitting does not flatter its AUROC on these answers. Choosing the best of many
    does: give none of the answers that a threshold is to be tested on.

    Args:
        scorer: its model and tokenizer are used.
        answers: labelled answers; those without a label are left out.
        positions: t* candidates, counted from the prompt's end. Those that reach beyond a prompt are left out.
        layers: choices of layers to take gradients at.
        fused: also compare the fused score at every position.

    Raises:
        DataError: all answers are right, or all wrong.
    """
    labelled = [item for item in answers if item.correct is not None]
    correct = np.array([bool(item.correct) for item in labelled])
    if len(np.unique(correct)) < 2:
        raise DataError(
            f"{int((~correct).sum())} of {len(labelled)} labelled answers are wrong; both kinds are needed to compare."
        )
    shortest = min(len(item.prompt_ids) for item in labelled)
    count = scorer.model.config.get_text_config(decoder=True).num_hidden_layers
    lengths = np.array([len(item.response_ids) for item in labelled])
    candidates = []
    for position in tqdm([place for place in positions if place <= shortest], desc="comparing positions"):
        moved = scorer.adjusted(token_position=position, layers="all", reduction="mean", unweighted=True, later=True)
        scores = [item.score for item in rescored(moved, labelled)]
        by_layer = {
            True: np.array([score.layers for score in scores]),
            False: np.array([score.layers_unweighted for score in scores]),
        }
        for indices, weighted in product((layer_indices(choice, count) for choice in layers), (True, False)):
            mean = by_layer[weighted][:, list(indices)].mean(1)
            candidates += [
                Candidate(position, indices, "mean", weighted, float(roc_auc_score(~correct, mean))),
                Candidate(position, indices, "sum", weighted, float(roc_auc_score(~correct, mean * lengths))),
            ]
        if fused:
            features = (*scalar_features(), *layer_features(scores[0]), *later_features(scores[0]))
            groups = [item.example.about for item in labelled]
            auroc = float(roc_auc_score(correct, out_of_fold(scores, correct.tolist(), features, groups)))
            candidates.append(Candidate(position, tuple(range(count)), "mean", True, auroc, fused=True))
    return sorted(candidates, key=lambda candidate: -candidate.auroc)


def searched(
    scorer: SemGradScorer,
    answers: Sequence[Answered],
    *,
    method: Method = "auto",
    also: Sequence[int] = (),
    only: int | None = None,
    seed: int = 0,
) -> tuple[SemGradScorer, list[Answered], list[Candidate]]:
    """Move to the prompt token and the settings with the best AUROC on the fitting part, and score all answers there.

    The last token, the scorer's own and its neighbours are tried. Labels of the other parts are not used. For a fused
    score the prompt token counts alone, since it takes in layers, length and entropies by itself.

    Args:
        scorer: its position is the first candidate.
        answers: what it has answered.
        method: what confidence is to be made from.
        also: further positions to try, such as the one of the preservation score.
        only: position of the caller's choice; None to try several.
        seed: random seed of the split into parts.

    Returns:
        The scorer to bind a profile to, the answers with its scores, and all candidates, the best first.
    """
    fitting = fitting_part(answers, seed)
    rule, fused = scorer.token_position or 1, method in ("auto", "fused")
    positions = [only] if only is not None else sorted({1, max(1, rule - 1), rule, rule + 1, *also})
    candidates = compare_candidates(scorer, fitting, positions, fused=fused)
    best = next(candidate for candidate in candidates if candidate.fused is fused)
    moved = scorer.adjusted(
        token_position=best.position,
        layers=best.layers,
        reduction=best.reduction,
        unweighted=not best.weighted,
        later=fused,
    )
    return moved, rescored(moved, answers), candidates


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


def with_hybrid(answers: Sequence[Answered], tau: float, beta: float) -> list[Answered]:
    """Mix every answer's HybridGrad anew."""
    return [replace(item, score=_mixed(item.score, tau, beta)) for item in answers]


def fitting_part(answers: Sequence[Answered], seed: int) -> list[Answered]:
    """Give the labelled answers that a profile is fitted on; nothing is tested on them."""
    labelled = [item for item in answers if item.correct is not None]
    part = part_of(((item.example.about, item.correct is True) for item in labelled), seed)
    return [item for item in labelled if part[item.example.about] == 0]


def _mixed(score: Score, tau: float, beta: float) -> Score:
    mixed = hybridgrad(score.semgrad, score.paragrad or 0.0, score.mean_entropy, tau=tau, beta=beta)
    return score.model_copy(update={"hybridgrad": mixed})
