"""Tool calls in a response's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, and where they stand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from semgrad_guard.model.text_spans import TextSpan

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
    """Find a call that something else has read, in whatever syntax, in the text that holds it from `start` on.

    Raises:
        ValueError: its name, or a value behind its key, does not stand there.
    """
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        raise ValueError("a call needs a name, a string, and arguments, an object")
    name_at = _found(text, start, name)
    place, values_at = name_at[1], {}
    for key, value in arguments.items():
        written = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
        values_at[key] = _found(text, _found(text, place, key)[1], written)
        place = values_at[key][1]
    return ToolCall(name, arguments, name_at, values_at)


def _found(text: str, start: int, part: str) -> TextSpan:
    place = text.find(part, start)
    if place < 0:
        raise ValueError("its name or an argument does not stand in the response where the call should hold it")
    return place, place + len(part)


def _call(text: str, at: int) -> ToolCall:
    """Read a call; `at` is where its text stands in the response."""
    found = {key: (value, place) for key, value, place in _members(text)}
    for key, kind in (("name", str), ("arguments", dict)):
        if key not in found or not isinstance(found[key][0], kind):
            raise ValueError(f'a call needs "name", a string, and "arguments", an object; {key!r} is not so')
    (name, name_at), (arguments, (start, stop)) = found["name"], found["arguments"]
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
    found = _BLANK.match(text, place)
    return found.end() if found else place
