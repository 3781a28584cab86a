"""A review holds the verdict on its draft as a whole, and what it tells of tokens is `tokens`."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_AT_A_TIME = 500
_JSON = sa.JSON(none_as_null=True)
_REVIEWS = sa.table(
    "reviews",
    sa.column("number", sa.Integer),
    sa.column("confidence", sa.Float),
    sa.column("scores", _JSON),
    sa.column("reason", sa.Text),
    sa.column("policy", sa.Text),
    sa.column("threshold", sa.Float),
    sa.column("verdict", _JSON),
)


def upgrade() -> None:
    """Put what stood in columns of its own into the verdict; of old reviews it does not know cause and method."""
    op.add_column("reviews", sa.Column("verdict", sa.JSON()))
    connection, last = op.get_bind(), 0
    while rows := _next(connection, last):
        for row in rows:
            values = {"verdict": _verdict(row)}
            connection.execute(sa.update(_REVIEWS).where(_REVIEWS.c.number == row.number).values(values))
        last = rows[-1].number
    with op.batch_alter_table("reviews") as table:
        table.alter_column("verdict", existing_type=sa.JSON(), nullable=False)
        table.alter_column("doubt", new_column_name="tokens", existing_type=sa.JSON())
        for name in ("scores", "reason", "policy", "threshold"):
            table.drop_column(name)


def _next(connection: sa.Connection, last: int) -> list[sa.Row[Any]]:
    rows = sa.select(_REVIEWS).where(_REVIEWS.c.number > last).order_by(_REVIEWS.c.number).limit(_AT_A_TIME)
    return list(connection.execute(rows))


def _verdict(row: sa.Row[Any]) -> dict[str, object]:
    return {
        "passed": False,
        "cause": None,
        "confidence": row.confidence,
        "calibrated": False,
        "scores": row.scores,
        "threshold": row.threshold,
        "method": "unknown",
        "reason": row.reason,
        "guarantee": None,
        "policy": row.policy or "",
    }
