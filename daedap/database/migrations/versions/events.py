"""Events that messengers have sent."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "events",
        sql.Column("key", sql.String(64), nullable=False),
        sql.Column("time", sql.String(32), nullable=False),
        sql.Column("answer", sql.JSON),
        sql.PrimaryKeyConstraint("key", name="pk_events"),
    )
    op.create_index("ix_events_time", "events", ["time"])
