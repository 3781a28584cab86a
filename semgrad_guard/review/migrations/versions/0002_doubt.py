"""What reviewers see of the doubt and the policy."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; reviews from before have nothing in them."""
    op.add_column("reviews", sa.Column("doubt", sa.JSON()))
    op.add_column("reviews", sa.Column("policy", sa.Text()))
    op.add_column("reviews", sa.Column("threshold", sa.Float()))
