"""Which prompt token, which layers, mean or sum: tried out on labelled answers.

The Semantic Preservation Score can mislead: it favours tokens whose hidden states feed the first word of the answer.
Where there are labels, they decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from semgrad_guard.calibration.calibrate import part_of
from semgrad_guard.calibration.from_examples import Answered
from semgrad_guard.errors import DataError
from semgrad_guard.scoring.objective import Reduction
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.spans import Span, resolved_span

_BATCH = 16


@dataclass(frozen=True)
class Candidate:
    """A way to compute SemGrad, and how well it tells wrong answers from right ones: AUROC, 0.5 being chance."""

    position: int
    span: tuple[int, ...]
    reduction: Reduction
    auroc: float


def compare_candidates(
    scorer: SemGradScorer,
    answers: Sequence[Answered],
    positions: Sequence[int],
    spans: Sequence[Span] = ("upper-half", "all"),
) -> list[Candidate]:
    """Score the same answers at every candidate position, and rank all candidates, the best first.

    SemGrad has no parameters to fit, so its AUROC on these answers is not flattered by fitting; choosing the best of
    many still is, so give none of the answers that a threshold is to be tested on.

    Args:
        scorer: its model and tokenizer are used.
        answers: labelled answers; those without a label are left out.
        positions: t* candidates, counted from the prompt's end. Those that reach beyond a prompt are left out.
        spans: layers to take gradients at.

    Raises:
        DataError: all answers are right, or all wrong.
    """
    labelled = [item for item in answers if item.correct is not None]
    wrong = [not item.correct for item in labelled]
    if len(set(wrong)) < 2:
        raise DataError(f"{sum(wrong)} of {len(wrong)} labelled answers are wrong; both kinds are needed to compare.")
    shortest = min(len(item.prompt_ids) for item in labelled)
    count = scorer.model.config.get_text_config(decoder=True).num_hidden_layers
    lengths = np.array([len(item.response_ids) for item in labelled])
    found = []
    for position in tqdm([place for place in positions if place <= shortest], desc="comparing positions"):
        own = SemGradScorer(scorer.model, scorer.tokenizer, token_position=position, span="all", norm=scorer.norm)
        layers = np.concatenate([_layers(own, labelled[at : at + _BATCH]) for at in range(0, len(labelled), _BATCH)])
        for span in (resolved_span(wanted, count) for wanted in spans):
            mean = layers[:, list(span)].mean(1)
            candidates: dict[Reduction, NDArray[np.float64]] = {"mean": mean, "sum": mean * lengths}
            found += [
                Candidate(position, span, reduction, float(roc_auc_score(wrong, values)))
                for reduction, values in candidates.items()
            ]
    return sorted(found, key=lambda candidate: -candidate.auroc)


def searched(
    scorer: SemGradScorer, answers: Sequence[Answered], *, seed: int = 0
) -> tuple[SemGradScorer, list[Answered], list[Candidate]]:
    """Move to the prompt token and the reduction that tell most on the fitting part, and score all answers there.

    Tried are the last token, the scorer's own and its neighbours. Labels of the other parts are not looked at.

    Returns:
        The scorer to bind a profile to, the answers with its scores, and all candidates, the best first.
    """
    part = part_of((item.example.about for item in answers if item.correct is not None), seed)
    fitting = [item for item in answers if item.correct is not None and part[item.example.about] == 0]
    rule = scorer.token_position or 1
    candidates = compare_candidates(scorer, fitting, sorted({1, max(1, rule - 1), rule, rule + 1}))
    best = candidates[0]
    moved = SemGradScorer(
        scorer.model,
        scorer.tokenizer,
        token_position=best.position,
        span=scorer.span,
        reduction=best.reduction,
        norm=scorer.norm,
        tau=scorer.tau,
        beta=scorer.beta,
        budget=scorer.budget,
    )
    rescored: list[Answered] = []
    for start in range(0, len(answers), _BATCH):
        batch = answers[start : start + _BATCH]
        scores = moved.score_ids([item.prompt_ids for item in batch], [item.response_ids for item in batch])
        rescored += [replace(item, score=score) for item, score in zip(batch, scores, strict=True)]
    return moved, rescored, candidates


def _layers(scorer: SemGradScorer, answers: Sequence[Answered]) -> NDArray[np.float64]:
    scores = scorer.score_ids(
        [item.prompt_ids for item in answers], [item.response_ids for item in answers], parameters=False
    )
    return np.array([score.layers for score in scores])
