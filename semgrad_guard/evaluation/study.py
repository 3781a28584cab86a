"""Studies of one run: where SemGrad is best taken, which features count, and whether its premise holds.

The premise: SemGrad is large where the answer hangs on how a question is worded. The gradient at the hidden states that
carry the meaning says how much the answer's distribution would change with them. Rewording a question changes these
states a little and the meaning not at all. So the change of the same answer's distribution, its Kullback-Leibler
divergence token by token, is measured and compared with the scores by ranks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

from semgrad_guard.calibration.fit import later_features, layer_features, out_of_fold, scalar_features
from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.errors import DataError
from semgrad_guard.evaluation import metrics
from semgrad_guard.evaluation.compare import Method, surest_errors, uncertainties
from semgrad_guard.evaluation.run import Result, peak_memory, prompt_form, prompt_ids, token_uncertainties
from semgrad_guard.records import Score, TokenUncertainty
from semgrad_guard.scoring.preservation import Preservation, preservation
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.settings import layer_indices

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
        repeats: number of bootstrap samples.
        seed: random seed of the draw and the bootstrap.

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
                "spearman": _spearman(values, changes),
                "interval": metrics.bootstrap(_spearman, values, changes, groups=groups, repeats=repeats, seed=seed),
            }
            for name, values in uncertainties(drawn, methods).items()
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


def _spearman(uncertainty: metrics.Numbers, changes: metrics.Numbers) -> float:
    """Correlate ranks; NaN where one of them is constant."""
    if np.ptp(uncertainty) == 0 or np.ptp(changes) == 0:
        return math.nan
    return float(spearmanr(uncertainty, changes).statistic)


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
    """Score answers at all their prompt tokens at once, and compare; None without both right and wrong answers.

    Args:
        scorer: its model is used; its own token is the rule's.
        results: answers with labels and scores; no more than `most` of them, drawn by chance.
        prompt: how they were asked.
        preservation: names one more token.
        most: questions at most, since reading whole prompts with gradients costs.
        repeats: number of bootstrap samples.
        seed: random seed of the draw, the random tokens, and the bootstrap.
    """
    usable = [result for result in results if result.correct is not None and result.score is not None]
    rng = random.Random(seed)
    drawn = rng.sample(usable, min(most, len(usable)))
    correct = np.array([bool(result.correct) for result in drawn])
    if len(np.unique(correct)) < 2:
        return None

    count = scorer.model.config.get_text_config(decoder=True).num_hidden_layers
    upper = list(layer_indices("upper-half", count))
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

    def measured(rows: list[metrics.Numbers], layers: list[int]) -> tuple[float, float, float]:
        uncertainty = np.array(rows)[:, layers].mean(1)
        low, high = metrics.bootstrap(metrics.auroc, uncertainty, correct, groups=groups, repeats=repeats, seed=seed)
        return metrics.auroc(uncertainty, correct), low, high

    last = prompt_ids(scorer, drawn[0].query, prompt)[::-1][:shortest]
    return Placement(
        by_state=tuple(
            tuple(metrics.auroc(cut[:, token, layer], correct) for token in range(shortest)) for layer in range(count)
        ),
        tokens=tuple(str(scorer.tokenizer.decode([token])) for token in last),
        choices={
            name: {"upper half": measured(rows, upper), "all layers": measured(rows, list(range(count)))}
            for name, rows in chosen.items()
        },
        questions=len(drawn),
    )


def _states(scorer: SemGradScorer, results: Sequence[Result], prompt: str | PromptForm) -> list[metrics.Numbers]:
    """Give SemGrad at every prompt token and layer, [P, L] for each answer, the last token first.

    For prompts of one length, a scorer whose t* is their first token gives all other tokens as later ones.
    """
    prompts = [prompt_ids(scorer, result.query, prompt) for result in results]
    by_index: dict[int, metrics.Numbers] = {}
    with tqdm(total=len(results), desc="scoring at every prompt token") as bar:
        for length in sorted({len(ids) for ids in prompts}):
            whole = scorer.adjusted(token_position=length, layers="all", later=True, unweighted=False)
            members = [index for index, ids in enumerate(prompts) if len(ids) == length]
            for start in range(0, len(members), _BATCH):
                batch = members[start : start + _BATCH]
                responses = [results[index].response_ids for index in batch]
                scores = whole.score_ids([prompts[index] for index in batch], responses, parameters=False)
                for index, score in zip(batch, scores, strict=True):
                    by_index[index] = np.array([score.layers, *score.later])[::-1]
                bar.update(len(batch))
    return [by_index[index] for index in range(len(results))]


def ablation(
    results: Sequence[Result], parts: Mapping[str, Sequence[Result]], *, repeats: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Fit the regression anew on these results, in folds by group, with all features and with fewer.

    The profile's own regression is not used: it was fitted on other questions. A fit that has not seen its group judges
    every answer.

    Args:
        results: of one run; those without a label or a score are left out.
        parts: parts of them to give the AUROC on.
        repeats: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Returns:
        By set of features, and part: AUROC, and by how much it lies under that of everything, with a paired 95 %
        interval; `missing` says why there is nothing.
    """
    usable = [result for result in results if result.correct is not None and result.score is not None]
    scores = [result.score for result in usable if result.score is not None]
    correct, groups = [bool(result.correct) for result in usable], [result.about for result in usable]
    if not scores:
        return {"missing": "no answer has both a label and a score", "sets": {}}
    try:
        predicted = {
            name: (len(features), -np.array(out_of_fold(scores, correct, features, groups)))
            for name, features in _sets(scores[0]).items()
        }
    except DataError as error:
        return {"missing": str(error), "sets": {}}
    place = {result.query: index for index, result in enumerate(usable)}
    chosen = {
        part: np.array([place[result.query] for result in members if result.query in place], dtype=int)
        for part, members in parts.items()
    }
    (_, everything), right = predicted["everything"], np.array(correct)
    return {
        "missing": "",
        "sets": {
            name: {"features": count}
            | {
                part: _loss(values[i], everything[i], right[i], [groups[index] for index in i], repeats, seed)
                for part, i in chosen.items()
                if len(np.unique(right[i])) > 1
            }
            for name, (count, values) in predicted.items()
        },
    }


