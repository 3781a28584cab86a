"""A response taken apart: reasoning, answer, the tool calls in the answer, and the characters that hold each."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from semgrad_guard.model.text_spans import TextSpan
from semgrad_guard.records import Failure, Generation

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLANK = re.compile(r"\s*")


def _finite(number: str) -> float:
    """Read a number, and refuse one that JSON has no word for, such as NaN, Infinity and 1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no finite number")
    return value


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, and the characters of the response that hold its name and the values of its arguments."""

    name: str
    arguments: dict[str, Any]
    name_at: TextSpan
    values_at: dict[str, TextSpan]


@dataclass(frozen=True)
class BrokenCall:
    """A call that cannot be read, and why."""

    text: str
    reason: str


@dataclass(frozen=True)
class ParsedResponse:
    """A response taken apart: its text without the calls, the calls in order, and those that cannot be read."""

    content: str
    calls: tuple[ToolCall, ...]
    broken: tuple[BrokenCall, ...]


def parse_tool_calls(text: str) -> ParsedResponse:
    """Take the tool calls out of a response; one that is cut off or malformed is reported, never dropped."""
    calls: list[ToolCall] = []
    broken: list[BrokenCall] = []
    content = []
    place = 0
    while (opened := text.find(_OPEN, place)) >= 0:
        content.append(text[place:opened].rstrip())
        start = opened + len(_OPEN)
        closed = text.find(_CLOSE, start)
        stop = closed if closed >= 0 else len(text)
        try:
            calls.append(_call(text[start:stop], start))
        except (ValueError, IndexError) as error:
            broken.append(BrokenCall(text[start:stop], str(error)))
        except RecursionError:
            broken.append(BrokenCall(text[start:stop], "the call is nested too deeply"))
        place = stop + len(_CLOSE) if closed >= 0 else stop
    return ParsedResponse("".join([*content, text[place:]]), tuple(calls), tuple(broken))


def placed_call(text: str, start: int, name: Any, arguments: Any) -> ToolCall:
    """Find a call that another parser has read, in whatever syntax, in the text that holds it from `start` on.

    Raises:
        ValueError: its name, or a value behind its key, does not stand there.
    """
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        raise ValueError("a call needs a name, a string, and arguments, an object")
    name_at = _place_of(text, start, name)
    place, values_at = name_at[1], {}
    for key, value in arguments.items():
        written = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
        values_at[key] = _place_of(text, _place_of(text, place, key)[1], written)
        place = values_at[key][1]
    return ToolCall(name, arguments, name_at, values_at)


def _place_of(text: str, start: int, part: str) -> TextSpan:
    place = text.find(part, start)
    if place < 0:
        raise ValueError("its name or an argument does not stand in the response where the call should hold it")
    return place, place + len(part)


def _call(text: str, at: int) -> ToolCall:
    """Read a call; `at` is where its text stands in the response."""
    members = {key: (value, place) for key, value, place in _members(text)}
    for key, kind in (("name", str), ("arguments", dict)):
        if key not in members or not isinstance(members[key][0], kind):
            raise ValueError(f'a call needs "name", a string, and "arguments", an object; {key!r} is not so')
    (name, name_at), (arguments, (start, stop)) = members["name"], members["arguments"]
    if not name:
        raise ValueError("the name of the tool is empty")
    values_at = {key: _moved(place, at + start) for key, _, place in _members(text[start:stop])}
    return ToolCall(name, arguments, _moved(name_at, at), values_at)


def _moved(span: TextSpan, by: int) -> TextSpan:
    return span[0] + by, span[1] + by


def _members(text: str) -> Iterator[tuple[str, Any, TextSpan]]:
    """Yield key, value and the value's place for each member of the JSON object that is the text."""
    value, end = _decoder.raw_decode(text, _skip(text, 0))
    if not isinstance(value, dict) or text[end:].strip():
        raise ValueError("a call must be one JSON object and nothing else")
    place = _skip(text, 0) + 1
    while text[place := _skip(text, place)] != "}":
        key, place = _decoder.raw_decode(text, place)
        place = _skip(text, _skip(text, place) + 1)  # past the colon
        value, end = _decoder.raw_decode(text, place)
        quoted = isinstance(value, str) and value != ""  # an empty string is its quotes
        yield key, value, (place + 1, end - 1) if quoted else (place, end)
        place = _skip(text, end)
        place += text[place] == ","


def _skip(text: str, place: int) -> int:
    blank = _BLANK.match(text, place)
    return blank.end() if blank else place


OPEN, CLOSE = "<think>", "</think>"
_TAIL = 32  # tokens of the prompt's end that are looked at for an opening mark


def marks_reasoning(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the model's template or tokens name the mark of reasoning, `<think>...</think>`."""
    return CLOSE in str(tokenizer.chat_template) or CLOSE in tokenizer.get_added_vocab()


def begins_inside(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> bool:
    """Tell whether the prompt ends with the opening mark, so that the response begins inside the reasoning."""
    return str(tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False)).rstrip().endswith(OPEN)


def apart(text: str, *, inside: bool) -> tuple[str, int | None]:
    """Take a response apart into its reasoning, without the marks, and the place where the answer begins.

    The place is None until the reasoning has ended. With `inside`, the prompt has opened it.
    """
    if not (inside or text.lstrip().startswith(OPEN)):
        return "", 0
    thought, closed, _ = text.partition(CLOSE)
    return thought.lstrip().removeprefix(OPEN).lstrip(), len(thought + closed) if closed else None


def token_at(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], place: int) -> int:
    """Find the token that holds the character at a place of the response, special tokens included in its text."""
    return bisect_right(
        range(1, len(ids) + 1),
        place,
        key=lambda count: len(str(tokenizer.decode(list(ids[:count]), skip_special_tokens=False))),
    )


