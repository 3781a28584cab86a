"""`SemGradScorer`: generate with a local model, then say how uncertain each response was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.errors import ConfigurationError, EmptyResponseError, PromptTooLongError, TokenPositionError
from semgrad_guard.model.chat_template import generation_prompt_position
from semgrad_guard.model.check import check_model, check_scorable
from semgrad_guard.model.generate import context_length, generate
from semgrad_guard.model.head import Head
from semgrad_guard.model.replay import Layout
from semgrad_guard.records import Generation, GenerationBatch, Score
from semgrad_guard.scoring.engine import Measured, measure
from semgrad_guard.scoring.gradients import Norm
from semgrad_guard.scoring.objective import Reduction

Span = Literal["upper-half", "all"] | Sequence[int]


class SemGradScorer:
    """Scores of a local model's own responses, from one pass and without sampling.

    SemGrad is the mean absolute gradient of the entropy-weighted log-likelihood of the response with respect to the
    hidden states at the *semantic preserving token* t*, where the prompt's meaning gathers (arXiv 2605.04638,
    equation 4); ParaGrad and ExGrad are the same at the output head's weights, with and without the entropy weights
    (equation 5); HybridGrad mixes SemGrad and ParaGrad (equation 6). *Higher = more uncertain*, all of them.

    The model is left as it is: no hooks, no parameter gradients, no mode change.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        token_position: int | None = None,
        span: Span = "upper-half",
        reduction: Reduction = "mean",
        norm: Norm = "l1",
        tau: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        """Check the model and locate t*.

        Args:
            model: a decoder-only causal language model in evaluation mode.
            tokenizer: its tokenizer.
            token_position: t*, counted from the prompt's end (1 = last token). None: the first token of the generation
                prompt, found by probing the chat template.
            span: hidden states l the gradient is taken at, of 0 (embeddings) to L - 1. "upper-half": L - floor(L/2) to
                L - 1, as in the authors' code; "all": 0 to L - 1; or indices.
            reduction: "mean" over response tokens (the authors' code) or "sum" (the paper's text).
            norm: "l1", mean absolute entry, or "l2", root mean square.
            tau: temperature of HybridGrad's mixing weight e^(-mean entropy / tau), > 0.
            beta: weight of HybridGrad's ParaGrad term, >= 0.

        Raises:
            UnsupportedModelError: the model cannot be scored exactly, or not in its present state.
            ConfigurationError: a setting is out of range.
        """
        check_model(model)
        self.model = model
        self.tokenizer = tokenizer
        self.span = _layers(span, model.config.get_text_config(decoder=True).num_hidden_layers)
        if token_position is not None and token_position < 1:
            raise ConfigurationError(f"token_position={token_position}: expected 1 (last prompt token) or more.")
        if reduction not in ("mean", "sum") or norm not in ("l1", "l2"):
            raise ConfigurationError(
                f"reduction={reduction!r}, norm={norm!r}: expected 'mean' or 'sum', and 'l1' or 'l2'."
            )
        if not (tau > 0 and beta >= 0):
            raise ConfigurationError(f"tau={tau}, beta={beta}: expected tau > 0 and beta >= 0.")
        self.token_position = generation_prompt_position(tokenizer) if token_position is None else token_position
        self.reduction: Reduction = reduction
        self.norm: Norm = norm
        self.tau = tau
        self.beta = beta
        self._head = Head.of(model)

    def generate(self, prompts: Sequence[Sequence[int]], **settings: Any) -> list[Generation]:
        """Generate one response per prompt, all in one batch.

        Args:
            prompts: prompt ids, chat template and generation prompt included.
            settings: keywords of `model.generate`; what is not given is the model's own generation configuration.

        Raises:
            PromptTooLongError: a prompt with its answer does not fit into the model's context.
            ConfigurationError: a setting that gives several or no responses per prompt.
        """
        return generate(self.model, self.tokenizer, prompts, **settings)

    def score(self, generations: Sequence[Generation], *, unweighted: bool = False) -> list[Score]:
        """Score generations in the order given; any subset or mixture of calls of `generate` will do.

        Args:
            generations: what `generate` returned.
            unweighted: also compute `semgrad_unweighted`, SemGrad with w_t = 1.

        Raises:
            EmptyResponseError: a generation has no response tokens.
            TokenPositionError: t* is unknown or lies before a prompt's start.
        """
        scores: dict[int, Score] = {}
        groups: dict[int, list[int]] = {}
        for index, generation in enumerate(generations):
            groups.setdefault(id(generation.batch), []).append(index)
        for indices in groups.values():
            members = [generations[index] for index in indices]
            prompts = [generation.prompt_ids for generation in members]
            responses = [generation.response_ids for generation in members]
            rows = [generation.row for generation in members]
            found = self._score(prompts, responses, members[0].batch, rows, unweighted)
            scores.update(zip(indices, found, strict=True))
        return [scores[index] for index in range(len(generations))]

    def score_ids(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, unweighted: bool = False
    ) -> list[Score]:
        """Score responses from ids alone, as if they had just been generated; the numbers are those of `score`.

        Args:
            prompts: prompt ids, chat template and generation prompt included.
            responses: response ids, the end-of-turn token included where it was produced.
            unweighted: also compute `semgrad_unweighted`.
        """
        if len(prompts) != len(responses):
            raise ConfigurationError(
                f"{len(prompts)} prompts and {len(responses)} responses: expected as many of each."
            )
        return self._score(prompts, responses, None, range(len(prompts)), unweighted)

    def _score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        batch: GenerationBatch | None,
        rows: Sequence[int],
        unweighted: bool,
    ) -> list[Score]:
        if not prompts:
            return []
        check_scorable(self.model)
        self._check(prompts, responses)
        width = None if batch is None else batch.prompt_width
        with torch.inference_mode(False):  # tensors made inside it could not be differentiated
            measured = measure(
                self.model,
                self._head,
                Layout.of(prompts, responses, self._position(prompts), self.model.device, width),
                batch,
                rows,
                span=self.span,
                reduction=self.reduction,
                norm=self.norm,
                unweighted=unweighted,
            )
        return [self._record(measured, row, len(response)) for row, response in enumerate(responses)]

    def _check(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> None:
        limit = context_length(self.model)
        vocabulary = self.model.config.get_text_config(decoder=True).vocab_size
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if not response:
                raise EmptyResponseError(f"Response {index} has no tokens; there is nothing to score.")
            if limit is not None and len(prompt) + len(response) > limit:
                raise PromptTooLongError(
                    f"Sequence {index} has {len(prompt)} prompt and {len(response)} response tokens; the model's "
                    f"context holds {limit}. Shorten the prompt."
                )
            unknown = [token for token in (*prompt, *response) if not 0 <= token < vocabulary]
            if unknown:
                raise ConfigurationError(
                    f"Sequence {index} holds token {unknown[0]}; the model's vocabulary has {vocabulary}. Are the ids "
                    "from another tokenizer?"
                )

    def _record(self, measured: Measured, row: int, length: int) -> Score:
        log_probs = measured.terms.log_probs[row, :length].double()
        entropies = measured.terms.entropies[row, :length].double()
        layers, unweighted = measured.layers[row], measured.layers_unweighted
        semgrad, paragrad = float(layers.mean()), float(measured.paragrad[row])
        # Equation (6): the surer the model on average, the more the parameters' gradient counts.
        certain = math.exp(-float(entropies.mean()) / self.tau)
        return Score(
            semgrad=semgrad,
            paragrad=paragrad,
            exgrad=float(measured.exgrad[row]),
            hybridgrad=(1.0 - certain) * semgrad + self.beta * certain * paragrad,
            nll=-float(log_probs.sum()),
            mean_nll=-float(log_probs.mean()),
            mean_entropy=float(entropies.mean()),
            max_entropy=float(entropies.max()),
            length=length,
            path=measured.path,
            span=self.span,
            layers=tuple(layers.tolist()),
            semgrad_unweighted=None if unweighted is None else float(unweighted[row].mean()),
        )

    def _position(self, prompts: Sequence[Sequence[int]]) -> int:
        if self.token_position is None:
            raise TokenPositionError(
                "The chat template appends no generation prompt, so t* cannot be found from ids alone. "
                "Pass SemGradScorer(..., token_position=t), t counted from the prompt's end: the last token of the "
                "user's text."
            )
        for index, prompt in enumerate(prompts):
            if len(prompt) < self.token_position:
                raise TokenPositionError(
                    f"Prompt {index} has {len(prompt)} tokens, but t* is token {self.token_position} from the end. "
                    "Give the whole prompt, generation prompt included."
                )
        return self.token_position


def _layers(span: Span, count: int) -> tuple[int, ...]:
    """Resolve a span against the number of decoder layers L."""
    if span == "upper-half":
        return tuple(range(count - max(count // 2, 1), count))
    if span == "all":
        return tuple(range(count))
    if isinstance(span, str) or not span or not all(isinstance(layer, int) and 0 <= layer < count for layer in span):
        raise ConfigurationError(
            f"span={span!r}: expected 'upper-half', 'all', or layer indices from 0 (embeddings) to {count - 1}."
        )
    return tuple(sorted(set(span)))
