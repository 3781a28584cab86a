"""The routes that need nothing but the held-back answer: abstaining, raising, and asking a human."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.records import Score, Source
from semgrad_guard.routing.ladder import DEFAULT_ABSTENTION, Outcome, Situation
from semgrad_guard.routing.timeouts import await_within, call_within


class Abstain(BaseModel):
    """Answer with a fixed message instead of the draft. Always settles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str = DEFAULT_ABSTENTION
    below: float | None = Field(default=None, ge=0, le=1)
    decision: Literal["abstain"] = "abstain"

    def __init__(self, message: str = DEFAULT_ABSTENTION, *, below: float | None = None) -> None:
        """Set the message, and the confidence under which the route applies (None: the guard's threshold)."""
        super().__init__(message=message, below=below)

    def attempt(self, situation: Situation) -> Outcome:
        """Settle with the message."""
        return Outcome(True, "abstained", self.message)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Settle with the message."""
        return self.attempt(situation)


class Raise(BaseModel):
    """Raise a `LowConfidenceError` instead of answering. Always settles, as an abstention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    with_draft: bool = False
    below: float | None = Field(default=None, ge=0, le=1)
    decision: Literal["abstain"] = "abstain"

    def attempt(self, situation: Situation) -> Outcome:
        """Settle with an error."""
        return Outcome(True, "raised", situation.draft.text if self.with_draft else "", raises=True)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Settle with an error."""
        return self.attempt(situation)


class ReviewRequest(BaseModel):
    """What a human, or another model, is asked: the question, the draft held back, tool calls included, and why."""

    model_config = ConfigDict(frozen=True)

    question: str
    draft: str
    confidence: float | None
    scores: Score | None
    reason: str
    sources: tuple[Source, ...] = ()


class ReviewAnswer(BaseModel):
    """What a human decides.

    "approve": the draft goes out as it is; "edit": the draft as corrected in `text`; "respond": the human's own answer
    in `text`; "reject": no answer goes out, `text` or a refusal stands instead.
    """

    model_config = ConfigDict(frozen=True)

    decision: Literal["approve", "edit", "reject", "respond"]
    text: str | None = None

    @model_validator(mode="after")
    def _has_text(self) -> ReviewAnswer:
        if self.decision in ("edit", "respond") and not self.text:
            raise ValueError(f"decision {self.decision!r} needs a text")
        return self


class HumanReview(BaseModel):
    """Hand the held-back answer to a human; settles with what they decide.

    The callback answers with a `ReviewAnswer`, or its decision alone where that needs no text. One that raises, times
    out, or answers anything else does not settle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    callback: Callable[[ReviewRequest], ReviewAnswer | str] | None = None
    acallback: Callable[[ReviewRequest], Awaitable[ReviewAnswer | str]] | None = None
    below: float | None = Field(default=None, ge=0, le=1)
    timeout: float | None = Field(default=None, gt=0)
    decision: Literal["review"] = "review"

    def __init__(
        self,
        callback: Callable[[ReviewRequest], ReviewAnswer | str] | None = None,
        acallback: Callable[[ReviewRequest], Awaitable[ReviewAnswer | str]] | None = None,
        *,
        below: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Set who is asked.

        Args:
            callback: gets a `ReviewRequest`, gives a `ReviewAnswer`; async callers run it in a thread.
            acallback: the same for async callers, awaited.
            below: confidence under which the route applies; None for the guard's threshold.
            timeout: seconds to wait.
        """
        super().__init__(callback=callback, acallback=acallback, below=below, timeout=timeout)
        if callback is None and acallback is None:
            raise ConfigurationError("HumanReview has nobody to ask: pass callback=... or acallback=....")

    def attempt(self, situation: Situation) -> Outcome:
        """Ask and wait."""
        if self.callback is None:
            return Outcome(False, "HumanReview has an acallback only; call the guard with ainvoke")
        callback, request = self.callback, review_request(situation)
        return _outcome(call_within(self.timeout, lambda: callback(request)), situation)

    async def aattempt(self, situation: Situation) -> Outcome:
        """Ask and await."""
        request = review_request(situation)
        if self.acallback is not None:
            return _outcome(await await_within(self.timeout, self.acallback(request)), situation)
        if self.callback is None:  # __init__ refuses this; for the type checker
            return Outcome(False, "HumanReview has nobody to ask")
        return _outcome(await await_within(self.timeout, asyncio.to_thread(self.callback, request)), situation)


def review_request(situation: Situation) -> ReviewRequest:
    """Tell of a situation what a reviewer needs."""
    verdict = situation.draft.verdict
    return ReviewRequest(
        question=situation.question,
        draft=situation.draft.text,
        confidence=verdict.confidence,
        scores=verdict.scores,
        reason=verdict.reason,
        sources=situation.sources,
    )


def _outcome(given: object, situation: Situation) -> Outcome:
    answer = ReviewAnswer.model_validate({"decision": given} if isinstance(given, str) else given)
    reason = f"reviewer: {answer.decision}"
    if answer.decision == "approve":
        return Outcome(True, reason, situation.draft.text, as_drafted=True)
    if answer.decision == "reject":
        return Outcome(True, reason, answer.text or DEFAULT_ABSTENTION)
    return Outcome(True, reason, answer.text or "")
