"""Run by alembic: migrations on the connection that `daedap.database.connection` gives it."""

from __future__ import annotations

from alembic import context

from daedap.database.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
