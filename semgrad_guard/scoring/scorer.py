"""`SemGradScorer`: generate with a local model, then say how uncertain each response was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import warn_of_untested_versions
from semgrad_guard.errors import ConfigurationError, EmptyResponseError, TokenPositionError
from semgrad_guard.model.chat_template import semantic_position
from semgrad_guard.model.check import check_model, check_sequences, check_tokenizer
from semgrad_guard.model.generate import generate
from semgrad_guard.model.load import without_adapter_shell
from semgrad_guard.model.replay import Head, Layout
from semgrad_guard.model.text_spans import pieces
from semgrad_guard.records import Generation, Score, TokenUncertainty
from semgrad_guard.scoring.budget import Budget
from semgrad_guard.scoring.observers import observed
from semgrad_guard.scoring.semgrad import Norm, Pass, Reduction, as_score, shares

Span = Literal["upper-half", "all"] | Sequence[int]
TokenSpan = tuple[int, int] | Sequence[tuple[int, int]]


def resolved_span(span: Span, count: int) -> tuple[int, ...]:
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


def whole(generations: Sequence[Generation]) -> list[list[TokenSpan]]:
    """Give each generation one span: its whole response."""
    return [[(0, len(generation.response_ids))] for generation in generations]


def pieces_of(span: TokenSpan, length: int) -> list[tuple[int, int]]:
    """Give the (start, stop) pairs of a span, checked against the response's length."""
    pairs = cast(list[tuple[int, int]], [span] if span and isinstance(span[0], int) else list(span))
    for start, stop in pairs:
        if not 0 <= start <= stop <= length:
            raise ConfigurationError(f"The span ({start}, {stop}) does not lie in a response of {length} tokens.")
    if all(start == stop for start, stop in pairs):
        raise EmptyResponseError(f"The span {span} has no tokens; there is nothing to score.")
    return pairs


_TOKENS = 4
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}  # in half precision a batch of another shape rounds otherwise
_ROUGH = 0.05


def refusal(scorer: SemGradScorer) -> str:
    """Say why the layers below the span cannot be left out when this model is scored; empty if they can.

    A few tokens are generated and scored both ways.
    """
    keep = scorer.keep
    if keep is None:
        return "the span begins at the embeddings, or t* is not known beforehand: there is no layer to leave out"
    vocabulary = scorer.model.config.get_text_config(decoder=True).vocab_size
    prompts = [[1 + token % (vocabulary - 1) for token in range(length)] for length in (keep[1] + 2, keep[1] + 5)]
    settings: dict[str, Any] = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "do_sample": False}
    try:
        kept = generate(scorer.model, scorer.tokenizer, prompts, keep=keep, **settings)
        upper = scorer.score(kept)
    except Exception as error:  # a model built in a way that this was not made for
        return f"it fails on this model: {type(error).__name__}: {error}"
    if upper[0].path != "upper":
        return f"this model takes the path {upper[0].path!r}"
    plain = scorer.score(without_boundary(kept))
    tolerance = _TOLERANCES.get(scorer.model.dtype, _ROUGH)
    for one, other in zip(upper, plain, strict=True):
        for ours, theirs in zip(one.layers, other.layers, strict=True):
            if not abs(ours - theirs) <= tolerance * abs(theirs):
                return f"it gives other scores than the plain path: {ours:.6g} against {theirs:.6g}"
    return ""


