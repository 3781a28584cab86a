"""Human review: a queue of held-back answers, on SQLite or PostgreSQL. `ReviewQueue` needs the extra `review`."""

from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import needs
from semgrad_guard.review.items import ReviewEvent, ReviewFilter, ReviewItem, ReviewStatistics

if TYPE_CHECKING:
    from semgrad_guard.review.queue import ReviewQueue

__all__ = ["ReviewEvent", "ReviewFilter", "ReviewItem", "ReviewQueue", "ReviewStatistics"]


def __getattr__(name: str) -> Any:
    """Import the queue on use: everything else works without the extra."""
    if name != "ReviewQueue":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("review", "ReviewQueue needs sqlalchemy and alembic"):
        from semgrad_guard.review.queue import ReviewQueue
    return ReviewQueue
