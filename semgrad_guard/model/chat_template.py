"""The chat template: from messages to ids, and where the prompt's meaning gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from semgrad_guard.errors import ConfigurationError, TokenPositionError

_ANSWER = "Certainly"  # plain text that no template writes by itself


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[dict[str, Any]] = (),
) -> list[int]:
    """Apply the chat template once and give ids; no special token is added a second time.

    Raises:
        TokenPositionError: there is no chat template.
        ConfigurationError: tools are given, and the template has no place for them; it refuses the messages; or their
            text cannot be encoded.
    """
    if tokenizer.chat_template is None:
        raise TokenPositionError(
            "The tokenizer has no chat template, so messages cannot be turned into a prompt. "
            "Use an instruction-tuned model, or set tokenizer.chat_template."
        )
    try:
        text = str(
            tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except TemplateError as error:
        raise ConfigurationError(f"The model's chat template does not take these messages: {error}") from error
    if any(tool["function"]["name"] not in text for tool in tools):
        raise ConfigurationError(
            "The chat template does not show the tools to the model, so it cannot call them. "
            "Use a model that was trained to call tools, or set a tokenizer.chat_template that lists them."
        )
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ConfigurationError("The messages hold half of a surrogate pair, which is no character. Repair the text.")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def generation_prompt_position(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the first token of the generation prompt, counted from the prompt's end (1 = last token).

    None where the template appends nothing, or there is no template.
    """
    if tokenizer.chat_template is None:
        return None
    probe = [{"role": "user", "content": "Hello"}]
    bare = encode_chat(tokenizer, probe, add_generation_prompt=False)
    complete = encode_chat(tokenizer, probe)
    if complete[: len(bare)] != bare or len(complete) == len(bare):
        return None
    return len(complete) - len(bare)


def user_text_position(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find the last token of the user's text, from the prompt's end: the rule for an empty generation prompt."""
    first, second = (
        encode_chat(tokenizer, [{"role": "user", "content": text}]) for text in ("Is it red or blue?", "Count 1 2 3")
    )
    common = 0
    while common < min(len(first), len(second)) and first[-1 - common] == second[-1 - common]:
        common += 1
    return common + 1


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the control token that the template writes after an answer; None where it writes none, or has no answers."""
    if tokenizer.chat_template is None:
        return None
    probe = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    except Exception:  # the template is foreign code: it raises what it likes
        return None
    _, answer, rest = text.rpartition(_ANSWER)
    ids = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"] if answer else []
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else None
