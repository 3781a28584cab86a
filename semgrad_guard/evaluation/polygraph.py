"""Baselines as lm-polygraph computes them, on the same answer and samples as every other method; extra `bench`.

lm-polygraph's estimators, and its calculators for natural language inference and for the cross-encoder, are its own.
Answers and samples are ours, and so is reading them again for log-probabilities and hidden states: its own generators
would draw anew, and they make every answer at least two tokens long, which changes what a short answer is worth. Apart
from that both give the same. The model is only read with; neither its attention nor its configuration is changed.

Run for real with lm-polygraph 0.7.0 on the embedded model: without that least length, its statistics of 600 samples and
ours agree within 1e-4. Deg, semantic density and SAR were run with classifiers of random weights, which shows that the
parts fit together and nothing about how good these methods are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from semgrad_guard.errors import needs
from semgrad_guard.evaluation.classifiers import BATCH, model_folder, nli_classifier
from semgrad_guard.evaluation.sampling import Attempts
from semgrad_guard.records import Generation
from semgrad_guard.scoring.scorer import SemGradScorer


@dataclass(frozen=True)
class _Recipe:
    """lm-polygraph's estimator, the calculator it needs besides, and the folder that this one's model is in."""

    estimator: str
    calculator: str = ""
    option: str = ""


_RECIPES = {
    "degmat": _Recipe("DegMat", "SemanticMatrixCalculator", "--nli"),
    "eigenscore": _Recipe("EigenScore"),
    "sar": _Recipe("SAR", "CrossEncoderSimilarityMatrixCalculator", "--cross-encoder"),
    "semantic-density": _Recipe("SemanticDensity", "ConcatGreedySemanticMatrixCalculator", "--nli"),
    "ln-pe": _Recipe("MonteCarloNormalizedSequenceEntropy"),
}


class Polygraph:
    """Some of lm-polygraph's methods, ready to be used on one question after the other."""

    def __init__(
        self, names: Sequence[str], *, nli: Path | None, cross_encoder: Path | None, device: torch.device
    ) -> None:
        """Load what the methods need.

        Args:
            names: of methods, as in `evaluation.methods`.
            nli: folder of a classifier that tells entailment, neutral and contradiction; "degmat" and
                "semantic-density" need it.
            cross_encoder: folder of a sentence-transformers cross-encoder that says how alike two texts are; "sar"
                needs it.
            device: for both.

        Raises:
            ConfigurationError: a folder is missing or holds something else, or lm-polygraph is not installed.
        """
        folders = {"--nli": nli, "--cross-encoder": cross_encoder}
        recipes = {name: _RECIPES[name] for name in names}
        needed = {
            recipe.option: model_folder(name, recipe.option, folders[recipe.option])
            for name, recipe in recipes.items()
            if recipe.option
        }
        estimators, calculators = _library()
        arguments: dict[str, tuple[Any, ...]] = {}  # what a calculator is built with
        if "--nli" in needed:
            arguments["--nli"] = (_nli_classifier(needed["--nli"], device),)
        if "--cross-encoder" in needed:
            arguments["--cross-encoder"] = (BATCH, str(needed["--cross-encoder"]))
        self.setting = {"methods": sorted(names), **{option: str(folder) for option, folder in needed.items()}}
        self._methods = {
            name: (
                getattr(estimators, recipe.estimator)(),
                getattr(calculators, recipe.calculator)(*arguments[recipe.option]) if recipe.option else None,
            )
            for name, recipe in recipes.items()
        }

    def __call__(
        self, attempt: Attempts, scorer: SemGradScorer, query: str, answer: Generation, samples: Sequence[Generation]
    ) -> dict[str, float | None]:
        """Give the value of every method for one question; *higher = more uncertain*, None where one failed."""
        statistics = attempt("reading", lambda: _statistics(scorer, query, answer, samples))
        if statistics is None:
            return dict.fromkeys(self._methods)
        reader = SimpleNamespace(device=lambda: scorer.model.device, tokenizer=scorer.tokenizer)
        return {
            name: attempt(name, partial(_value, estimator, calculator, statistics, reader))
            for name, (estimator, calculator) in self._methods.items()
        }


