"""Where SemGrad is taken: how well it tells right from wrong at every prompt token and hidden state."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.run import Result, prompt_ids
from semgrad_guard.scoring.preservation import Preservation
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.spans import resolved_span

_BATCH = 16
LAST = 10  # prompt tokens from the end that are looked at one by one


@dataclass(frozen=True)
class Placement:
    """AUROC of SemGrad by place, 0.5 being chance.

    `by_state[l][t - 1]` is that of the gradient at hidden state l of the t-th prompt token from the end, whose text is
    `tokens[t - 1]`; `choices` that of ways to choose the token, each over the upper half of the layers and over all,
    with 95 % intervals; `questions` how many it was measured on.
    """

    by_state: tuple[tuple[float, ...], ...]
    tokens: tuple[str, ...]
    choices: dict[str, dict[str, tuple[float, float, float]]]
    questions: int


def placement(
    scorer: SemGradScorer,
    results: Sequence[Result],
    prompt: str | PromptForm,
    preservation: Preservation | None,
    *,
    most: int = 1000,
    repeats: int = 1000,
    seed: int = 0,
) -> Placement | None:
    """Score answers at all their prompt tokens at once, and compare; None where right and wrong answers are not both.

    Args:
        scorer: its model is used; its own token is the rule's.
        results: answers with labels and scores; no more than `most` of them, drawn by chance.
        prompt: how they were asked.
        preservation: names one more token.
        most: questions at most, since reading whole prompts with gradients costs.
        repeats: of the bootstrap.
        seed: of the draw, the random tokens, and the bootstrap.
    """
    usable = [result for result in results if result.correct is not None and result.score is not None]
    rng = random.Random(seed)
    drawn = rng.sample(usable, min(most, len(usable)))
    correct = np.array([bool(result.correct) for result in drawn])
    if len(np.unique(correct)) < 2:
        return None

    count = scorer.model.config.get_text_config(decoder=True).num_hidden_layers
    upper = list(resolved_span("upper-half", count))
    wanted = {"by the template": scorer.token_position or 1, "the last token": 1}
    if preservation is not None:
        wanted["by the preservation score"] = preservation.position(upper)
    names = (*wanted, "a random prompt token", "the embeddings of all tokens")
    chosen: dict[str, list[metrics.Numbers]] = {name: [] for name in names}
    states = _states(scorer, drawn, prompt)
    for tokens in states:
        for name, position in wanted.items():
            chosen[name].append(tokens[position - 1])
        chosen["a random prompt token"].append(tokens[rng.randrange(len(tokens))])
        chosen["the embeddings of all tokens"].append(np.repeat(tokens[:, 0].mean(), count))
    shortest = min(LAST, *(len(tokens) for tokens in states))
    cut = np.array([tokens[:shortest] for tokens in states])
    groups = [result.about for result in drawn]

    def found(rows: list[metrics.Numbers], span: list[int]) -> tuple[float, float, float]:
        doubt = np.array(rows)[:, span].mean(1)
        low, high = metrics.bootstrap(metrics.auroc, doubt, correct, groups=groups, repeats=repeats, seed=seed)
        return metrics.auroc(doubt, correct), low, high

    last = prompt_ids(scorer, drawn[0].query, prompt)[::-1][:shortest]
    return Placement(
        by_state=tuple(
            tuple(metrics.auroc(cut[:, token, layer], correct) for token in range(shortest)) for layer in range(count)
        ),
        tokens=tuple(str(scorer.tokenizer.decode([token])) for token in last),
        choices={
            name: {"upper half": found(rows, upper), "all layers": found(rows, list(range(count)))}
            for name, rows in chosen.items()
        },
        questions=len(drawn),
    )


def _states(scorer: SemGradScorer, results: Sequence[Result], prompt: str | PromptForm) -> list[metrics.Numbers]:
    """Give SemGrad at every prompt token and layer, [P, L] for each answer, the last token first.

    For prompts of one length, a scorer whose t* is their first token gives all others as those after it.
    """
    prompts = [prompt_ids(scorer, result.query, prompt) for result in results]
    found: dict[int, metrics.Numbers] = {}
    with tqdm(total=len(results), desc="scoring at every prompt token") as bar:
        for length in sorted({len(ids) for ids in prompts}):
            whole = scorer.adjusted(token_position=length, span="all", later=True, unweighted=False)
            members = [index for index, ids in enumerate(prompts) if len(ids) == length]
            for start in range(0, len(members), _BATCH):
                batch = members[start : start + _BATCH]
                responses = [results[index].response_ids for index in batch]
                scores = whole.score_ids([prompts[index] for index in batch], responses, parameters=False)
                for index, score in zip(batch, scores, strict=True):
                    found[index] = np.array([score.layers, *score.later])[::-1]
                bar.update(len(batch))
    return [found[index] for index in range(len(results))]
