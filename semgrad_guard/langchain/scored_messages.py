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
from semgrad_guard.errors import ConfigurationError, DataError, described, named
from semgrad_guard.langchain.metadata import SCORES, get_message_scores
from semgrad_guard.model.responses import ParsedResponse, Response, take_apart
from semgrad_guard.model.text_spans import token_spans
from semgrad_guard.records import (
    AnswerKind,
    CallConfidence,
    CallScores,
    Failure,
    Generation,
    MessageScores,
    Score,
    TokenLogProb,
    Verdict,
)
from semgrad_guard.routing.ladder import Answer
from semgrad_guard.scoring.scorer import SemGradScorer, TokenSpan

logger = logging.getLogger(__name__)


def top_logprobs_of(settings: dict[str, Any]) -> int | None:
    """Take `logprobs` and `top_logprobs` out of what a call was given: how many alternatives; None for nothing.

    Raises:
        ConfigurationError: `top_logprobs` without `logprobs=True`, or no whole number >= 0.
    """
    logprobs, most = settings.pop("logprobs", None), settings.pop("top_logprobs", None)
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
            {**entry(step.token, step.log_prob), "top_logprobs": [entry(*other) for other in step.top]}
            for step in log_probs
        ]
    }


_UNSCORED = Failure(kind="scoring_off", text="scoring is switched off")
_EMPTY = Failure(kind="empty_answer", text="the response is empty")


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
    responses = [take_apart(scorer.tokenizer, generation, stop, tools) for generation in generations]
    answers = list(zip(generations, responses, strict=True))
    to_score = [answer for answer in answers if _without_answer(answer[1]) is None]
    results = iter(_scores(scorer, to_score) if scored else [([], _UNSCORED)] * len(to_score))
    messages = []
    for generation, response in answers:
        scores: Sequence[Score] = ()
        if (failure := _without_answer(response)) is None:
            scores, failure = next(results)
        messages.append(_message(scorer, generation, response, scores, failure or _misfit(response.parsed, tools)))
    return messages


def _without_answer(response: Response) -> Failure | None:
    return response.failure or (_EMPTY if response.blank else None)


def _scores(
    scorer: SemGradScorer, answers: Sequence[tuple[Generation, Response]]
) -> list[tuple[list[Score], Failure | None]]:
    """Score each whole answer, its calls and their arguments; what goes wrong is a reason not to trust the answer."""
    generations = [generation for generation, _ in answers]
    try:
        spans: list[list[TokenSpan]] = [
            [(response.start, len(generation.response_ids)), *_spans(scorer, generation, response)]
            for generation, response in answers
        ]
        scores = scorer.score(generations, spans=spans)
    except Exception as error:  # fail closed: an answer without a score is withheld, and says why
        if len(answers) > 1:  # one of them must not take the others with it
            return [scored for answer in answers for scored in _scores(scorer, [answer])]
        logger.error("Scoring failed: %s", described(error))
        return [([], Failure(kind="scoring_failed", text=f"scoring failed: {named(error)}"))]
    return [(row, _failure(generation, row)) for generation, row in zip(generations, scores, strict=True)]


def _failure(generation: Generation, scores: Sequence[Score]) -> Failure | None:
    invalid = next((failure for score in scores if (failure := score.failure())), None)
    if invalid is None and generation.finish_reason == "length":
        text = f"the answer was cut off at the limit of {len(generation.response_ids)} tokens"
        return Failure(kind="cut_off", text=text)
    return invalid


