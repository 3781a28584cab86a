"""A response taken apart: its reasoning, its answer, and the tool calls in the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from semgrad_guard.model.reasoning import apart, begins_inside, marks_reasoning, token_at
from semgrad_guard.model.tool_calls import BrokenCall, ParsedResponse, ToolCall, parse_tool_calls, placed_call
from semgrad_guard.records import Generation

_CUT_OFF = "the response ends inside its reasoning, before any answer"


@dataclass(frozen=True)
class Response:
    """What a model said: `parsed` is of the answer, `text`, which begins at the response token `start`.

    `failure` says why there is no answer to be trusted; "" if there may be one.
    """

    reasoning: str
    start: int
    text: str
    parsed: ParsedResponse
    failure: str = ""


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
        found = tokenizer.parse_response(raw, prefix=prefix, tools=list(tools))
    except (ValueError, TypeError, KeyError) as error:  # what the templates' parsers raise
        return _without_answer(generation, "", f"the response cannot be read: {type(error).__name__}")
    reasoning = str(found.get("thinking") or found.get("reasoning_content") or "")
    content = str(found.get("content") or "").strip()
    functions = [call.get("function", call) for call in found.get("tool_calls") or ()] if tools else []
    after = raw.find(reasoning) + len(reasoning)
    place = after if functions else raw.rfind(content) if content else -1
    if place < 0:
        return _without_answer(generation, reasoning, _CUT_OFF if reasoning else "the response is empty")
    start, text = _from(tokenizer, generation, raw, place)
    ours = parse_tool_calls(text) if functions else ParsedResponse(text, (), ())  # knows places exactly
    calls, broken = (ours.calls, ours.broken) if ours.calls or ours.broken else _placed(text, functions)
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


def _without_answer(generation: Generation, reasoning: str, failure: str) -> Response:
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
