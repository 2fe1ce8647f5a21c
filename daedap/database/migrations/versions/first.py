"""The first schema."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def _id(name: str) -> sql.Column[str]:
    return sql.Column(name, sql.String(40))


def _time(name: str, *, required: bool = True) -> sql.Column[str]:
    return sql.Column(name, sql.String(32), nullable=not required)


def _text(name: str, *, required: bool = True) -> sql.Column[str]:
    return sql.Column(name, sql.Text, nullable=not required)


def upgrade() -> None:
    """Create all tables."""
    _create_conversations()
    _create_lessons()
    op.create_table(
        "comparisons",
        sql.Column("id", sql.String(40), nullable=False),
        sql.Column("client", sql.String(64), nullable=False),
        _text("question"),
        sql.Column("left_run", sql.Integer, nullable=False),
        sql.Column("right_run", sql.Integer, nullable=False),
        _text("left_answer"),
        _text("right_answer"),
        sql.Column("winner", sql.Integer),
        _time("time"),
        sql.PrimaryKeyConstraint("id", name="pk_comparisons"),
    )
    op.create_index("ix_comparisons_runs", "comparisons", ["left_run", "right_run"])
    op.create_table(
        "sessions",
        sql.Column("token", sql.String(64), nullable=False),
        _time("expires"),
        sql.PrimaryKeyConstraint("token", name="pk_sessions"),
    )
    op.create_table(
        "audit",
        sql.Column("id", sql.Integer, nullable=False),
        _time("time"),
        sql.Column("actor", sql.String(16), nullable=False),
        sql.Column("action", sql.String(32), nullable=False),
        sql.Column("detail", sql.JSON, nullable=False),
        sql.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_time", "audit", ["time"])
    op.create_table(
        "revisions",
        sql.Column("name", sql.String(32), nullable=False),
        sql.Column("value", sql.Integer, nullable=False),
        sql.PrimaryKeyConstraint("name", name="pk_revisions"),
    )
    op.execute("INSERT INTO revisions (name, value) VALUES ('lessons', 0)")


def _create_conversations() -> None:
    op.create_table(
        "conversations",
        sql.Column("id", sql.String(40), nullable=False),
        sql.Column("client", sql.String(64), nullable=False),
        _text("title"),
        _time("started"),
        _time("updated"),
        sql.PrimaryKeyConstraint("id", name="pk_conversations"),
    )
    op.create_index("ix_conversations_client", "conversations", ["client"])
    op.create_index("ix_conversations_updated", "conversations", ["updated"])
    op.create_table(
        "replies",
        sql.Column("id", sql.String(40), nullable=False),
        sql.Column("conversation", sql.String(40), nullable=False),
        _text("question"),
        _text("form"),
        _text("answer"),
        sql.Column("source", sql.String(16), nullable=False),
        sql.Column("score", sql.Float, nullable=False),
        sql.Column("evidence", sql.JSON),
        sql.Column("suggestions", sql.JSON, nullable=False),
        sql.Column("run", sql.Integer, nullable=False),
        _id("lesson"),
        sql.Column("milliseconds", sql.Integer, nullable=False),
        _time("time"),
        sql.Column("vote", sql.String(8)),
        _text("comment", required=False),
        sql.ForeignKeyConstraint(
            ["conversation"], ["conversations.id"], name="fk_replies_conversation", ondelete="CASCADE"
        ),
        sql.PrimaryKeyConstraint("id", name="pk_replies"),
    )
    op.create_index("ix_replies_conversation", "replies", ["conversation"])
    op.create_index("ix_replies_time", "replies", ["time"])


def _create_lessons() -> None:
    op.create_table(
        "lessons",
        sql.Column("id", sql.String(40), nullable=False),
        _text("question"),
        _text("answer"),
        sql.Column("scope", sql.String(8), nullable=False),
        sql.Column("state", sql.String(16), nullable=False),
        sql.Column("origin", sql.String(16), nullable=False),
        sql.Column("masked", sql.Boolean, nullable=False),
        _text("was", required=False),
        _id("reply"),
        _id("conversation"),
        _id("replaces"),
        _time("created"),
        _time("decided", required=False),
        sql.Column("hits", sql.Integer, nullable=False),
        _time("last_hit", required=False),
        sql.PrimaryKeyConstraint("id", name="pk_lessons"),
    )
    op.create_index("ix_lessons_state", "lessons", ["state"])
    op.create_index("ix_lessons_conversation", "lessons", ["conversation"])
    op.create_table(
        "dismissed",
        sql.Column("form", sql.String(400), nullable=False),
        _time("time"),
        sql.PrimaryKeyConstraint("form", name="pk_dismissed"),
    )
