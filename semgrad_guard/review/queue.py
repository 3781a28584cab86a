"""The queue: what reviewers do with reviews, each a transaction of its own with an entry in the trail."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from semgrad_guard.errors import ReviewConflictError
from semgrad_guard.review.archive import ReviewArchive, check, existing, note, storable
from semgrad_guard.review.items import ReviewItem, Status
from semgrad_guard.review.tables import Review, having
from semgrad_guard.routing.routes import ReviewAnswer, ReviewRequest
from semgrad_guard.settings import check_seconds

_POLLS = (0.05, 1.0)  # seconds between looks while waiting: the first, and the longest


class ReviewQueue(ReviewArchive):
    """Held-back answers that wait for a human, in a database that any number of processes may share.

    Made for SQLite on one machine, and for PostgreSQL from several, whose clocks must agree to well within a lease.
    Every method may be called from any thread; each raises a `ReviewError` if the database is out of reach.
    """

    def submit(self, request: ReviewRequest, *, key: str | None = None) -> str:
        """Put a request into the queue, and give the review's id.

        The same request again is the same review, decided on or not; one that has expired starts anew.

        Args:
            request: what is asked.
            key: what makes it the same; by default the question, draft, sources and conversation.
        """
        digest = _digest(request if key is None else key)
        texts = {name: storable(getattr(request, name)) for name in ("question", "draft")}
        verdict = request.verdict.model_copy(update={"reason": storable(request.verdict.reason)})
        request = request.model_copy(update={**texts, "verdict": verdict})

        def work(session: Session, now: datetime) -> str:
            review = session.scalar(select(Review).where(Review.key == digest))
            expires = None if self._lifetime is None else now + self._lifetime
            if review is None:
                review = Review.of(request, id=str(uuid4()), key=digest, created=now, expires=expires)
                session.add(review)
            elif review.status(now) == "expired":
                review.expires = expires
            else:
                return review.id
            note(session, review.id, now, "guard", "submitted")
            return review.id

        return self._write(work)

    def claim(self, reviewer: str, lease: float = 900.0, *, id_: str | None = None) -> ReviewItem | None:
        """Hand the oldest pending review to a reviewer, for so many seconds, or that of an id; None if none is pending.

        Raises:
            ReviewConflictError: that of the id is not pending.
            ReviewError: there is none of that id, or no longer.
        """
        check(reviewer, lease)

        def work(session: Session, now: datetime) -> ReviewItem | None:
            oldest = select(Review).where(having("pending", now)).order_by(Review.number).limit(1)
            if id_ is None:  # SQLite has locked everything already
                review = session.scalar(oldest.with_for_update(skip_locked=True))
            elif (status := (review := existing(session, id_)).status(now)) != "pending":
                raise ReviewConflictError(_conflict(review, status))
            if review is None:
                return None
            review.reviewer, review.lease_until = reviewer, now + timedelta(seconds=lease)
            note(session, review.id, now, reviewer, "claimed")
            return review.item(now)

        return self._write(work)

    def renew(self, id_: str, reviewer: str, lease: float = 900.0) -> ReviewItem:
        """Let a reviewer keep a review for so many seconds from now.

        Raises:
            ReviewConflictError: the reviewer does not have it, or no longer.
        """
        check(reviewer, lease)

        def work(session: Session, now: datetime) -> ReviewItem:
            review = _held(session, id_, reviewer, now)
            review.lease_until = now + timedelta(seconds=lease)
            note(session, id_, now, reviewer, "renewed")
            return review.item(now)

        return self._write(work)

    def release(self, id_: str, reviewer: str) -> ReviewItem:
        """Give a review back undecided.

        Raises:
            ReviewConflictError: the reviewer does not have it, or no longer.
        """

        def work(session: Session, now: datetime) -> ReviewItem:
            review = _held(session, id_, reviewer, now)
            review.reviewer = review.lease_until = None
            note(session, id_, now, reviewer, "released")
            return review.item(now)

        return self._write(work)

    def decide(self, id_: str, decision: ReviewAnswer | str, reviewer: str) -> ReviewItem:
        """Decide, claimed or not; deciding the same again changes nothing.

        Raises:
            ReviewConflictError: it is decided otherwise, has expired, or somebody else has it.
            ValidationError: (of pydantic) the decision is none, or lacks the text it needs.
        """
        answer = ReviewAnswer.of(decision)
        if answer.text is not None:
            answer = answer.model_copy(update={"text": storable(answer.text)})
        check(reviewer)

        def work(session: Session, now: datetime) -> ReviewItem:
            review = existing(session, id_)
            status = review.status(now)
            if status == "decided" and review.answer() == answer:
                return review.item(now)
            if status in ("decided", "expired") or (status == "claimed" and review.reviewer != reviewer):
                raise ReviewConflictError(_conflict(review, status))
            review.decision, review.text, review.reviewer = answer.decision, answer.text, reviewer
            review.decided, review.lease_until = now, None
            note(session, id_, now, reviewer, answer.decision)
            return review.item(now)

        return self._write(work)

    def wait(self, id_: str, timeout: float) -> ReviewAnswer | None:
        """Give what was decided, waiting up to `timeout` seconds; None if nothing was.

        Raises:
            ConfigurationError: the timeout is no number of seconds, >= 0.
            ReviewError: there is no review of that id, or no longer.
        """
        for pause in _pauses(timeout):
            time.sleep(pause)
            item = self.get(id_)
            if item.status in ("decided", "expired"):
                return item.answer
        return None

    async def await_(self, id_: str, timeout: float) -> ReviewAnswer | None:
        """Async twin of `wait`; no thread is taken between looks."""
        for pause in _pauses(timeout):
            await asyncio.sleep(pause)
            item = await asyncio.to_thread(self.get, id_)
            if item.status in ("decided", "expired"):
                return item.answer
        return None


def _held(session: Session, id_: str, reviewer: str, now: datetime) -> Review:
    review = existing(session, id_)
    status = review.status(now)
    if status != "claimed" or review.reviewer != reviewer:
        raise ReviewConflictError(_conflict(review, status))
    return review


def _conflict(review: Review, status: Status) -> str:
    about = {
        "decided": f"was decided by {review.reviewer}: {review.decision}",
        "claimed": f"is with {review.reviewer} until {review.lease_until:%Y-%m-%d %H:%M:%S} UTC"
        if review.lease_until
        else "",
        "expired": "has expired",
        "pending": "is not claimed, or no longer; claim it first",
    }
    return f"Review {review.id} {about[status]}."


def _digest(key: ReviewRequest | str) -> str:
    if not isinstance(key, str):
        sources = [source.text for source in key.sources]
        key = json.dumps([key.question, key.draft, sources, key.conversation])
    return hashlib.sha256(key.encode()).hexdigest()


def _pauses(timeout: float) -> Iterator[float]:
    """Yield how long to wait before each look: at once, then longer and longer, and the last when time is up."""
    deadline, (pause, longest) = time.monotonic() + check_seconds("timeout", timeout, zero=True), _POLLS
    yield 0.0
    while (left := deadline - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, longest)
