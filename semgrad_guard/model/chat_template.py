"""The chat template: from messages to ids, and where the prompt's meaning gathers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    text = _rendered(tokenizer, messages, add_generation_prompt, tools)
    if any(tool["function"]["name"] not in text for tool in tools):
        raise ConfigurationError(
            "The chat template does not show the tools to the model, so it cannot call them. "
            "Use a model that was trained to call tools, or set a tokenizer.chat_template that lists them."
        )
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ConfigurationError("The messages hold half of a surrogate pair, which is no character. Repair the text.")
    return _ids(tokenizer, text)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], answer: str, ends: Collection[int] = ()
) -> list[int]:
    """Encode an answer as the model would write it after these messages, its end of turn included.

    The template decides about blanks before the answer and about the token that ends it. What the template writes after
    that token belongs to the next turn. Where the template does not continue the prompt with the answer, the answer is
    encoded by itself, with the tokenizer's end token.

    Args:
        tokenizer: has the chat template.
        messages: the messages before the answer; none if only the answer's own text is known.
        answer: the answer's text.
        ends: ids that end a turn, beside the tokenizer's end token.

    Returns:
        The ids, empty for an answer without text.
    """
    if not answer.strip():
        return []
    end = tokenizer.eos_token_id
    known = {*ends, *([] if end is None else [end])}
    alone = [*_ids(tokenizer, answer), *([] if end is None else [end])]
    if not messages:
        return alone
    whole = [*messages, {"role": "assistant", "content": answer}]
    before, after = _rendered(tokenizer, messages, True), _rendered(tokenizer, whole, False)
    written = after.removeprefix(before)
    place = written.find(answer.strip())
    if not after.startswith(before) or place < 0:
        return alone
    prompt, complete = _ids(tokenizer, before), _ids(tokenizer, after)
    # Where the last token of the prompt would be another one before this answer, the prompt still ends as it ended when
    # the model was asked, and the rest is encoded by itself.
    rest = complete[len(prompt) :] if complete[: len(prompt)] == prompt else _ids(tokenizer, written)
    stop = next((index for index, token in enumerate(rest) if token in known), None)
    if stop is not None:
        return rest[: stop + 1]
    # The template ends a turn with text alone, such as an empty line, or with nothing.
    return [*_ids(tokenizer, written[: place + len(answer.strip())]), *([] if end is None else [end])]


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    add_generation_prompt: bool,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    if tokenizer.chat_template is None:
        raise TokenPositionError(
            "The tokenizer has no chat template, so messages cannot be turned into a prompt. "
            "Use an instruction-tuned model, or set tokenizer.chat_template."
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except TemplateError as error:
        raise ConfigurationError(f"The model's chat template does not take these messages: {error}") from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def semantic_position(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find t*, counted from the prompt's end (1 = last token), by the rule for a template without measurements.

    t* is the first token of the generation prompt; where the template has none, the last token of the user's text.

    Raises:
        TokenPositionError: there is no chat template.
        ConfigurationError: the template refuses a single user message.
    """
    return generation_prompt_position(tokenizer) or user_text_position(tokenizer)


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
