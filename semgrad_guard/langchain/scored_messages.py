"""From generations to `AIMessage`s: their text, their tool calls, and the scores of the answer and of every call."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call

from semgrad_guard.errors import described, named
from semgrad_guard.langchain.logprobs import as_openai
from semgrad_guard.model.load import revision
from semgrad_guard.model.responses import Response, take_apart
from semgrad_guard.model.text_spans import is_blank, token_spans
from semgrad_guard.model.tool_calls import ParsedResponse, ToolCall
from semgrad_guard.records import Generation, Score
from semgrad_guard.scoring.scorer import SemGradScorer
from semgrad_guard.scoring.spans import TokenSpan

logger = logging.getLogger(__name__)

_UNSCORED = "scoring is switched off"


def scored_messages(
    scorer: SemGradScorer,
    generations: Sequence[Generation],
    stop: Sequence[str],
    tools: Sequence[dict[str, Any]],
    *,
    scored: bool = True,
) -> list[AIMessage]:
    """Score generations, all in one pass, and put everything known about each into a message.

    Args:
        scorer: has generated them.
        generations: responses.
        stop: texts a response is cut before.
        tools: schemas of the tools that may be called; without any, calls are text like any other.
        scored: False leaves the scores out, and says so.
    """
    said = [take_apart(scorer.tokenizer, generation, stop, tools) for generation in generations]
    answers = list(zip(generations, said, strict=True))
    to_score = [answer for answer in answers if _failed(answer[1]) == ""]
    found = iter(_scores(scorer, to_score) if scored else [([], _UNSCORED)] * len(to_score))
    messages = []
    for generation, response in answers:
        failure = _failed(response)
        scores, doubt = ([], failure) if failure else next(found)
        messages.append(_message(scorer, generation, response, scores, doubt or _misfit(response.parsed, tools)))
    return messages


def _failed(response: Response) -> str:
    return response.failure or ("the response is empty" if is_blank(response.text) else "")


def _scores(scorer: SemGradScorer, answers: Sequence[tuple[Generation, Response]]) -> list[tuple[list[Score], str]]:
    """Score each whole answer, its calls and their arguments; what goes wrong is a reason not to trust the answer."""
    generations = [generation for generation, _ in answers]
    try:
        spans: list[list[TokenSpan]] = [
            [(response.start, len(generation.response_ids)), *_spans(scorer, generation, response)]
            for generation, response in answers
        ]
        found = scorer.score(generations, spans=spans)
    except Exception as error:  # fail closed: an answer without a score is withheld, and says why
        if len(answers) > 1:  # one of them must not take the others with it
            return [scored for answer in answers for scored in _scores(scorer, [answer])]
        logger.error("Scoring failed: %s", described(error))
        return [([], f"scoring failed: {named(error)}")]
    return [(scores, _doubt(generation, scores)) for generation, scores in zip(generations, found, strict=True)]


def _doubt(generation: Generation, scores: Sequence[Score]) -> str:
    failures = [failure for score in scores if (failure := score.failure())]
    if failures:
        return failures[0]
    if generation.finish_reason == "length":
        return f"the answer was cut off at the limit of {len(generation.response_ids)} tokens"
    return ""


def _message(
    scorer: SemGradScorer, generation: Generation, response: Response, scores: Sequence[Score], failure: str
) -> AIMessage:
    parsed = response.parsed
    ids = [f"call_{uuid.uuid4().hex[:24]}" for _ in parsed.calls]
    metadata = {
        "model_name": scorer.model.config.name_or_path,
        "revision": revision(scorer.model),
        "finish_reason": generation.finish_reason,
        "semgrad": _record(scores, failure, parsed.calls, ids)
        | {"tokens": list(generation.response_ids), "answer_from": response.start},
    }
    if generation.log_probs is not None:
        metadata["logprobs"] = as_openai(scorer.tokenizer, generation.log_probs[response.start :])
    return AIMessage(
        content=parsed.content.strip(),
        additional_kwargs={"reasoning_content": response.reasoning} if response.reasoning else {},
        tool_calls=[
            tool_call(name=call.name, args=call.arguments, id=id_) for call, id_ in zip(parsed.calls, ids, strict=True)
        ],
        invalid_tool_calls=[
            invalid_tool_call(name=None, args=call.text, id=None, error=call.reason) for call in parsed.broken
        ],
        response_metadata=metadata,
        usage_metadata=_usage(generation, response),
    )


def _usage(generation: Generation, response: Response) -> UsageMetadata:
    read, written = len(generation.prompt_ids), len(generation.response_ids)
    usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
    if response.reasoning:
        usage["output_token_details"] = OutputTokenDetails(reasoning=response.start)
    return usage


def _spans(scorer: SemGradScorer, generation: Generation, response: Response) -> list[TokenSpan]:
    """List each call's tokens, name and values without the JSON around them, and then each of its values."""
    spans: list[TokenSpan] = []
    answer = generation.response_ids[response.start :]
    for call in response.parsed.calls:
        places = [call.name_at, *call.values_at.values()]
        found = token_spans(scorer.tokenizer, answer, response.text, places)
        pieces = [(start + response.start, stop + response.start) for start, stop in found]
        spans += [pieces, *pieces[1:]]
    return spans


def _record(found: Sequence[Score], failure: str, calls: Sequence[ToolCall], ids: Sequence[str]) -> dict[str, Any]:
    plain = iter([score.model_dump(mode="json") for score in found])
    return {
        "scores": next(plain, None),
        "failure": failure,
        "tool_calls": {
            id_: {
                "name": call.name,
                "scores": next(plain, None),
                "arguments": {name: next(plain, None) for name in call.values_at},
            }
            for call, id_ in zip(calls, ids, strict=True)
        },
    }


def _misfit(parsed: ParsedResponse, tools: Sequence[dict[str, Any]]) -> str:
    """Say why the calls cannot be run: unreadable, of a tool that is not listed, or with other arguments than its."""
    if parsed.broken:
        return f"a tool call cannot be read: {parsed.broken[0].reason}"
    listed = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    for call in parsed.calls:
        if call.name not in listed:
            return f"it calls {call.name!r}, which is not among the tools: {', '.join(sorted(listed))}"
        known, given = listed[call.name].get("properties", {}), set(call.arguments)
        missing, unknown = set(listed[call.name].get("required", ())) - given, given - set(known)
        if missing or unknown:
            what = f"lacks {sorted(missing)}" if missing else f"has {sorted(unknown)}, which it does not take"
            return f"the call of {call.name!r} {what}"
    return ""
