"""Generation: one call of `model.generate` for a batch of prompts, on ids, with nothing rendered twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.errors import ConfigurationError, PromptTooLongError
from semgrad_guard.model.boundary import Boundary
from semgrad_guard.records import FinishReason, Generation, GenerationBatch

_DEFAULT_NEW_TOKENS = 256  # where neither the call nor the model's configuration sets a limit


def context_length(model: PreTrainedModel) -> int | None:
    """Give the most tokens that the model's positions allow, or None where they are not limited."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    keep: tuple[int, int] | None = None,
    **settings: Any,
) -> list[Generation]:
    """Generate one response per prompt; prompts are padded on the left here, whatever the tokenizer's own side is.

    With `keep`, a layer and a number of prompt columns, the hidden states at that layer's input are kept from those
    columns on, so that the layers below need not be run again for scoring.

    Raises:
        PromptTooLongError: a prompt with the tokens to generate does not fit into the context.
        ConfigurationError: an empty prompt, or a setting that gives several responses per prompt.
    """
    if not prompts:
        return []
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigurationError(f"Prompt {index} has no tokens; expected the ids of a rendered chat template.")
    if settings.get("stop_strings") is not None:
        settings.setdefault("tokenizer", tokenizer)
    config = copy.deepcopy(settings.pop("generation_config", None) or model.generation_config)
    others = config.update(**settings)  # what is no generation setting: a streamer, processors, the tokenizer
    most = config.max_new_tokens or _DEFAULT_NEW_TOKENS
    if (config.num_return_sequences or 1) != 1:
        raise ConfigurationError(
            f"num_return_sequences={config.num_return_sequences}: expected 1. Repeat the prompt for several."
        )
    width = max(len(prompt) for prompt in prompts)
    _check_length(model, width, most)
    pad = _pad_id(tokenizer, config.pad_token_id)
    config.update(max_new_tokens=most, pad_token_id=pad, return_dict_in_generate=True)
    boundary = None if keep is None else Boundary(model, *keep)
    device, generator = model.device, cast(Any, model if boundary is None else boundary.model)
    with torch.inference_mode(False), torch.no_grad():  # a cache made in inference mode could not be scored on
        output = generator.generate(
            input_ids=torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
            generation_config=config,
            **others,
        )
    cache = output.get("past_key_values")
    reusable = isinstance(cache, Cache) and (config.num_beams or 1) == 1
    total = output.sequences.shape[1]
    batch = GenerationBatch(cache, width, total) if reusable else None
    if batch is not None and keep is not None and boundary is not None:
        batch = replace(batch, boundary=boundary.states(keep[1] + total - 1 - width), boundary_layer=keep[0])
    stoppable = bool(config.stop_strings or others.get("stopping_criteria"))
    ends = _end_ids(config.eos_token_id)
    generations = []
    for row, prompt in enumerate(prompts):
        response, finish = _trim(output.sequences[row, width:].tolist(), ends, pad, most, stoppable)
        text = str(tokenizer.decode(response, skip_special_tokens=True))
        generations.append(Generation(tuple(prompt), tuple(response), text, finish, batch, row))
    return generations


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


def _end_ids(configured: Any) -> set[int]:
    if configured is None:
        return set()
    return {int(token) for token in (configured if isinstance(configured, list | tuple) else [configured])}


def _trim(tokens: list[int], ends: set[int], pad: int, most: int, stoppable: bool) -> tuple[list[int], FinishReason]:
    """Cut a row after its end-of-turn token; one without was stopped by the limit, or by a stop string or criterion."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1], "stop"
    if not stoppable or (len(tokens) >= most and tokens[-1] != pad):
        return tokens, "length"
    while tokens and tokens[-1] == pad:
        tokens.pop()
    return tokens, "stop"
