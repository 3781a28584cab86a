"""The queue's tables. Whoever changes them adds a migration; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy import JSON, ColumnElement, DateTime, Dialect, Float, Index, String, Text, and_, cast, not_, or_
from sqlalchemy import text as sql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from semgrad_guard.review.items import ReviewEvent, ReviewFilter, ReviewItem, Status
from semgrad_guard.routing.routes import ReviewAnswer, ReviewRequest


class Moment(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the time zone, so it is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC, which is what SQLite's naive ones are in."""
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)


class Base(DeclarativeBase):
    """Holds the metadata."""


class Review(Base):
    """A review. Its status follows from the decision, the lease and the clock, so that none can go stale."""

    __tablename__ = "reviews"
    __table_args__ = (
        Index(
            "ix_reviews_undecided",
            "number",
            sqlite_where=sql("decision IS NULL"),
            postgresql_where=sql("decision IS NULL"),
        ),
    )

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    version: Mapped[int] = mapped_column()
    question: Mapped[str] = mapped_column(Text)
    draft: Mapped[str] = mapped_column(Text)
    confidence: Mapped[float | None] = mapped_column(Float)  # that of the verdict, to be filtered and sorted by
    verdict: Mapped[dict[str, Any]] = mapped_column(JSON)
    sources: Mapped[list[Any]] = mapped_column(JSON)
    tool_calls: Mapped[dict[str, Any]] = mapped_column(JSON)
    conversation: Mapped[list[str]] = mapped_column(JSON)
    created: Mapped[datetime] = mapped_column(Moment)
    expires: Mapped[datetime | None] = mapped_column(Moment)
    reviewer: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None] = mapped_column(Moment)
    decision: Mapped[str | None] = mapped_column(String(10))
    text: Mapped[str | None] = mapped_column(Text)
    decided: Mapped[datetime | None] = mapped_column(Moment)
    tokens: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # none of what is older than the column

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy reads it from the class

    @classmethod
    def of(cls, request: ReviewRequest, **fields: Any) -> Review:
        """Make the row of a request; numbers that are not finite become texts, which JSON in databases can hold."""
        plain = to_jsonable_python(request, inf_nan_mode="strings", fallback=str)
        return cls(**plain, confidence=request.verdict.confidence, **fields)

    def status(self, now: datetime) -> Status:
        """Tell how it stands."""
        if self.decision is not None:
            return "decided"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "claimed" if self.lease_until is not None and self.lease_until > now else "pending"

    def item(self, now: datetime) -> ReviewItem:
        """Give the record of it."""
        status = self.status(now)
        held = status in ("claimed", "decided")
        fields = {name: getattr(self, name) for name in ReviewRequest.model_fields}
        fields |= {"tokens": self.tokens or ()}
        return ReviewItem(
            id=self.id,
            request=ReviewRequest.model_validate(fields),
            status=status,
            created=self.created,
            expires=self.expires,
            reviewer=self.reviewer if held else None,
            lease_until=self.lease_until if status == "claimed" else None,
            answer=self.answer(),
            decided=self.decided,
        )

    def answer(self) -> ReviewAnswer | None:
        """Give what was decided; None if nothing was."""
        return None if self.decision is None else ReviewAnswer.of({"decision": self.decision, "text": self.text})


class Event(Base):
    """An entry of the trail; triggers refuse to change one. It outlives its review and holds no text of it."""

    __tablename__ = "review_events"

    number: Mapped[int] = mapped_column(primary_key=True)
    review_id: Mapped[str] = mapped_column(String(36), index=True)
    at: Mapped[datetime] = mapped_column(Moment)
    who: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(40))

    def record(self) -> ReviewEvent:
        """Give the record of it."""
        return ReviewEvent(review_id=self.review_id, at=self.at, who=self.who, action=self.action)


def having(status: Status, now: datetime) -> ColumnElement[bool]:
    """Say in SQL what `Review.status` says of one row."""
    if status == "decided":
        return Review.decision.is_not(None)
    undecided = Review.decision.is_(None)
    if status == "expired":
        return and_(undecided, Review.expires <= now)
    alive = and_(undecided, or_(Review.expires.is_(None), Review.expires > now))
    if status == "claimed":
        return and_(alive, Review.lease_until > now)
    return and_(alive, or_(Review.lease_until.is_(None), Review.lease_until <= now))


def matching(only: ReviewFilter, now: datetime) -> list[ColumnElement[bool]]:
    """Say in SQL which reviews a filter means."""
    conditions = [] if only.status is None else [having(only.status, now)]
    if only.decision is not None:
        conditions.append(Review.decision == only.decision)
    if only.reviewer is not None:
        conditions.append(Review.reviewer == only.reviewer)
    if only.contains is not None:
        texts = (Review.question, Review.draft)
        conditions.append(or_(*(text.icontains(only.contains, autoescape=True) for text in texts)))
    if only.tool_calls is not None:
        without = cast(Review.tool_calls, Text) == "{}"  # JSON itself cannot be compared everywhere
        conditions.append(not_(without) if only.tool_calls else without)
    if only.least is not None:
        conditions.append(Review.confidence >= only.least)
    if only.most is not None:
        conditions.append(Review.confidence <= only.most)
    return conditions
