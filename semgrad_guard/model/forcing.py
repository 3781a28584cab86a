"""Forced tool calls: the call's skeleton is written for the model, and the model fills in the values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.errors import ConfigurationError

Slot = Literal["string", "integer"]
_SENTINEL = 918_273_000  # numbers and words that no schema holds, to find the places of the values again
_LONGEST_VALUE = 64  # tokens
_CLOSING = ('"', "\\", "\n", "}", "</", "tool_call")


class Skeleton(LogitsProcessor):
    """Lets fixed pieces of text through and, between them, values: a string ends where the model would close it.

    At every step, exactly the tokens that keep the call readable are left. It serves one row at a time.
    """

    def __init__(
        self,
        pieces: Sequence[Sequence[int]],
        slots: Sequence[Slot],
        prompt_width: int,
        quotes: Tensor,
        digits: Tensor,
    ) -> None:
        """Force `pieces[0]`, a value for `slots[0]`, `pieces[1]` and so on behind a prompt of that many columns.

        `quotes` and `digits`, [V], mark the tokens that would close a string and those made of digits alone.
        """
        self._pieces, self._slots, self._width = [list(piece) for piece in pieces], list(slots), prompt_width
        self._quotes, self._digits = quotes, digits
        self._piece, self._piece_start = 0, 0  # the piece being written, and the response column it began at
        self._value_at: int | None = None  # the column the present value began at

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Rule out every token that does not fit."""
        place = input_ids.shape[1] - self._width
        if self._value_at is not None:
            if self._goes_on(place - self._value_at, scores):
                return scores
            self._piece, self._piece_start, self._value_at = self._piece + 1, place, None
        piece = self._pieces[self._piece]
        if place - self._piece_start < len(piece):
            return _only(scores, piece[place - self._piece_start])
        if self._piece == len(self._slots):
            return scores  # written out
        self._value_at = place
        self._goes_on(0, scores)
        return scores

    def _goes_on(self, length: int, scores: torch.FloatTensor) -> bool:
        """Restrict the tokens to those of a value; False where the value is complete."""
        ruled_out = self._quotes if self._slots[self._piece] == "string" else ~self._digits
        best = int(scores[0].argmax())
        if (length and bool(ruled_out[best])) or length >= _LONGEST_VALUE:
            return False
        scores[:, ruled_out] = -torch.inf
        return True


class RowByRow(LogitsProcessor):
    """Applies to each row of a batch its own processor, which sees the row without the padding on its left."""

    def __init__(self, processors: Sequence[LogitsProcessor | None], lengths: Sequence[int]) -> None:
        """Take the processors of the rows, and the lengths of their prompts."""
        # A processor counts how far it is: a copy begins anew.
        self._rows = [None if processor is None else copy.copy(processor) for processor in processors]
        self._paddings = [max(lengths) - length for length in lengths]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Rule out in each row every token that does not fit there."""
        allowed = scores.clone()
        width = len(scores) // len(self._rows)  # several beams of a row lie together
        for row, (processor, padding) in enumerate(zip(self._rows, self._paddings, strict=True)):
            if processor is not None:
                beams = slice(row * width, (row + 1) * width)
                allowed[beams] = processor(cast(torch.LongTensor, input_ids[beams, padding:]), allowed[beams])
        return cast(torch.FloatTensor, allowed)


class ForcedBeginning(LogitsProcessor):
    """Lets only the given tokens through at the beginning of a response, one after the other."""

    def __init__(self, ids: Sequence[int], prompt_width: int) -> None:
        """Force `ids` behind a prompt of that many columns."""
        self._ids, self._width = list(ids), prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Rule out every other token while the beginning lasts."""
        place = input_ids.shape[1] - self._width
        return _only(scores, self._ids[place]) if place < len(self._ids) else scores