def without_boundary(generations: Sequence[Generation]) -> list[Generation]:
    """Give the generations of one batch as if no hidden states had been kept."""
    batch = generations[0].batch
    bare = None if batch is None else replace(batch, boundary=None)
    return [replace(generation, batch=bare) for generation in generations]


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
        unweighted: bool = False,
        later: bool = False,
        budget: Budget | None = None,
        upper_replay: bool = False,
    ) -> None:
        """Check the model and locate t*.

        Args:
            model: a decoder-only causal language model in evaluation mode.
            tokenizer: its tokenizer.
            token_position: t*, counted from the prompt's end (1 = last token). None: the first token of the generation
                prompt, or the last token of the user's text where the chat template has no generation prompt.
            span: hidden states l the gradient is taken at, of 0 (embeddings) to L - 1. "upper-half": L - floor(L/2) to
                L - 1, as in the authors' code; "all": 0 to L - 1; or indices.
            reduction: "mean" over response tokens (the authors' code) or "sum" (the paper's text).
            norm: "l1", mean absolute entry, or "l2", root mean square.
            tau: temperature of HybridGrad's mixing weight e^(-mean entropy / tau), > 0.
            beta: weight of HybridGrad's ParaGrad term, >= 0.
            unweighted: also compute SemGrad with w_t = 1, for another backward.
            later: also give the gradients at the prompt tokens after t*, which come with the same backward.
            budget: the most that one pass may take; a batch that would take more is refused. None: no limit.
            upper_replay: keep hidden states during generation, so that scoring need not run the layers below the span.
                Where it does not give the plain path's scores it stays off, and `upper_replay_refusal` says why.

        Raises:
            UnsupportedModelError: the model cannot be scored exactly, or not in its present state.
            ConfigurationError: a setting is out of range.
        """
        self._settings = {name: value for name, value in locals().items() if name != "self"}
        model = without_adapter_shell(model)
        warn_of_untested_versions()
        check_model(model)
        check_tokenizer(model, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.span = resolved_span(span, model.config.get_text_config(decoder=True).num_hidden_layers)
        if token_position is not None and token_position < 1:
            raise ConfigurationError(f"token_position={token_position}: expected 1 (last prompt token) or more.")
        if reduction not in ("mean", "sum") or norm not in ("l1", "l2"):
            raise ConfigurationError(
                f"reduction={reduction!r}, norm={norm!r}: expected 'mean' or 'sum', and 'l1' or 'l2'."
            )
        if not (tau > 0 and beta >= 0):
            raise ConfigurationError(f"tau={tau}, beta={beta}: expected tau > 0 and beta >= 0.")
        if token_position is None and tokenizer.chat_template is not None:
            token_position = semantic_position(tokenizer)
        self.token_position = token_position
        self.reduction: Reduction = reduction
        self.norm: Norm = norm
        self.tau = tau
        self.beta = beta
        self.unweighted = unweighted
        self.later = later
        self.budget = budget or Budget()
        self._head = Head.of(model)
        self.upper_replay_refusal = refusal(self) if upper_replay else "it was not asked for"

    def adjusted(self, **settings: Any) -> SemGradScorer:
        """Build a scorer of the same model with some settings changed."""
        return SemGradScorer(**(self._settings | settings))

    def generate(self, prompts: Sequence[Sequence[int]], **settings: Any) -> list[Generation]:
        """Generate one response per prompt, all in one batch.

        Args:
            prompts: prompt ids, chat template and generation prompt included.
            settings: keywords of `model.generate`; what is not given is the model's own generation configuration.

        Raises:
            PromptTooLongError: a prompt with its answer does not fit into the model's context.
            ConfigurationError: a setting that gives several or no responses per prompt.
        """
        keep = self.keep if self.upper_replay_refusal == "" else None
        return generate(self.model, self.tokenizer, prompts, keep=keep, **settings)

    @property
    def keep(self) -> tuple[int, int] | None:
        """The layer, and the last prompt columns, whose states upper-half replay keeps; None if there are none."""
        return None if self.span[0] == 0 or self.token_position is None else (self.span[0], self.token_position)

    @overload
    def score(
        self,
        generations: Sequence[Generation],
        *,
        spans: None = None,
        parameters: bool = True,
    ) -> list[Score]: ...

    @overload
    def score(
        self,
        generations: Sequence[Generation],
        *,
        spans: Sequence[Sequence[TokenSpan]],
        parameters: bool = True,
    ) -> list[list[Score]]: ...

    def score(
        self,
        generations: Sequence[Generation],
        *,
        spans: Sequence[Sequence[TokenSpan]] | None = None,
        parameters: bool = True,
    ) -> list[Score] | list[list[Score]]:
        """Score generations in the order given; any subset or mixture of calls of `generate` will do.

        Args:
            generations: what `generate` returned.
            spans: for each generation the parts of its response to score each by itself, as (start, stop) in response
                tokens: sentences, claims, arguments. A part in several pieces, such as a tool call without its
                punctuation, is a list of pairs. Parts share one forward pass; each costs one backward.
            parameters: also compute what is taken at the output head's weights: `paragrad`, `exgrad` and `hybridgrad`.

        Returns:
            A score per generation; with `spans`, a list of scores per generation, one for each of its spans.

        Raises:
            EmptyResponseError: a generation has no response tokens, or a span has none.
            TokenPositionError: t* is unknown or lies before a prompt's start.
            BudgetError: it would take more tokens or memory than the budget allows.
            ConfigurationError: a span reaches beyond its response, or there are not as many lists as generations.
        """
        asked = whole(generations) if spans is None else spans
        if len(asked) != len(generations):
            raise ConfigurationError(
                f"{len(generations)} generations and {len(asked)} lists of spans: expected as many."
            )
        scores: dict[int, list[Score]] = {}
        groups: dict[int, list[int]] = {}
        for index, generation in enumerate(generations):
            groups.setdefault(id(generation.batch), []).append(index)
        for indices in groups.values():
            members = [generations[index] for index in indices]
            own = [asked[index] for index in indices]
            found = observed(members, partial(self._score, members, own, parameters))
            scores.update(zip(indices, found, strict=True))
        ordered = [scores[index] for index in range(len(generations))]
        return [only for (only,) in ordered] if spans is None else ordered

    def score_ids(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        parameters: bool = True,
    ) -> list[Score]:
        """Score responses from ids alone, as if they had just been generated; the numbers are those of `score`.

        Args:
            prompts: prompt ids, chat template and generation prompt included.
            responses: response ids, the end-of-turn token included where it was produced.
            parameters: also compute what is taken at the output head's weights.
        """
        if len(prompts) != len(responses):
            raise ConfigurationError(
                f"{len(prompts)} prompts and {len(responses)} responses: expected as many of each."
            )
        pairs = zip(prompts, responses, strict=True)
        generations = [Generation(tuple(prompt), tuple(response), "", "stop") for prompt, response in pairs]
        return self.score(generations, parameters=parameters)

    def attribute(self, generation: Generation, start: int = 0) -> list[TokenUncertainty]:
        """Tell where the doubt sits: the share of each response token, from token `start` on, in SemGrad of those.

        Costs one backward per token, so ask for it where somebody is going to look.
        """
        with torch.inference_mode(False):
            replayed = self._pass([generation])
            tokens = range(start, len(generation.response_ids))
            gradients = torch.stack([replayed.token_gradients(token)[0] for token in tokens])
        parts, terms = shares(gradients, self.norm), replayed.terms
        texts = pieces(self.tokenizer, generation.response_ids[start:])
        return [
            TokenUncertainty(
                token=generation.response_ids[token],
                text=text,
                log_prob=float(terms.log_probs[0, token]),
                entropy=float(terms.entropies[0, token]),
                share=float(parts[token - start]),
            )
            for token, text in zip(tokens, texts, strict=True)
        ]

    def _score(
        self,
        generations: Sequence[Generation],
        spans: Sequence[Sequence[TokenSpan]],
        parameters: bool,
    ) -> list[list[Score]]:
        """Score generations of one batch: the k-th spans of all rows share a backward."""
        scores: list[list[Score]] = [[] for _ in generations]
        with torch.inference_mode(False):  # tensors made inside it could not be differentiated
            replayed = self._pass(generations)
            pieces = [
                [pieces_of(span, len(generation.response_ids)) for span in own]
                for generation, own in zip(generations, spans, strict=True)
            ]
            for place in range(max(map(len, pieces), default=0)):
                mask = torch.zeros_like(replayed.terms.entropies, dtype=torch.bool)
                rows = [row for row, own in enumerate(pieces) if place < len(own)]
                for row in rows:
                    for start, stop in pieces[row][place]:
                        mask[row, start:stop] = True
                measured = replayed.measure(
                    mask, reduction=self.reduction, norm=self.norm, unweighted=self.unweighted, parameters=parameters
                )
                for row in rows:
                    scores[row].append(as_score(measured, row, self.span, tau=self.tau, beta=self.beta))
        return scores

    def _pass(self, generations: Sequence[Generation]) -> Pass:
        """Check generations of one batch and replay them."""
        prompts = [generation.prompt_ids for generation in generations]
        responses = [generation.response_ids for generation in generations]
        check_sequences(self.model, prompts, responses)
        batch = generations[0].batch
        width = None if batch is None else batch.prompt_width
        layout = Layout.of(prompts, responses, self._position(prompts), self.model.device, width)
        self.budget.check(self.model, layout)
        rows = [generation.row for generation in generations]
        columns = self._position(prompts) if self.later else 1
        return Pass(self.model, self._head, layout, batch, rows, self.span, columns)

    def _position(self, prompts: Sequence[Sequence[int]]) -> int:
        if self.token_position is None:
            raise TokenPositionError(
                "The tokenizer has no chat template, so t* cannot be found from ids alone. "
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