def _message(
    scorer: SemGradScorer, generation: Generation, response: Response, scores: Sequence[Score], failure: Failure | None
) -> AIMessage:
    parsed = response.parsed
    ids = [f"call_{uuid.uuid4().hex[:24]}" for _ in parsed.calls]
    metadata = {
        "model_name": scorer.model.config.name_or_path,
        "revision": scorer.revision,
        "finish_reason": generation.finish_reason,
        SCORES: _record(scores, failure, ids, generation, response).model_dump(mode="json"),
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
        places_in_tokens = token_spans(scorer.tokenizer, answer, response.text, places)
        pieces = [(start + response.start, stop + response.start) for start, stop in places_in_tokens]
        spans += [pieces, *pieces[1:]]
    return spans


def _record(
    scores: Sequence[Score], failure: Failure | None, ids: Sequence[str], generation: Generation, response: Response
) -> MessageScores:
    """Sort scores into the answer's, and those of each call and of its arguments, in the order of `_spans`."""
    rest = iter(scores)
    return MessageScores(
        scores=next(rest, None),
        failure=failure,
        tool_calls={
            id_: CallScores(
                name=call.name,
                scores=next(rest, None),
                arguments={name: next(rest, None) for name in call.values_at},
            )
            for call, id_ in zip(response.parsed.calls, ids, strict=True)
        },
        tokens=generation.response_ids,
        answer_from=response.start,
    )


def _misfit(parsed: ParsedResponse, tools: Sequence[dict[str, Any]]) -> Failure | None:
    """Say why the calls cannot be run: unreadable, of a tool that is not listed, or with other arguments than its."""
    if parsed.broken:
        return _invalid_call(f"a tool call cannot be read: {parsed.broken[0].reason}")
    listed = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    for call in parsed.calls:
        if call.name not in listed:
            return _invalid_call(f"it calls {call.name!r}, which is not among the tools: {', '.join(sorted(listed))}")
        known, present = listed[call.name].get("properties", {}), set(call.arguments)
        missing, unknown = set(listed[call.name].get("required", ())) - present, present - set(known)
        if missing or unknown:
            what = f"lacks {sorted(missing)}" if missing else f"has {sorted(unknown)}, which it does not take"
            return _invalid_call(f"the call of {call.name!r} {what}")
    return None


def _invalid_call(text: str) -> Failure:
    return Failure(kind="invalid_call", text=text)


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
    record = _record_of(message)
    kind: AnswerKind = "grounded" if grounded else "answer"
    whole = standard.judge(record.scores, record.failure, kind)
    by_call = _verdicts(record, for_tool or (lambda tool: standard))
    verdicts = list(by_call.values())
    if not by_call or message.content:
        verdicts.append(whole)
    least = min(verdicts, key=lambda verdict: (verdict.passed, verdict.confidence or 0.0))
    confidences = {
        id_: CallConfidence(
            name=call.name,
            confidence=by_call[id_].confidence,
            arguments={name: standard.confidence(score, "argument") for name, score in call.arguments.items()},
        )
        for id_, call in record.tool_calls.items()
    }
    return Answer(_shown(message), whole if record.failure else least, message, confidences)


def call_verdicts(message: AIMessage, for_tool: Callable[[str], Standard]) -> dict[str, Verdict]:
    """Judge each tool call of a message of `ChatSemGrad`, by its id; in a message that failed, none passes."""
    return _verdicts(_record_of(message), for_tool)


def _verdicts(record: MessageScores, for_tool: Callable[[str], Standard]) -> dict[str, Verdict]:
    return {
        id_: for_tool(call.name).judge(call.scores, record.failure, "tool_call").about(call.name)
        for id_, call in record.tool_calls.items()
    }


def watched_score(message: AIMessage, *, grounded: bool) -> Score | None:
    """Give the score of a first answer from memory, which may tell of drift; None of any other, or without one.

    Answers that failed are left out, as they were in fitting.
    """
    record = _record_of(message)
    return None if grounded or record.failure or record.tool_calls else record.scores


def _record_of(message: AIMessage) -> MessageScores:
    record = get_message_scores(message)
    if record is None:
        raise DataError("The message carries no scores, so it is none of a ChatSemGrad.")
    return record


def _shown(message: AIMessage) -> str:
    """Show a message in words: its text, and its tool calls as they would be written in code."""
    calls = [
        f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['args'].items())})"
        for call in message.tool_calls
    ]
    return "\n".join([*([str(message.content)] if message.content else []), *calls])