def _sets(score: Score) -> dict[str, tuple[str, ...]]:
    layers, later, scalars = layer_features(score), later_features(score), scalar_features()
    sets = {
        "everything": (*scalars, *layers, *later),
        "without the tokens after t*": (*scalars, *layers),
        "SemGrad's mean instead of its layers": (*scalars, "semgrad"),
        "without gradients at hidden states": scalars,
        "without gradients": scalar_features(gradients=False),
        "SemGrad by layer, at all tokens, alone": (*layers, *later),
    }
    return {name: features for name, features in sets.items() if later or name != "without the tokens after t*"}


def _loss(
    uncertainty: metrics.Numbers, everything: metrics.Numbers, right: Any, groups: list[str], repeats: int, seed: int
) -> dict[str, Any]:
    def loss(with_all: metrics.Numbers, with_fewer: metrics.Numbers, correct: Any) -> float:
        return metrics.auroc(with_all, correct) - metrics.auroc(with_fewer, correct)

    interval = metrics.bootstrap(loss, everything, uncertainty, right, groups=groups, repeats=repeats, seed=seed)
    return {
        "auroc": metrics.auroc(uncertainty, right),
        "loss": loss(everything, uncertainty, right),
        "loss_interval": interval,
    }


_GROUPS = 200  # questions that the preservation score is measured on


@dataclass(frozen=True)
class Study:
    """The results of the studies: `attributions` of the surest errors by question; None stands for no result."""

    memory: Mapping[str, Any]
    attributions: Mapping[str, Sequence[TokenUncertainty]]
    ablation: Mapping[str, Any]
    placement: Placement | None
    preservation: Preservation | None
    premise: Mapping[str, Any] | None


def study(
    scorer: SemGradScorer,
    results: Sequence[Result],
    methods: Sequence[Method],
    parts: Mapping[str, Sequence[Result]],
    *,
    prompt: str | PromptForm,
    max_new_tokens: int,
    paraphrases: Sequence[Sequence[str]] = (),
) -> Study:
    """Look into the results of one run.

    Args:
        scorer: the scorer of these results.
        results: all of them.
        methods: that are compared; the surest errors are the first one's.
        parts: of the results, by name.
        prompt: how the questions were asked.
        max_new_tokens: longest answer.
        paraphrases: groups of questions that mean the same; the first of a group is the question itself.
    """
    usable = [group for group in paraphrases if len(set(group)) > 1]
    measured = usable[:_GROUPS]
    rewordings = {first: tuple(dict.fromkeys(rest)) for first, *rest in usable}
    preserved = None
    if len(measured) > 1:
        last, form = _last(scorer, measured, prompt), prompt_form(prompt)
        preserved = preservation(scorer.model, scorer.tokenizer, measured, last=last, messages=form.messages)
    return Study(
        memory=peak_memory(scorer, [result.query for result in results], prompt, max_new_tokens),
        attributions=token_uncertainties(scorer, surest_errors(results, methods[0]), prompt),
        ablation=ablation(results, parts),
        placement=placement(scorer, results, prompt, preserved),
        preservation=preserved,
        premise=premise(scorer, results, rewordings, methods, prompt) if rewordings else None,
    )


def _last(scorer: SemGradScorer, groups: Sequence[Sequence[str]], prompt: str | PromptForm) -> int:
    """Give how many prompt tokens from the end every prompt has, ten at most."""
    return min(LAST, *(len(prompt_ids(scorer, text, prompt)) for texts in groups for text in texts))
