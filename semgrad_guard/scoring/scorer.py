"""`SemGradScorer`: it generates with a local model and scores how uncertain each response is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import warn_of_untested_versions
from semgrad_guard.errors import ConfigurationError, EmptyResponseError, TokenPositionError
from semgrad_guard.model.chat_template import semantic_position
from semgrad_guard.model.check import check_model, check_tokenizer
from semgrad_guard.model.generate import check_sequences, generate
from semgrad_guard.model.load import revision, without_adapter_shell
from semgrad_guard.model.replay import Head, Layout
from semgrad_guard.model.text_spans import pieces, sentence_spans, token_spans
from semgrad_guard.records import Generation, LongScore, Score, SentenceScore, TokenUncertainty
from semgrad_guard.scoring import observers
from semgrad_guard.scoring.budget import Budget
from semgrad_guard.scoring.observers import observed
from semgrad_guard.scoring.semgrad import Pass, as_score, shares
from semgrad_guard.scoring.settings import ScoringSettings, gathered
from semgrad_guard.scoring.states import StateReading
from semgrad_guard.settings import unknown_name

TokenSpan = tuple[int, int] | Sequence[tuple[int, int]]


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
    """Say why the layers below the scored ones cannot be left out with this model; "" if they can.

    A few tokens are generated and scored both ways.
    """
    keep = scorer.keep
    if keep is None:
        return "the layers begin at the embeddings, or t* is not known beforehand: there is no layer to leave out"
    vocabulary = scorer.model.config.get_text_config(decoder=True).vocab_size
    prompts = [[1 + token % (vocabulary - 1) for token in range(length)] for length in (keep[1] + 2, keep[1] + 5)]
    settings: dict[str, Any] = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "do_sample": False}
    try:
        generations = generate(scorer.model, scorer.tokenizer, prompts, keep=keep, **settings)
        upper = scorer.score(generations)
    except Exception as error:  # a model built in a way that this was not made for
        return f"it fails on this model: {type(error).__name__}: {error}"
    if upper[0].path != "upper":
        return f"this model takes the path {upper[0].path!r}"
    plain = scorer.score(without_boundary(generations))
    tolerance = _TOLERANCES.get(scorer.model.dtype, _ROUGH)
    for one, other in zip(upper, plain, strict=True):
        for ours, theirs in zip(one.layers, other.layers, strict=True):
            if not abs(ours - theirs) <= tolerance * abs(theirs):
                return f"it gives other scores than the plain path: {ours:.6g} against {theirs:.6g}"
    return ""


def without_boundary(generations: Sequence[Generation]) -> list[Generation]:
    """Give the generations of one batch without their hidden states, as if they had not been kept."""
    batch = generations[0].batch
    bare = None if batch is None else replace(batch, boundary=None)
    return [replace(generation, batch=bare) for generation in generations]


_SETTINGS = (*ScoringSettings.model_fields, "scoring", "budget", "upper_replay")


class SemGradScorer:
    """Scores of a local model's responses, from one pass and without sampling.

    SemGrad is the mean absolute gradient of the entropy-weighted log-likelihood of the response with respect to the
    hidden states at the *semantic preserving token* t*, where the prompt's meaning gathers (arXiv 2605.04638, equation
    4). ParaGrad and ExGrad are the same at the output head's weights, with and without the entropy weights (equation
    5). HybridGrad mixes SemGrad and ParaGrad (equation 6). *Higher = more uncertain*, all of them.

    `scoring` holds the settings with the layers by index. The model stays as it is: no hooks, no parameter gradients,
    no mode change.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        budget: Budget | None = None,
        upper_replay: bool = False,
        **settings: Any,
    ) -> None:
        """Check the model and locate t*.

        Args:
            model: a decoder-only causal language model in evaluation mode.
            tokenizer: its tokenizer.
            budget: the most that one pass may take; a batch that would take more is refused. None: no limit.
            upper_replay: keep hidden states during generation, so that scoring need not run the layers below those of
                the settings. It is tried out at the first generation; where it does not give the plain path's scores it
                stays off, and `upper_replay_refusal` says why.
            settings: how scores are computed: `scoring`, a `ScoringSettings`, or its settings by their names, such as
                `token_position` and `layers`.

        Raises:
            UnsupportedModelError: the model cannot be scored exactly, or not in its present state.
            ConfigurationError: a setting is unknown, or has a wrong type or value.
        """
        settings = gathered(settings)
        for name in settings.keys() - {"scoring"}:
            raise ConfigurationError(unknown_name("SemGradScorer", name, _SETTINGS))
        scoring: ScoringSettings = settings["scoring"]
        model = without_adapter_shell(model)
        warn_of_untested_versions()
        check_model(model)
        check_tokenizer(model, tokenizer)
        position = scoring.token_position
        if position is None and tokenizer.chat_template is not None:
            position = semantic_position(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.scoring = scoring.resolved(model.config.get_text_config(decoder=True).num_hidden_layers, position)
        self.budget = budget
        self.revision = revision(model)
        self._head = Head.of(model)
        self._upper_replay = upper_replay

    @cached_property
    def upper_replay_refusal(self) -> str:
        """Why the lower layers are run again when scoring; "" where they are left out.

        The first use tries that out: it generates and scores a few tokens.
        """
        return refusal(self) if self._upper_replay else "it was not asked for"

    @property
    def token_position(self) -> int | None:
        """t*, counted from the prompt's end; None where only the user's text would tell."""
        return self.scoring.token_position

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden states that gradients are taken at, ascending."""
        return cast(tuple[int, ...], self.scoring.layers)

    def adjusted(self, **settings: Any) -> SemGradScorer:
        """Build a scorer of the same model with some settings changed."""
        present: dict[str, Any] = {"budget": self.budget, "upper_replay": self._upper_replay, "scoring": self.scoring}
        return SemGradScorer(self.model, self.tokenizer, **present | settings)

    def generate(self, prompts: Sequence[Sequence[int]], **settings: Any) -> list[Generation]:
        """Generate one response per prompt, all in one batch.

        Args:
            prompts: prompt ids, chat template and generation prompt included.
            settings: keywords of `model.generate`; the model's generation configuration holds for all others.

        Raises:
            PromptTooLongError: a prompt with its answer does not fit into the model's context.
            ConfigurationError: a setting that gives several or no responses per prompt.
        """
        keep = self.keep if self.upper_replay_refusal == "" else None
        return generate(self.model, self.tokenizer, prompts, keep=keep, **settings)

    @property
    def keep(self) -> tuple[int, int] | None:
        """The layer, and the last prompt columns, whose states upper-half replay needs; None if it has no use here."""
        return None if self.layers[0] == 0 or self.token_position is None else (self.layers[0], self.token_position)

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
        ordered = self._scored(generations, whole(generations) if spans is None else spans, parameters, (), {})
        return [only for (only,) in ordered] if spans is None else ordered

    def score_with_states(
        self,
        generations: Sequence[Generation],
        layers: Sequence[int],
        *,
        spans: Sequence[TokenSpan],
    ) -> tuple[list[Score], NDArray[np.float32]]:
        """Score one span of each generation, and give hidden states that the same pass has computed.

        Args:
            generations: what `generate` returned.
            layers: the hidden states to give, of the lowest layer with a gradient to the number of layers.
            spans: the part of each response to score.

        Returns:
            The scores, and the states that predict each span's first, last but one and last token,
            [generations, 3, len(layers), D]; empty without layers.

        Raises:
            What `score` raises.
        """
        taken: dict[int, NDArray[np.float32]] = {}
        ordered = self._scored(generations, [[span] for span in spans], True, layers, taken)
        none = np.empty((0, len(layers), 0), dtype=np.float32)
        return [only for (only,) in ordered], np.stack([taken.get(index, none) for index in range(len(generations))])

    def _scored(
        self,
        generations: Sequence[Generation],
        parts: Sequence[Sequence[TokenSpan]],
        parameters: bool,
        state_layers: Sequence[int],
        taken: dict[int, NDArray[np.float32]],
    ) -> list[list[Score]]:
        """Score generations batch by batch; the states of first spans are put into `taken`, by index."""
        if len(parts) != len(generations):
            raise ConfigurationError(
                f"{len(generations)} generations and {len(parts)} lists of spans: expected as many."
            )
        scores: dict[int, list[Score]] = {}
        groups: dict[int, list[int]] = {}
        for index, generation in enumerate(generations):
            groups.setdefault(id(generation.batch), []).append(index)
        for indices in groups.values():
            members = [generations[index] for index in indices]
            member_parts = [parts[index] for index in indices]
            states: list[NDArray[np.float32]] = []
            score = partial(self._score, members, member_parts, parameters, state_layers, states)
            member_scores = observed(members, score) if observers.listeners else score()
            scores.update(zip(indices, member_scores, strict=True))
            taken.update(zip(indices, states, strict=False))  # none were asked for, or one of each
        return [scores[index] for index in range(len(generations))]

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
        """Give the share of each response token, from token `start` on, in SemGrad of those.

        It takes one backward per token.
        """
        with torch.inference_mode(False):
            replayed = self._pass([generation])
            tokens = range(start, len(generation.response_ids))
            gradients = torch.stack([replayed.token_gradients(token)[0] for token in tokens])
        parts, terms = shares(gradients, self.scoring.norm), replayed.terms
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
        state_layers: Sequence[int],
        states: list[NDArray[np.float32]],
    ) -> list[list[Score]]:
        """Score generations of one batch: the k-th spans of all rows share a backward."""
        scores: list[list[Score]] = [[] for _ in generations]
        with torch.inference_mode(False):  # tensors made inside it could not be differentiated
            replayed = self._pass(generations)
            pieces = [
                [pieces_of(span, len(generation.response_ids)) for span in row_spans]
                for generation, row_spans in zip(generations, spans, strict=True)
            ]
            for place in range(max(map(len, pieces), default=0)):
                mask = torch.zeros_like(replayed.terms.entropies, dtype=torch.bool)
                rows = [row for row, row_pieces in enumerate(pieces) if place < len(row_pieces)]
                for row in rows:
                    for start, stop in pieces[row][place]:
                        mask[row, start:stop] = True
                measured = replayed.measure(mask, self.scoring, parameters=parameters)
                if state_layers and place == 0:
                    states.extend(replayed.states(mask, state_layers).cpu().numpy())
                components = _components(replayed, mask, self.scoring.states)
                for row in rows:
                    score = as_score(measured, row, self.scoring, self.layers)
                    scores[row].append(score.model_copy(update=components[row]) if components else score)
        return scores

    def _pass(self, generations: Sequence[Generation]) -> Pass:
        """Check generations of one batch and replay them."""
        prompts = [generation.prompt_ids for generation in generations]
        responses = [generation.response_ids for generation in generations]
        check_sequences(self.model, prompts, responses)
        batch = generations[0].batch
        width = None if batch is None else batch.prompt_width
        layout = Layout.of(prompts, responses, self._position(prompts), self.model.device, width)
        if self.budget is not None:
            self.budget.check(self.model, layout)
        rows = [generation.row for generation in generations]
        columns = self._position(prompts) if self.scoring.later else 1
        attention = self.scoring.attention
        return Pass(self.model, self._head, layout, batch, rows, self.layers, columns, attention=attention)

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


def _components(replayed: Pass, mask: torch.Tensor, reading: StateReading | None) -> list[dict[str, Any]]:
    """Give what is read off the hidden states of each row, as fields of its score; nothing without a reading."""
    if reading is None:
        return []
    states = replayed.states(mask, reading.layers).cpu().numpy()
    return [
        {"states": tuple(row.tolist()), "distance": float(distance)}
        for row, distance in zip(reading.project(states), reading.distance(states), strict=True)
    ]


def score_sentences(
    scorer: SemGradScorer,
    generations: Sequence[Generation],
    *,
    aggregate: Literal["max", "mean"] = "max",
    parameters: bool = True,
) -> list[LongScore]:
    """Score every sentence of each response by itself, all from one forward pass; each sentence costs one backward.

    Args:
        scorer: has generated them.
        generations: what `scorer.generate` returned.
        aggregate: how the sentences are read as one: by the most uncertain, or by their mean.
        parameters: also compute `paragrad`, `exgrad` and `hybridgrad`.

    Raises:
        EmptyResponseError: a response has no text.
    """
    sentences = [sentence_spans(generation.text) for generation in generations]
    for index, places in enumerate(sentences):
        if not places:
            raise EmptyResponseError(f"Response {index} has no text; there is no sentence to score.")
    tokens = [
        token_spans(scorer.tokenizer, generation.response_ids, generation.text, places)
        for generation, places in zip(generations, sentences, strict=True)
    ]
    scores = scorer.score(generations, spans=tokens, parameters=parameters)
    return [
        LongScore(
            sentences=tuple(
                SentenceScore(text=generation.text[slice(*place)], tokens=span, score=score)
                for place, span, score in zip(places, spans, sentence_scores, strict=True)
            ),
            aggregate=aggregate,
        )
        for generation, places, spans, sentence_scores in zip(generations, sentences, tokens, scores, strict=True)
    ]
