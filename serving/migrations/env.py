"""Alembic's entry point; the store hands its connection over, so there is no alembic.ini."""

from alembic import context

from flyball.serving.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
