"""Generation: one call of `model.generate` for a batch of prompts, on ids; no prompt is rendered twice."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard._compat import generated_cache
from semgrad_guard.errors import ConfigurationError, EmptyResponseError, PromptTooLongError, UnsupportedModelError
from semgrad_guard.model.replay import Boundary
from semgrad_guard.records import FinishReason, Generation, GenerationBatch, TokenLogProb
from semgrad_guard.settings import unknown_name

_NAMES = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))
# What no error is blamed on: the package makes these settings itself, or has checked them.
_CHECKED = {"max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "stop_strings", "tokenizer", "streamer"}
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "typical_p": 1.0, "min_p": None}
_DEFAULT_NEW_TOKENS = 256  # where neither the call nor the model's configuration sets a limit


def context_length(model: PreTrainedModel) -> int | None:
    """Give the most tokens that the model's positions allow, or None where they are not limited."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_prompt(model: PreTrainedModel, prompt: Sequence[int], settings: dict[str, Any]) -> None:
    """Refuse a prompt that leaves no room for an answer, before it shares a batch with others.

    Raises:
        PromptTooLongError: with the tokens to generate it does not fit into the context.
    """
    _check_length(model, len(prompt), _most(model, settings))


def check_scorable(model: PreTrainedModel) -> None:
    """Refuse training mode, in which dropout and gradient checkpointing change what is computed."""
    if model.training:
        raise UnsupportedModelError(f"{type(model).__name__} is in training mode. Call model.eval() before scoring.")


def check_sequences(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> None:
    """Refuse what cannot be scored with this model: an empty response, too many tokens, or unknown ids."""
    check_scorable(model)
    limit = context_length(model)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
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


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    keep: tuple[int, int] | None = None,
    top_logprobs: int | None = None,
    seed: int | None = None,
    **settings: Any,
) -> list[Generation]:
    """Generate one response per prompt; prompts are padded on the left, whatever the tokenizer's own side is.

    `keep` names a layer and a number of prompt columns. The hidden states at that layer's input are then kept from
    those columns on, so that scoring need not run the layers below. `top_logprobs`, which may be 0, adds to each
    response token its log-probability under the unwarped distribution, and that many of the likeliest tokens. A `seed`
    repeats what is sampled, for the same prompts together, and leaves torch's own generators alone.

    Raises:
        PromptTooLongError: a prompt with the tokens to generate does not fit into the context.
        ConfigurationError: an empty prompt; a setting that is unknown or wrong, or gives several responses per prompt;
            log-probabilities of beams.
    """
    if not prompts:
        return []
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigurationError(f"Prompt {index} has no tokens; expected the ids of a rendered chat template.")
    if settings.get("max_length") is not None:
        raise ConfigurationError(
            f"max_length={settings['max_length']} counts the prompt, which is not as long in every row; expected "
            "max_new_tokens, or max_tokens, which count the response."
        )
    if settings.get("stop_strings") is not None:
        settings.setdefault("tokenizer", tokenizer)
    most = _most(model, settings)
    config = copy.deepcopy(settings.pop("generation_config", None) or model.generation_config)
    if (several := settings.get("num_return_sequences") or config.num_return_sequences or 1) != 1:
        raise ConfigurationError(f"num_return_sequences={several}: expected 1. Repeat the prompt for several.")
    with _blamed_on(settings):
        extras = config.update(**settings)  # what is no generation setting: a streamer, processors, the tokenizer
    _check_names(model, extras)
    beams = config.num_beams or 1
    if top_logprobs is not None and beams > 1:
        raise ConfigurationError(f"logprobs with num_beams={beams}: expected 1 beam. Leave logprobs or num_beams out.")
    width = max(len(prompt) for prompt in prompts)
    _check_length(model, width, most)
    pad = _pad_id(tokenizer, config.pad_token_id)
    config.max_new_tokens, config.pad_token_id = most, pad
    config.return_dict_in_generate, config.output_logits = True, top_logprobs is not None
    if not config.do_sample:  # transformers warns of what the model's own configuration says of sampling
        for name, neutral in _NEUTRAL.items():
            setattr(config, name, neutral)
    boundary = None if keep is None else Boundary(model, *keep)
    device, generator = model.device, cast(Any, model if boundary is None else boundary.model)
    # Inference mode's cache has no gradients.
    with torch.inference_mode(False), torch.no_grad(), _seeded(seed, model), _blamed_on(settings):
        output = generator.generate(
            input_ids=torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
            generation_config=config,
            **extras,
        )
    cache = generated_cache(output)
    total = output.sequences.shape[1]
    batch = GenerationBatch(cache, width, total) if cache is not None and beams == 1 else None
    if batch is not None and keep is not None and boundary is not None:
        batch = replace(batch, boundary=boundary.states(keep[1] + total - 1 - width), boundary_layer=keep[0])
    ends = _Ends.of(tokenizer, config, extras, padding=pad if len(prompts) * beams > 1 else None)
    generations = []
    for row, prompt in enumerate(prompts):
        response, finish = ends.trim(output.sequences[row, width:].tolist())
        text = str(tokenizer.decode(response, skip_special_tokens=True))
        generation = Generation(tuple(prompt), tuple(response), text, finish, batch, row)
        if top_logprobs is not None:
            logits = [step[row] for step in output.logits[: len(response)]]
            generation = replace(generation, log_probs=_log_probs(logits, response, top_logprobs))
        generations.append(generation)
    return generations


