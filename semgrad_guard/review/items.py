"""What the queue gives out: reviews, their trail, statistics, and labelled examples of what was decided."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, field_validator

from semgrad_guard.errors import ConfigurationError
from semgrad_guard.routing.routes import ReviewAnswer, ReviewRequest

Status = Literal["pending", "claimed", "decided", "expired"]
Order = Literal["oldest", "least confident"]


class ReviewItem(BaseModel):
    """A review: what is asked, who has it, and what was decided.

    "claimed" is one that `reviewer` has until `lease_until`; after that it is "pending" again. "expired" is one that
    nobody decided on by `expires`. All times are aware, in UTC.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    request: ReviewRequest
    status: Status
    created: datetime
    expires: datetime | None = None
    reviewer: str | None = None
    lease_until: datetime | None = None
    answer: ReviewAnswer | None = None
    decided: datetime | None = None

    @property
    def text(self) -> str | None:
        """The text that may go out: the draft if it was approved, else what the reviewer wrote, if anything."""
        if self.answer is None:
            return None
        return self.request.draft if self.answer.decision == "approve" else self.answer.text


class ReviewEvent(BaseModel):
    """An entry of the trail: who did what to a review, and when. It holds no text of the review."""

    model_config = ConfigDict(frozen=True)

    review_id: str
    at: datetime
    who: str
    action: str


class ReviewFilter(BaseModel):
    """Which reviews are meant; None is all of them.

    `contains` is looked for in question and draft, case aside; `tool_calls` tells whether the draft has any; `least`
    and `most` are confidences in [0, 1], and leave out what has none.
    """

    model_config = ConfigDict(frozen=True)

    status: Status | None = None
    decision: str | None = None
    reviewer: str | None = None
    contains: str | None = None
    tool_calls: bool | None = None
    least: float | None = None
    most: float | None = None

    @field_validator("status", mode="before")
    @classmethod
    def _known(cls, status: object) -> object:
        if status is not None and status not in get_args(Status):
            raise ConfigurationError(f"status={status!r}: expected one of {', '.join(get_args(Status))}.")
        return status


class ReviewVerdict(BaseModel):
    """A decision, as statistics see it: how sure the draft was, who decided what, and when they took it up.

    `claimed` is None where they decided without having claimed it.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    decision: Literal["approve", "edit", "reject", "respond"]
    reviewer: str
    confidence: float | None
    created: datetime
    claimed: datetime | None
    decided: datetime


class ReviewStatistics(BaseModel):
    """How the queue stands.

    `oldest` is the age in seconds of the oldest review without a decision; `approved` the share of decided reviews, in
    [0, 1], where the draft went out as it was: where the guard was more careful than the reviewer. None without any.
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[Status, int]
    decisions: dict[str, int]
    oldest: float | None
    approved: float | None


def labelled_examples(items: Iterable[ReviewItem]) -> list[dict[str, Any]]:
    """Turn decided reviews into labelled questions, in the form that `read_examples` reads; the last decision counts.

    An approved draft is right and a rejected one wrong; where a reviewer wrote another text, that is the right answer
    and the draft is wrong. Left out is what says nothing about an answer to a question by itself: tool calls, answers
    within a longer conversation, and rejections without a draft.
    """
    examples: dict[str, dict[str, Any]] = {}
    for item in items:
        request, answer = item.request, item.answer
        if answer is None or request.tool_calls or request.conversation or not request.question.strip():
            continue
        example: dict[str, Any] = {"query": request.question}
        written = (answer.text or "").strip() if answer.decision in ("edit", "respond") else ""
        if written:
            example["truthful answer"] = [written]
        if request.draft.strip():
            right = answer.decision == "approve" or request.draft.strip() == written
            example |= {"answer": request.draft, "correct": right}
        if len(example) > 1:
            examples[request.question] = example
    return list(examples.values())
