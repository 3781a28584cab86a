"""What clients get, in OpenAI's shape, with the record `semgrad` beside every choice.

The record stands in `logprobs` as well: langchain-openai drops what it does not know, and keeps those.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import from_json

from semgrad_guard.records import TokenUncertainty
from semgrad_guard.serving.work import Called, ChatAnswer, Judgement, ModelCard, PolicyName, ScoreAnswer

FinishReason = Literal["stop", "length", "tool_calls"]


class FunctionCall(BaseModel):
    """A tool's name, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A tool call."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    @classmethod
    def of(cls, call: Called) -> ToolCall:
        """Give a call its shape."""
        return cls(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))


class Message(BaseModel):
    """What went out."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class LogProbs(BaseModel):
    """Log-probabilities, in nats, of the answer's tokens where they were asked for; and the record again."""

    content: list[dict[str, Any]] | None
    refusal: None = None
    semgrad: Judgement


class Choice(BaseModel):
    """One answer, and how sure it is."""

    index: int
    message: Message
    finish_reason: FinishReason
    logprobs: LogProbs
    semgrad: Judgement


class UsageDetails(BaseModel):
    """Of the tokens written, those of the reasoning."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: UsageDetails

    @classmethod
    def of(cls, answers: Sequence[ChatAnswer | ScoreAnswer]) -> Usage:
        """Count a prompt that several answers share once, as OpenAI does."""
        read = max(answer.usage.prompt for answer in answers)
        written = sum(answer.usage.completion for answer in answers)
        reasoning = sum(answer.usage.reasoning for answer in answers)
        return cls(
            prompt_tokens=read,
            completion_tokens=written,
            total_tokens=read + written,
            completion_tokens_details=UsageDetails(reasoning_tokens=reasoning),
        )


class Completion(BaseModel):
    """The answer to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Scored(BaseModel):
    """The answer to `POST /v1/score`; `tokens`, where asked for, tell how the uncertainty spreads over the response."""

    id: str
    object: Literal["score"] = "score"
    created: int
    model: str
    semgrad: Judgement
    tokens: list[TokenUncertainty] | None
    usage: Usage


class Served(BaseModel):
    """How a model is served.

    `scored` false means that no answer is judged, and none passes; `calibrated` true that confidence is a probability,
    fitted on labels. Otherwise confidence only orders answers, or there is none.
    """

    scored: bool
    calibrated: bool
    method: str
    threshold: float | None
    policy: PolicyName
    policies: list[PolicyName]
    context_length: int | None
    max_prompt_tokens: int
    max_response_tokens: int


class Model(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "semgrad-guard"
    semgrad: Served


class Models(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Fault(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failed(BaseModel):
    """The answer to a request that failed."""

    error: Fault


class State(BaseModel):
    """Whether the process lives, or takes requests."""

    status: Literal["alive", "ready", "not ready"]


def completion(card: ModelCard, answers: Sequence[ChatAnswer]) -> Completion:
    """Give answers as choices."""
    return Completion(
        id=_id("chatcmpl"),
        created=int(time.time()),
        model=card.id,
        choices=[
            Choice(
                index=place,
                message=Message(
                    content=None if answer.tool_calls and not answer.text else answer.text,
                    reasoning_content=answer.reasoning or None,
                    tool_calls=[ToolCall.of(call) for call in answer.tool_calls] or None,
                ),
                finish_reason=answer.finish_reason,
                logprobs=_logprobs(answer),
                semgrad=answer.judgement,
            )
            for place, answer in enumerate(answers)
        ],
        usage=Usage.of(answers),
    )


def scored(card: ModelCard, answer: ScoreAnswer) -> Scored:
    """Give a score."""
    return Scored(
        id=_id("score"),
        created=int(time.time()),
        model=card.id,
        semgrad=answer.judgement,
        tokens=None if answer.tokens is None else list(answer.tokens),
        usage=Usage.of([answer]),
    )


def model(card: ModelCard, policy: PolicyName, policies: Sequence[PolicyName], since: int) -> Model:
    """Tell of the model that is served."""
    return Model(
        id=card.id,
        created=since,
        semgrad=Served(
            scored=card.scored,
            calibrated=card.calibrated,
            method=card.method,
            threshold=card.threshold,
            policy=policy,
            policies=list(policies),
            context_length=card.context,
            max_prompt_tokens=card.limits.prompt_tokens,
            max_response_tokens=card.limits.response_tokens,
        ),
    )


class Chunks:
    """The chunks of one stream; all share an id."""

    def __init__(self, card: ModelCard) -> None:
        """Begin a stream."""
        self._frame = {
            "id": _id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": card.id,
        }

    def begin(self, index: int = 0) -> dict[str, Any]:
        """Give the first chunk of a choice: who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def text(self, text: str, index: int = 0) -> dict[str, Any]:
        """Give a piece of the text."""
        return self._chunk(index, {"content": text})

    def rest(self, answer: ChatAnswer, shown: str = "", index: int = 0) -> Iterator[dict[str, Any]]:
        """Yield what has not been shown of an answer, and then the chunk that finishes it, with its record."""
        if answer.reasoning:
            yield self._chunk(index, {"reasoning_content": answer.reasoning})
        if rest := answer.text.removeprefix(shown):
            yield self.text(rest, index)
        if answer.tool_calls:
            calls = [{"index": place, **ToolCall.of(call).model_dump()} for place, call in enumerate(answer.tool_calls)]
            yield self._chunk(index, {"tool_calls": calls})
        logprobs = from_json(_logprobs(answer).model_dump_json())  # scores that are no numbers are null in it
        yield self._chunk(index, {}, finish_reason=answer.finish_reason, logprobs=logprobs, semgrad=logprobs["semgrad"])

    def usage(self, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
        """Give the chunk after the last choice that tells the usage."""
        return {**self._frame, "choices": [], "usage": Usage.of(answers).model_dump()}

    def _chunk(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **more}
        return {**self._frame, "choices": [choice]}


def _logprobs(answer: ChatAnswer) -> LogProbs:
    return LogProbs(content=None if answer.logprobs is None else list(answer.logprobs), semgrad=answer.judgement)


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
