"""The queue's other side: what was asked and decided, for looking at, learning from, and deleting."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar, get_args

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from semgrad_guard.errors import ConfigurationError, ReviewConflictError, ReviewError
from semgrad_guard.review.database import Database
from semgrad_guard.review.items import (
    Order,
    ReviewEvent,
    ReviewFilter,
    ReviewItem,
    ReviewStatistics,
    ReviewVerdict,
    Status,
    labelled_examples,
)
from semgrad_guard.review.tables import Event, Review, having, matching
from semgrad_guard.settings import DAY, check_seconds

T = TypeVar("T")
_TRIES = 10


class ReviewArchive:
    """All reviews, in a database that any number of processes may share."""

    def __init__(
        self,
        url: str = "sqlite:///reviews.db",
        *,
        lifetime: float | None = None,
        busy_timeout: float = 30.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the queue; its tables are made, or brought up to date.

        Args:
            url: "sqlite:///file.db", or "postgresql+psycopg://user@host/name".
            lifetime: seconds after which a review that nobody decided on expires; None for never.
            busy_timeout: seconds to wait for another writer (SQLite), or for the server (PostgreSQL); at most a day.
            clock: tells the time, aware.

        Raises:
            ConfigurationError: the URL names no file and no PostgreSQL database, or a length of time is out of range.
            ReviewError: the database cannot be opened.
        """
        self._lifetime = None if lifetime is None else timedelta(seconds=check_seconds("lifetime", lifetime))
        patience = check_seconds("busy_timeout", busy_timeout, most=DAY)
        self._clock = clock
        self._database = Database(url, busy_timeout=patience)

    def __repr__(self) -> str:
        """Show where it is, without the password."""
        return f"ReviewQueue({str(self._database)!r})"

    def get(self, id_: str) -> ReviewItem:
        """Give a review.

        Raises:
            ReviewError: there is none of that id, or no longer.
        """
        with self._database.session() as session:
            return existing(session, id_).item(self._clock())

    def items(
        self,
        *,
        status: Status | None = None,
        decision: str | None = None,
        reviewer: str | None = None,
        contains: str | None = None,
        only: ReviewFilter | None = None,
        order: Order = "oldest",
        limit: int | None = 100,
        offset: int = 0,
    ) -> list[ReviewItem]:
        """List reviews.

        Args:
            status: only those that are "pending", "claimed", "decided" or "expired".
            decision: only those decided so.
            reviewer: only those that this reviewer claimed or decided last.
            contains: only those with this in their question or draft, case aside.
            only: all of that in one record, and more; in place of them.
            order: "oldest" first, or "least confident" first, those without a confidence before them.
            limit: at most so many; None for all.
            offset: leave out so many before.
        """
        only = only or ReviewFilter(status=status, decision=decision, reviewer=reviewer, contains=contains)
        first = [Review.confidence.asc().nulls_first()] if order == "least confident" else []
        with self._database.session() as session:
            now = self._clock()
            query = select(Review).where(*matching(only, now)).order_by(*first, Review.number)
            return [review.item(now) for review in session.scalars(query.limit(limit).offset(offset))]

    def count(self, only: ReviewFilter) -> int:
        """Tell how many reviews there are of those."""
        with self._database.session() as session:
            return session.scalar(select(func.count(Review.number)).where(*matching(only, self._clock()))) or 0

    def neighbours(self, id_: str) -> tuple[str | None, str | None]:
        """Give the undecided reviews that were submitted next before one and next after it; None at an end.

        Raises:
            ReviewError: there is none of that id, or no longer.
        """
        with self._database.session() as session:
            now = self._clock()
            number = existing(session, id_).number
            undecided = select(Review.id).where(having("pending", now) | having("claimed", now))
            before = undecided.where(Review.number < number).order_by(Review.number.desc())
            after = undecided.where(Review.number > number).order_by(Review.number)
            return session.scalar(before.limit(1)), session.scalar(after.limit(1))

    def verdicts(self) -> list[ReviewVerdict]:
        """Tell of every decision, in the order they were made, what statistics need to know."""
        with self._database.session() as session:
            claims = select(Event.review_id, Event.who, func.max(Event.at)).where(Event.action == "claimed")
            claimed = {(id_, who): at for id_, who, at in session.execute(claims.group_by(Event.review_id, Event.who))}
            decided = select(
                Review.id, Review.decision, Review.reviewer, Review.confidence, Review.created, Review.decided
            ).where(Review.decision.is_not(None))
            return [
                ReviewVerdict.model_validate({**row, "claimed": claimed.get((row["id"], row["reviewer"]))})
                for row in session.execute(decided.order_by(Review.decided, Review.number)).mappings()
            ]

    def trail(self, id_: str) -> list[ReviewEvent]:
        """Tell who did what to a review, in order; also of one that was deleted."""
        with self._database.session() as session:
            events = session.scalars(select(Event).where(Event.review_id == id_).order_by(Event.number))
            return [event.record() for event in events]

    def statistics(self) -> ReviewStatistics:
        """Tell how the queue stands."""
        with self._database.session() as session:
            now = self._clock()
            counts: dict[Status, int] = {
                status: session.scalar(select(func.count()).where(having(status, now))) or 0
                for status in get_args(Status)
            }
            grouped = select(Review.decision, func.count()).where(having("decided", now)).group_by(Review.decision)
            decisions = {str(decision): count for decision, count in session.execute(grouped)}
            waiting = having("pending", now) | having("claimed", now)
            oldest = session.scalar(select(Review.created).where(waiting).order_by(Review.number).limit(1))
        decided = counts["decided"]
        return ReviewStatistics(
            counts=counts,
            decisions=decisions,
            oldest=None if oldest is None else (now - oldest).total_seconds(),
            approved=decisions.get("approve", 0) / decided if decided else None,
        )

    def delete(self, id_: str, who: str) -> None:
        """Delete a review; of its text nothing is left in an SQLite file. The trail keeps that it was deleted, by whom.

        Raises:
            ReviewError: there is none of that id, or the file is in use and could not be rewritten.
        """
        check(who)

        def work(session: Session, now: datetime) -> None:
            session.delete(existing(session, id_))
            note(session, id_, now, who, "deleted")

        self._write(work)
        self._database.clean()

    def purge(self, older_than: float, who: str) -> int:
        """Delete all reviews that were submitted more than so many seconds ago, decided or not; give their number.

        Raises:
            ConfigurationError: the age is no number of seconds, >= 0.
            ReviewError: the file is in use and could not be rewritten.
        """
        check(who)
        age = timedelta(seconds=check_seconds("older_than", older_than, zero=True))

        def work(session: Session, now: datetime) -> int:
            created_before = Review.created < now - age
            reviews = session.scalars(select(Review).where(created_before)).all()
            for review in reviews:
                session.delete(review)
                note(session, review.id, now, who, "purged")
            return len(reviews)

        purged = self._write(work)
        self._database.clean()
        return purged

    def export(self, path: str | Path) -> int:
        """Write decided reviews as labelled questions, which `semgrad-guard calibrate --data` reads; give their number.

        Reviews are about answers that were held back. A promise for all answers needs questions of all kinds beside.
        """
        decided = sorted(self.items(status="decided", limit=None), key=_when)
        examples = labelled_examples(decided)
        Path(path).write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
        return len(examples)

    def now(self) -> datetime:
        """Tell the queue's time, in UTC."""
        return self._clock()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def _write(self, work: Callable[[Session, datetime], T]) -> T:
        """Do something in a transaction, and again if somebody else was faster."""
        for _ in range(_TRIES):
            try:
                with self._database.session(write=True) as session:
                    session.connection()  # on SQLite it is here that others are waited for, so the time is told after
                    return work(session, self._clock())
            except (StaleDataError, IntegrityError):
                continue
        raise ReviewConflictError(f"The review was changed by others {_TRIES} times in a row; try again.")


def existing(session: Session, id_: str) -> Review:
    """Find a review.

    Raises:
        ReviewError: there is none of that id.
    """
    review = session.scalar(select(Review).where(Review.id == id_))
    if review is None:
        raise ReviewError(f"There is no review {id_!r}, or no longer.")
    return review


def note(session: Session, id_: str, at: datetime, who: str, action: str) -> None:
    """Add an entry to the trail."""
    session.add(Event(review_id=id_, at=at, who=who, action=action))


def storable(text: str) -> str:
    """Replace what PostgreSQL cannot keep in a text."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def check(reviewer: str, lease: float = 1.0) -> None:
    """Refuse a reviewer without a name, and a lease that is no length of time.

    Raises:
        ConfigurationError: it is one of these.
    """
    if not isinstance(reviewer, str) or not reviewer.strip() or len(reviewer) > 200 or "\0" in reviewer:
        raise ConfigurationError(f"reviewer={str(reviewer)[:20]!r}: expected a name of 1 to 200 letters.")
    check_seconds("lease", lease)


def _when(item: ReviewItem) -> datetime:
    return item.decided or item.created