def _value(
    estimator: Callable[..., Any], calculator: Callable[..., Any] | None, statistics: Mapping[str, Any], reader: Any
) -> float:
    """Compute one method's value.

    Raises:
        ArithmeticError: the value is not finite.
        RuntimeError: anything else went wrong.
    """
    try:
        with redirect_stderr(io.StringIO()):  # a progress bar for every question would tear ours apart
            more = {} if calculator is None else calculator(statistics, statistics["input_texts"], reader)
            value = float(estimator({**statistics, **more})[0])
    except Exception as error:  # the code of others: whatever it raises, this one value has failed
        raise RuntimeError(f"lm-polygraph: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise ArithmeticError("lm-polygraph gave a value that is not finite")
    return value


@torch.no_grad()
def _statistics(
    scorer: SemGradScorer, query: str, answer: Generation, samples: Sequence[Generation]
) -> dict[str, list[Any]]:
    """Read an answer and its samples once more, and give what lm-polygraph's own generators would, for one question.

    As there, an end-of-turn token counts in the likelihood of the whole but is no token of a sample, and a sample's
    embedding is the middle layer's state at the last token that was read for it. Samples without a token are left out.

    Raises:
        ArithmeticError: no sample has a token.
    """
    drawn = [sample for sample in samples if _tokens(sample)]
    if not drawn:
        raise ArithmeticError("no sample has a token")
    rows = [answer, *drawn]
    prompt, longest = len(answer.prompt_ids), max(len(row.response_ids) for row in rows)
    padding = [[0] * (longest - len(row.response_ids)) for row in rows]  # on the right, where no token looks
    device = scorer.model.device
    output = scorer.model(
        input_ids=torch.tensor(
            [[*row.prompt_ids, *row.response_ids, *pad] for row, pad in zip(rows, padding, strict=True)], device=device
        ),
        attention_mask=torch.tensor([[1] * (prompt + longest - len(pad)) + pad for pad in padding], device=device),
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    log_p = torch.log_softmax(output.logits[:, :-1].float(), dim=-1)
    likelihoods = [
        log_p[place, range(len(row.response_ids)), list(row.response_ids)].tolist() for place, row in enumerate(rows)
    ]
    states = output.hidden_states[scorer.model.config.get_text_config(decoder=True).num_hidden_layers // 2]
    tokens = [_tokens(row) for row in drawn]
    return {
        "input_texts": [query],
        "no_fewshot_input_texts": [query],
        "greedy_texts": [answer.text.strip()],
        "greedy_tokens": [[]],  # the cross-encoder would weigh them, and nothing here asks for it
        "greedy_log_likelihoods": [likelihoods[0]],
        "sample_texts": [[row.text.strip() for row in drawn]],
        "sample_tokens": [tokens],
        "sample_log_probs": [[sum(row) for row in likelihoods[1:]]],
        "sample_log_likelihoods": [[row[: len(ids)] for row, ids in zip(likelihoods[1:], tokens, strict=True)]],
        "sample_embeddings": [
            [
                states[place, prompt + len(row.response_ids) - 2].float().cpu().numpy()
                for place, row in enumerate(drawn, 1)
            ]
        ],
    }


def _tokens(generation: Generation) -> list[int]:
    """Give the tokens of a response without the one that ended the turn."""
    return list(generation.response_ids[:-1] if generation.finish_reason == "stop" else generation.response_ids)


def _nli_classifier(folder: Path, device: torch.device) -> Any:
    """Load a classifier in the shape that lm-polygraph's calculators expect of theirs.

    Raises:
        ConfigurationError: the folder holds no classifier, or one with other labels.
    """
    model, tokenizer = nli_classifier(folder, device)
    return SimpleNamespace(deberta=model, deberta_tokenizer=tokenizer, batch_size=BATCH, device=device)


def _library() -> tuple[Any, Any]:
    """Import lm-polygraph's estimators and its calculators of what these need.

    Raises:
        ConfigurationError: it is not installed.
    """
    with needs("bench", "Methods of lm-polygraph need it installed"):
        from lm_polygraph import estimators, stat_calculators
    return estimators, stat_calculators
