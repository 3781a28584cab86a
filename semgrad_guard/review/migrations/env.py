"""Runs migrations on the connection that the queue hands over, inside the queue's transaction."""

from alembic import context

from semgrad_guard.review.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
