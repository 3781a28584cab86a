"""From generations to `AIMessage`s with their scores, and from those to judged answers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call
from transformers import PreTrainedTokenizerBase

from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.errors import ConfigurationError, described, named
from semgrad_guard.model.responses import ParsedResponse, Response, ToolCall, take_apart
from semgrad_guard.model.text_spans import token_spans
from semgrad_guard.records import AnswerKind, CallConfidence, Generation, Score, TokenLogProb, Verdict
from semgrad_guard.routing.ladder import Answer
from semgrad_guard.scoring.scorer import SemGradScorer, TokenSpan


def asked_for(given: dict[str, Any]) -> int | None:
    """Take `logprobs` and `top_logprobs` out of what a call was given: how many alternatives; None for nothing.

    Raises:
        ConfigurationError: `top_logprobs` without `logprobs=True`, or no whole number >= 0.
    """
    logprobs, most = given.pop("logprobs", None), given.pop("top_logprobs", None)
    if most is not None and not (logprobs and isinstance(most, int) and most >= 0):
        raise ConfigurationError(
            f"logprobs={logprobs!r}, top_logprobs={most!r}: expected logprobs=True and a whole number >= 0."
        )
    return (most or 0) if logprobs else None


def as_openai(tokenizer: PreTrainedTokenizerBase, log_probs: Sequence[TokenLogProb]) -> dict[str, Any]:
    """Give `{"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...]}`; log-probabilities are in nats."""

    def entry(token: int, log_prob: float) -> dict[str, Any]:
        text = str(tokenizer.decode([token]))
        whole = "\ufffd" not in text  # a token may hold a part of a character only, which has no text
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode()) if whole else None}

    return {
        "content": [
            {**entry(found.token, found.log_prob), "top_logprobs": [entry(*other) for other in found.top]}
            for found in log_probs
        ]
    }


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
    return response.failure or ("the response is empty" if response.blank else "")


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
        "revision": scorer.revision,
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


def judged(
    message: AIMessage, standard: Standard, *, grounded: bool, for_tool: Callable[[str], Standard] | None = None
) -> Answer:
    """Judge a message of `ChatSemGrad`; of several tool calls, and text beside them, the least sure speaks for all.

    Args:
        message: carries its scores.
        standard: what it must reach.
        grounded: it was given from passages, or from the results of tools.
        for_tool: gives what the calls of a tool must reach, by its name; the same standard where it is left out.
    """
    record = message.response_metadata["semgrad"]
    kind: AnswerKind = "grounded" if grounded else "answer"
    whole = standard.judge(_score(record["scores"]), record["failure"], kind)
    calls = call_verdicts(message, for_tool or (lambda tool: standard))
    verdicts = list(calls.values())
    if not calls or message.content:
        verdicts.append(whole)
    verdict = whole if record["failure"] else min(verdicts, key=lambda found: (found.passed, found.confidence or 0.0))
    sure = {
        id_: CallConfidence(
            name=call["name"],
            confidence=calls[id_].confidence,
            arguments={
                name: standard.confidence(_score(plain), "argument") for name, plain in call["arguments"].items()
            },
        )
        for id_, call in record["tool_calls"].items()
    }
    return Answer(_shown(message), verdict, message, sure)


def call_verdicts(message: AIMessage, for_tool: Callable[[str], Standard]) -> dict[str, Verdict]:
    """Judge each tool call of a message of `ChatSemGrad`, by its id; in a message that failed, none passes."""
    record = message.response_metadata["semgrad"]
    return {
        id_: for_tool(call["name"]).judge(_score(call["scores"]), record["failure"], "tool_call").about(call["name"])
        for id_, call in record["tool_calls"].items()
    }


def watched_score(message: AIMessage, *, grounded: bool) -> Score | None:
    """Give the score of a first answer from memory, which may tell of drift; None of any other, or without one.

    Answers that failed are left out, as they were in fitting.
    """
    record = message.response_metadata["semgrad"]
    return None if grounded or record["failure"] or record["tool_calls"] else _score(record["scores"])


def _score(plain: dict[str, Any] | None) -> Score | None:
    return None if plain is None else Score.model_validate(plain)


def _shown(message: AIMessage) -> str:
    """Show a message in words: its text, and its tool calls as they would be written in code."""
    calls = [
        f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['args'].items())})"
        for call in message.tool_calls
    ]
    return "\n".join([*([str(message.content)] if message.content else []), *calls])
