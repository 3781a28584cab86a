"""The premise of SemGrad, tested: it is large where the answer hangs on how a question is worded.

The gradient at the hidden states that carry the meaning is to say how much the answer's distribution would change with
them. Rewording a question changes these states a little and the meaning not at all; so what happens to the distribution
of the same answer, word by word, is measured as its Kullback-Leibler divergence, and compared with the scores by ranks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.compare import uncertainties
from semgrad_guard.evaluation.methods import Method
from semgrad_guard.evaluation.run import Result, prompt_ids
from semgrad_guard.scoring.scorer import SemGradScorer

_FEWEST = 10


def premise(
    scorer: SemGradScorer,
    results: Sequence[Result],
    paraphrases: Mapping[str, Sequence[str]],
    methods: Sequence[Method],
    prompt: str | PromptForm,
    *,
    most: int = 300,
    repeats: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Correlate scores with how much rewording a question changes the distribution of its answer.

    Args:
        scorer: its model is used.
        results: answers; labels are not needed.
        paraphrases: other wordings, by question.
        methods: whose scores are compared.
        prompt: how the questions were asked.
        most: questions at most, drawn by chance.
        repeats: of the bootstrap.
        seed: of the draw and the bootstrap.

    Returns:
        By method, Spearman's rank correlation with the mean divergence (nats per token), in [-1, 1], and its 95 %
        interval; `missing` says why there is nothing.
    """
    usable = [result for result in results if result.score is not None and paraphrases.get(result.query)]
    drawn = random.Random(seed).sample(usable, min(most, len(usable)))
    if len(drawn) < _FEWEST:
        return {"missing": f"{len(drawn)} scored questions have other wordings; at least {_FEWEST} are needed"}
    changes = np.array(
        [
            np.mean(
                [
                    divergence(scorer, prompt_ids(scorer, result.query, prompt), other, result.response_ids)
                    for wording in paraphrases[result.query]
                    for other in [prompt_ids(scorer, wording, prompt)]
                ]
            )
            for result in tqdm(drawn, desc="rewording questions")
        ]
    )
    groups = [result.about for result in drawn]
    return {
        "missing": "",
        "questions": len(drawn),
        "wordings": sum(len(paraphrases[result.query]) for result in drawn),
        "methods": {
            name: {
                "spearman": _spearman(doubt, changes),
                "interval": metrics.bootstrap(_spearman, doubt, changes, groups=groups, repeats=repeats, seed=seed),
            }
            for name, doubt in uncertainties(drawn, methods).items()
        },
    }


def divergence(scorer: SemGradScorer, prompt: Sequence[int], other: Sequence[int], response: Sequence[int]) -> float:
    """Give the mean over the response's tokens of KL(p(. | prompt, y_<t) || p(. | other, y_<t)), in nats, >= 0."""
    one, two = (_log_probabilities(scorer, ids, response) for ids in (prompt, other))
    return float(torch.nn.functional.kl_div(two, one, log_target=True, reduction="none").sum(-1).mean())


@torch.no_grad()
def _log_probabilities(scorer: SemGradScorer, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Read a response after a prompt and give the output distribution at each of its tokens, [T, V]."""
    ids = torch.tensor([[*prompt, *response]], device=scorer.model.device)
    logits = scorer.model(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1).logits[0, :-1]
    return torch.log_softmax(logits.double(), dim=-1)


def _spearman(doubt: metrics.Numbers, changes: metrics.Numbers) -> float:
    """Correlate ranks; NaN where one of them is constant."""
    return float(spearmanr(doubt, changes).statistic) if np.ptp(doubt) > 0 and np.ptp(changes) > 0 else math.nan