def forced_call(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    name: str | None,
    prompt: Sequence[int],
) -> LogitsProcessor:
    """Force a call of a tool; None stands for the tool whose name the model finds likeliest.

    A call whose required arguments are all strings and integers is sure to be readable and complete. Of other calls
    only the beginning is forced.

    Raises:
        ConfigurationError: the template does not write tool calls.
    """
    name = name or _likeliest(model, tokenizer, messages, tools, prompt)
    function = next(tool["function"] for tool in tools if tool["function"]["name"] == name)
    schema = function.get("parameters") or {}
    required = {key: schema.get("properties", {}).get(key, {}).get("type") for key in schema.get("required", ())}
    simple = all(kind in ("string", "integer") for kind in required.values())
    sentinels: dict[str, str | int] = {
        key: _SENTINEL + place if kind == "integer" else f"x{_SENTINEL + place}x"
        for place, (key, kind) in enumerate(required.items() if simple else ())
    }
    text = _written(tokenizer, messages, tools, function["name"], sentinels)
    if not simple:
        return ForcedBeginning(_ids(tokenizer, text[: text.index(name) + len(name)]), len(prompt))
    pieces, rest = [], text
    for sentinel in sentinels.values():
        before, _, rest = rest.partition(str(sentinel))
        number = isinstance(sentinel, int)  # its first token may bring the blank before it
        pieces.append(_ids(tokenizer, before.rstrip()) if number else _open_ended(tokenizer, before))
    last = _ids(tokenizer, rest)
    if tokenizer.eos_token_id in last:
        last = last[: last.index(tokenizer.eos_token_id) + 1]
    quotes, digits = _kinds_of_tokens(tokenizer)
    slots = [cast(Slot, kind) for kind in required.values()]
    return Skeleton([*pieces, last], slots, len(prompt), quotes.to(model.device), digits.to(model.device))


def _likeliest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    prompt: Sequence[int],
) -> str:
    """Give the tool whose call begins likeliest, token by token on average."""
    names = [str(tool["function"]["name"]) for tool in tools]
    if len(names) == 1:
        return names[0]
    averages = []
    for name in names:
        text = _written(tokenizer, messages, tools, name, {})
        ids = _ids(tokenizer, text[: text.index(name) + len(name)])
        with torch.no_grad():
            whole = torch.tensor([[*prompt, *ids]], device=model.device)
            logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1]
        log_p = torch.log_softmax(logits.float(), dim=-1)
        averages.append(float(log_p.gather(-1, whole[0, len(prompt) :, None]).mean()))
    return names[max(range(len(names)), key=averages.__getitem__)]


def _written(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    name: str,
    arguments: dict[str, str | int],
) -> str:
    """Give what the template writes behind the prompt for a call."""
    function = {"name": name, "arguments": arguments}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}

    def rendered(turns: list[dict[str, Any]], begin: bool) -> str:
        return str(tokenizer.apply_chat_template(turns, tools=list(tools), tokenize=False, add_generation_prompt=begin))

    prompt, whole = rendered(list(messages), True), rendered([*messages, call], False)
    answer = whole.removeprefix(prompt)
    if answer == whole or name not in answer or any(str(value) not in answer for value in arguments.values()):
        raise ConfigurationError(
            "The chat template does not write tool calls as a continuation of the prompt, so that none can be forced. "
            "Leave tool_choice out."
        )
    return answer


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _open_ended(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize a text that goes on with a word, without the word."""
    ids = _ids(tokenizer, text + "x")
    return ids[:-1] if str(tokenizer.decode(ids[:-1])).startswith(text) else _ids(tokenizer, text)


@lru_cache(maxsize=8)
def _kinds_of_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Mark the tokens that would end or spoil a value, or the call around it, and those made of digits alone."""
    texts = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    quotes = [token in special or any(sign in text for sign in _CLOSING) for token, text in enumerate(texts)]
    return torch.tensor(quotes), torch.tensor([text.strip().isdecimal() for text in texts])


def _only(scores: torch.FloatTensor, token: int) -> torch.FloatTensor:
    only = torch.full_like(scores, -torch.inf)
    only[:, token] = 0.0
    return cast(torch.FloatTensor, only)
