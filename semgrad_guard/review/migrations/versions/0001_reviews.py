"""Reviews and their trail, which can only grow."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "reviews",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("draft", sa.Text(), nullable=False),
        sa.Column("confidence", sa.Float()),
        sa.Column("scores", sa.JSON()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sources", sa.JSON(), nullable=False),
        sa.Column("tool_calls", sa.JSON(), nullable=False),
        sa.Column("conversation", sa.JSON(), nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
        sa.Column("expires", _MOMENT),
        sa.Column("reviewer", sa.String(200)),
        sa.Column("lease_until", _MOMENT),
        sa.Column("decision", sa.String(10)),
        sa.Column("text", sa.Text()),
        sa.Column("decided", _MOMENT),
    )
    undecided = sa.text("decision IS NULL")
    op.create_index("ix_reviews_undecided", "reviews", ["number"], sqlite_where=undecided, postgresql_where=undecided)
    op.create_table(
        "review_events",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("review_id", sa.String(36), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
    )
    op.create_index("ix_review_events_review_id", "review_events", ["review_id"])
    _refuse_changes(op.get_bind().dialect.name)


def _refuse_changes(dialect: str) -> None:
    """Let nobody change or delete an entry of the trail."""
    if dialect == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER review_events_no_{verb.lower()} BEFORE {verb} ON review_events "
                "BEGIN SELECT RAISE(ABORT, 'the trail can only grow'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION review_events_only_grow() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN RAISE EXCEPTION 'the trail can only grow'; END $$"
    )
    op.execute(
        "CREATE TRIGGER review_events_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON review_events "
        "FOR EACH STATEMENT EXECUTE FUNCTION review_events_only_grow()"
    )
