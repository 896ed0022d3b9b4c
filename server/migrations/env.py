"""Alembic's entry: `Database.alembic` passes a connection; for the `alembic` command the settings name it."""

from alembic import context
from sqlalchemy import Connection

from server import (  # noqa: F401  # their tables
    aliases,
    behaviors,
    campaigns,
    comparisons,
    feedback,
    interactions,
    jobs,
    observed,
    policies,
    projects,
    sessions,
    vectors,
)
from server.database import Database
from server.settings import Settings
from server.store import Table


def run(connection: Connection) -> None:
    # SQLite cannot alter a column in place; in batch mode Alembic copies the table.
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    Database(Settings.read().database_url).alembic(lambda config: run(config.attributes["connection"]))
