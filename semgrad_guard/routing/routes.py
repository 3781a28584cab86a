"""The routes that need nothing but the held-back answer: abstaining, raising, and asking a human."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import CallConfidence, Source, TokenUncertainty, Verdict
from semgrad_guard.routing.ladder import DEFAULT_ABSTENTION, Outcome, Situation
from semgrad_guard.routing.limits import await_within, call_within
from semgrad_guard.settings import SecondsOrNone, SecondsOrZero, Settings, renamed

DEFAULT_PENDING = "I am not sure enough to answer that by myself; a human has been asked. Please come back later."


class Abstain(Settings):
    """Answer with a fixed message instead of the draft. Always settles."""

    message: str = DEFAULT_ABSTENTION
    below: float | None = Field(default=None, ge=0, le=1)
    decision: Literal["abstain"] = "abstain"

    def __init__(self, message: str = DEFAULT_ABSTENTION, *, below: float | None = None, **unknown: Any) -> None:
        """Set the message, and the confidence under which the route applies (None: the guard's threshold)."""
        super().__init__(message=message, below=below, **unknown)

    def attempt(self, situation: Situation) -> Outcome:
        """Settle with the message."""
        return Outcome(True, "abstained", self.message)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Settle with the message."""
        return self.attempt(situation)


class Raise(Settings):
    """Raise a `LowConfidenceError` instead of answering. Always settles."""

    with_draft: bool = False
    below: float | None = Field(default=None, ge=0, le=1)
    decision: Literal["raise"] = "raise"

    def attempt(self, situation: Situation) -> Outcome:
        """Settle with an error."""
        return Outcome(True, "raised", situation.draft.text if self.with_draft else "", raises=True)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Settle with an error."""
        return self.attempt(situation)


class ReviewRequest(BaseModel):
    """What a human, or another model, is asked: the question, the draft, tool calls included, and its verdict.

    `conversation` holds the messages in words, line by line, where that is more than the question; `tool_calls` tells
    how sure each call of the draft is, by its id. `tokens` tells where the uncertainty sits in the draft as the model
    wrote it, token by token; empty where that is not known.
    """

    model_config = ConfigDict(frozen=True)

    question: str
    draft: str
    verdict: Verdict
    sources: tuple[Source, ...] = ()
    tool_calls: dict[str, CallConfidence] = Field(default_factory=dict)
    conversation: tuple[str, ...] = ()
    tokens: tuple[TokenUncertainty, ...] = ()


class ReviewAnswer(Settings):
    """What a human decides.

    "approve": the draft goes out as it is; "edit": the draft as corrected in `text`; "respond": the human's own answer
    in `text`; "reject": no answer goes out, `text` or a refusal stands instead.
    """

    decision: Literal["approve", "edit", "reject", "respond"]
    text: str | None = None

    @model_validator(mode="after")
    def _has_text(self) -> ReviewAnswer:
        if self.decision in ("edit", "respond") and not self.text:
            raise ValueError(f"decision {self.decision!r} needs a text")
        return self

    @classmethod
    def of(cls, value: object) -> ReviewAnswer:
        """Read an answer, or the name of its decision alone.

        Raises:
            ValidationError: (of pydantic) it is neither.
        """
        return cls.model_validate({"decision": value} if isinstance(value, str) else value)


@runtime_checkable
class Queue(Protocol):
    """Where reviews wait for a human; `semgrad_guard.review.ReviewQueue` is one."""

    def submit(self, request: ReviewRequest) -> str:
        """Put a request into the queue, once however often it is asked, and give the review's id."""

    def wait(self, id_: str, timeout: float) -> ReviewAnswer | None:
        """Give what was decided, waiting up to `timeout` seconds; None if nothing was."""

    async def await_(self, id_: str, timeout: float) -> ReviewAnswer | None:
        """Async twin of `wait`."""


class HumanReview(Settings):
    """Hand the held-back answer to a human; settles with what they decide.

    A callback answers with a `ReviewAnswer`, or its decision alone where that needs no text. One that raises, times
    out, or answers anything else does not settle.

    With a queue the answer waits there, and its record carries the `review_id`. If nobody decides in time, the route
    settles with the text `pending_message`; what is decided later is in the queue. A queue that fails does not settle.
    """

    callback: Callable[[ReviewRequest], ReviewAnswer | str] | None = None
    acallback: Callable[[ReviewRequest], Awaitable[ReviewAnswer | str]] | None = None
    queue: Queue | None = None
    wait_seconds: SecondsOrZero = 0.0
    pending_message: str = DEFAULT_PENDING
    below: float | None = Field(default=None, ge=0, le=1)
    timeout_seconds: SecondsOrNone = None
    decision: Literal["review"] = "review"

    def __init__(
        self,
        callback: Callable[[ReviewRequest], ReviewAnswer | str] | Queue | None = None,
        acallback: Callable[[ReviewRequest], Awaitable[ReviewAnswer | str]] | None = None,
        *,
        queue: Queue | None = None,
        wait_seconds: float = 0.0,
        pending_message: str = DEFAULT_PENDING,
        below: float | None = None,
        timeout_seconds: float | None = None,
        **unknown: Any,
    ) -> None:
        """Set who decides: a callback of either kind, or the readers of a queue.

        Args:
            callback: gets a `ReviewRequest`, gives a `ReviewAnswer`; async callers run it in a thread. A coroutine
                function is taken for `acallback`, and a queue for `queue`.
            acallback: the same for async callers, awaited.
            queue: keeps the request until a human takes it.
            wait_seconds: how long to wait for a decision on what is in the queue, >= 0.
            pending_message: the text that goes out when there is none by then.
            below: confidence under which the route applies; None for the guard's threshold.
            timeout_seconds: how long to wait for a callback; None for as long as it takes.
            unknown: refused by name.

        Raises:
            ConfigurationError: there is nobody to ask, or both a queue and a callback; a setting is unknown or wrong.
        """
        if queue is None and isinstance(callback, Queue):
            callback, queue = None, callback
        if acallback is None and inspect.iscoroutinefunction(callback):
            callback, acallback = None, callback
        settings: dict[str, Any] = {
            "callback": callback,
            "acallback": acallback,
            "queue": queue,
            "wait_seconds": wait_seconds,
            "pending_message": pending_message,
            "below": below,
            "timeout_seconds": timeout_seconds,
        }
        settings |= renamed(
            unknown, "HumanReview", wait="wait_seconds", pending="pending_message", timeout="timeout_seconds"
        )
        super().__init__(**settings, **unknown)
        if callback is None and acallback is None and queue is None:
            raise ConfigurationError(
                "HumanReview has nobody to ask: pass callback=..., acallback=... or queue=ReviewQueue(...)."
            )
        if queue is not None and (callback is not None or acallback is not None or self.timeout_seconds is not None):
            raise ConfigurationError(
                "HumanReview(queue=...) takes wait_seconds=..., and no callback or timeout beside it."
            )
        if queue is None and self.wait_seconds:
            raise ConfigurationError(
                f"wait_seconds={self.wait_seconds:g} is for a queue; callbacks have timeout_seconds=...."
            )

    def attempt(self, situation: Situation) -> Outcome:
        """Ask and wait."""
        request = review_request(situation, situation.uncertainty())
        if self.queue is not None:
            id_ = self.queue.submit(request)
            return self._queued(id_, self.queue.wait(id_, self.wait_seconds), situation)
        if self.callback is None:
            return Outcome(False, "HumanReview has an acallback only; call the guard with ainvoke")
        callback = self.callback
        return review_outcome(call_within(self.timeout_seconds, lambda: callback(request)), situation)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Ask and await."""
        request = review_request(situation, await asyncio.to_thread(situation.uncertainty))
        if self.queue is not None:
            id_ = await asyncio.to_thread(self.queue.submit, request)
            return self._queued(id_, await self.queue.await_(id_, self.wait_seconds), situation)
        if self.acallback is not None:
            return review_outcome(await await_within(self.timeout_seconds, self.acallback(request)), situation)
        if self.callback is None:  # __init__ refuses this; for the type checker
            return Outcome(False, "HumanReview has nobody to ask")
        return review_outcome(
            await await_within(self.timeout_seconds, asyncio.to_thread(self.callback, request)), situation
        )

    def _queued(self, id_: str, answer: ReviewAnswer | None, situation: Situation) -> Outcome:
        if answer is None:
            return Outcome(True, f"pending: review {id_}", self.pending_message, review_id=id_)
        return replace(review_outcome(answer, situation), review_id=id_)


def review_request(situation: Situation, tokens: tuple[TokenUncertainty, ...] = ()) -> ReviewRequest:
    """Tell of a situation what a reviewer needs."""
    return ReviewRequest(
        question=situation.question,
        draft=situation.draft.text,
        verdict=situation.draft.verdict,
        sources=situation.sources,
        tool_calls=situation.draft.tool_calls,
        conversation=_in_words(situation.conversation),
        tokens=tokens,
    )


def _in_words(conversation: Sequence[Any]) -> tuple[str, ...]:
    """Put messages into lines, each with its role; a question alone needs none."""
    if len(conversation) < 2:
        return ()
    return tuple(
        f"{getattr(message, 'type', 'message')}: {getattr(message, 'content', message)}" for message in conversation
    )


def review_outcome(value: object, situation: Situation) -> Outcome:
    """Settle with what a human decides about the situation's draft.

    Raises:
        ValidationError: (of pydantic) that is no decision.
    """
    answer = ReviewAnswer.of(value)
    reason = f"reviewer: {answer.decision}"
    if answer.decision == "approve":
        return Outcome(True, reason, situation.draft.text, as_drafted=True)
    if answer.decision == "reject":
        return Outcome(True, reason, answer.text or DEFAULT_ABSTENTION)
    return Outcome(True, reason, answer.text or "")