# White space, what controls and formats text, halves of surrogate pairs, and marks that stand on other characters.
_UNSEEN_CATEGORIES = ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Mn", "Me")
_UNSEEN = (
    "\u115f\u1160\u2800\u3164\uffa0"  # fillers of Hangul and an empty Braille cell, which count as letters or signs
)


def is_blank(text: str) -> bool:
    """Tell whether a text has no visible character."""
    return all(char in _UNSEEN or unicodedata.category(char) in _UNSEEN_CATEGORIES for char in text)


_CUT_OFF = Failure(kind="cut_off", text="the response ends inside its reasoning, before any answer")
_EMPTY = Failure(kind="empty_answer", text="the response is empty")


@dataclass(frozen=True)
class Response:
    """A response: its reasoning, and the answer `text`, which begins at the response token `start`.

    `parsed` is the answer taken apart. `failure` says why no answer can be trusted; None if one may be. `blank` tells
    that nothing of `text` is visible.
    """

    reasoning: str
    start: int
    text: str
    parsed: ParsedResponse
    failure: Failure | None = None
    blank: bool = field(init=False)

    def __post_init__(self) -> None:
        """Look for something to be seen."""
        object.__setattr__(self, "blank", is_blank(self.text))


def take_apart(
    tokenizer: PreTrainedTokenizerBase, generation: Generation, stop: Sequence[str], tools: Sequence[dict[str, Any]]
) -> Response:
    """Take a response apart, with the tokenizer's own response template where it has one.

    Args:
        tokenizer: the model's.
        generation: the response.
        stop: texts that the answer is cut before.
        tools: schemas of the tools that may be called; without any, calls are text like any other.
    """
    if getattr(tokenizer, "response_template", None) is not None:
        return _by_template(tokenizer, generation, stop, tools)
    start, reasoning, text = 0, "", generation.text
    if marks_reasoning(tokenizer):
        ids = generation.response_ids
        raw = str(tokenizer.decode(list(ids), skip_special_tokens=False))
        reasoning, place = apart(raw, inside=begins_inside(tokenizer, generation.prompt_ids))
        if place is None:
            return _without_answer(generation, reasoning, _CUT_OFF)
        if place:
            start, text = _from(tokenizer, generation, raw, place)
    text = _before(text, stop)
    parsed = parse_tool_calls(text) if tools else ParsedResponse(text, (), ())
    return Response(reasoning.strip(), start, text, parsed)


def _by_template(
    tokenizer: PreTrainedTokenizerBase, generation: Generation, stop: Sequence[str], tools: Sequence[dict[str, Any]]
) -> Response:
    raw = str(tokenizer.decode(list(generation.response_ids), skip_special_tokens=False))
    prefix = str(tokenizer.decode(list(generation.prompt_ids), skip_special_tokens=False))
    try:
        message = tokenizer.parse_response(raw, prefix=prefix, tools=list(tools))
    except (ValueError, TypeError, KeyError) as error:  # what the templates' parsers raise
        failure = Failure(kind="unreadable", text=f"the response cannot be read: {type(error).__name__}")
        return _without_answer(generation, "", failure)
    reasoning = str(message.get("thinking") or message.get("reasoning_content") or "")
    content = str(message.get("content") or "").strip()
    functions = [call.get("function", call) for call in message.get("tool_calls") or ()] if tools else []
    after = raw.find(reasoning) + len(reasoning)
    place = after if functions else raw.rfind(content) if content else -1
    if place < 0:
        return _without_answer(generation, reasoning, _CUT_OFF if reasoning else _EMPTY)
    start, text = _from(tokenizer, generation, raw, place)
    exact = parse_tool_calls(text) if functions else ParsedResponse(text, (), ())  # knows places exactly
    calls, broken = (exact.calls, exact.broken) if exact.calls or exact.broken else _placed(text, functions)
    parsed = ParsedResponse(_before(content, stop), calls, broken)
    return Response(reasoning.strip(), start, text if functions else parsed.content, parsed)


def _placed(text: str, functions: Sequence[dict[str, Any]]) -> tuple[tuple[ToolCall, ...], tuple[BrokenCall, ...]]:
    """Find calls that the template has read, one after the other."""
    calls: list[ToolCall] = []
    broken: list[BrokenCall] = []
    place = 0
    for function in functions:
        try:
            calls.append(placed_call(text, place, function.get("name"), function.get("arguments")))
            place = max(end for _, end in (calls[-1].name_at, *calls[-1].values_at.values()))
        except ValueError as error:
            broken.append(BrokenCall(str(function), str(error)))
    return tuple(calls), tuple(broken)


def _without_answer(generation: Generation, reasoning: str, failure: Failure) -> Response:
    return Response(reasoning.strip(), len(generation.response_ids), "", ParsedResponse("", (), ()), failure)


def _from(tokenizer: PreTrainedTokenizerBase, generation: Generation, raw: str, place: int) -> tuple[int, str]:
    """Give the first token from a place of the text on that is not blank, and the text from there."""
    ids = generation.response_ids
    start = token_at(tokenizer, ids, place + len(raw[place:]) - len(raw[place:].lstrip()))
    return start, str(tokenizer.decode(list(ids[start:]), skip_special_tokens=True))


def _before(text: str, stop: Sequence[str]) -> str:
    for mark in stop:
        text = text.split(mark, 1)[0]
    return text