@contextmanager
def _seeded(seed: int | None, model: PreTrainedModel) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _blamed_on(settings: dict[str, Any]) -> Iterator[None]:
    """Name the settings that transformers alone checks, where it fails over one."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        names = sorted(settings.keys() - _CHECKED)
        if not names:
            raise
        raise ConfigurationError(
            f"transformers cannot generate with these settings ({', '.join(names)}): {type(error).__name__}: {error}"
        ) from error


def _check_names(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Refuse a setting that neither `model.generate` nor the model takes."""
    known = {"tokenizer"}
    for method in (model.generate, model.forward):
        known |= inspect.signature(cast(Any, method)).parameters.keys()
    for name in settings:
        if name not in known:
            raise ConfigurationError(unknown_name("The generation", name, ["max_new_tokens", "seed"], _NAMES))


def _most(model: PreTrainedModel, settings: dict[str, Any]) -> int:
    """Give the limit of new tokens."""
    config = settings.get("generation_config") or model.generation_config
    return settings.get("max_new_tokens", config.max_new_tokens) or _DEFAULT_NEW_TOKENS


def _log_probs(logits: Sequence[Tensor], response: Sequence[int], most: int) -> tuple[TokenLogProb, ...]:
    """Read each token's log-probability, in nats, and those of the likeliest tokens there."""
    log_probs = []
    for token, row in zip(response, logits, strict=True):
        log_p = torch.log_softmax(row.float(), dim=-1)
        values, ids = log_p.topk(min(most, len(log_p)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        log_probs.append(TokenLogProb(token, float(log_p[token]), top))
    return tuple(log_probs)


def _check_length(model: PreTrainedModel, width: int, new_tokens: int) -> None:
    limit = context_length(model)
    if limit is not None and width + new_tokens > limit:
        raise PromptTooLongError(
            f"The prompt has {width} tokens and up to {new_tokens} are to be generated; the model's context holds "
            f"{limit}. Shorten the prompt or lower max_new_tokens."
        )


def _pad_id(tokenizer: PreTrainedTokenizerBase, configured: int | None) -> int:
    for candidate in (configured, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def end_ids(config: GenerationConfig | None) -> set[int]:
    """Give the ids that end a response."""
    configured = None if config is None else config.eos_token_id
    if configured is None:
        return set()
    return {int(token) for token in (configured if isinstance(configured, list | tuple) else [configured])}


@dataclass(frozen=True)
class _Ends:
    """Where a row of the output ends: at an end-of-turn token, where something else stopped it, or at the limit.

    `padding` fills up rows of a batch that ended before the others. It may be an end-of-turn token itself; a row that
    holds a stop text by then did not write it. Where time is limited (`timed`), a row that is not known to have ended
    was cut off.
    """

    tokenizer: PreTrainedTokenizerBase
    ids: set[int]
    padding: int | None
    most: int
    marks: Sequence[str]
    criteria: bool
    timed: bool

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        config: GenerationConfig,
        extras: dict[str, Any],
        *,
        padding: int | None,
    ) -> _Ends:
        marks = config.stop_strings or ()
        return cls(
            tokenizer,
            end_ids(config),
            padding,
            cast(int, config.max_new_tokens),
            [marks] if isinstance(marks, str) else marks,
            bool(extras.get("stopping_criteria")) and config.max_time is None,
            config.max_time is not None,
        )

    def trim(self, tokens: list[int]) -> tuple[list[int], FinishReason]:
        """Cut padding and later text off a response's end, and say why it ended."""
        for index, token in enumerate(tokens):
            if token in self.ids:
                stopped = token == self.padding and self._holds_mark(tokens[:index])
                return tokens[: index + (not stopped)], "stop"
        trimmed = list(tokens)
        while trimmed and trimmed[-1] == self.padding:
            trimmed.pop()
        if len(trimmed) < len(tokens) and (self.criteria or self._holds_mark(trimmed)):
            return trimmed, "stop"
        ended = self.criteria or (self._holds_mark(tokens) if self.timed else bool(self.marks))
        return tokens, "stop" if ended and len(tokens) < self.most else "length"

    def _holds_mark(self, tokens: list[int]) -> bool:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True)) if self.marks else ""
        return any(mark in text for mark in self.marks)
