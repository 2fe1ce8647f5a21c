"""The tables: conversations, replies, votes, lessons, comparisons of two runs, sessions, audit, messengers' events.

Times are ISO 8601 texts in UTC, which sort by time in every database. `migrations/` brings a database to this schema.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

conversations = Table(
    "conversations",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("client", String(64), nullable=False, index=True),  # digest of the visitor's cookie
    Column("title", Text, nullable=False),
    Column("started", String(32), nullable=False),
    Column("updated", String(32), nullable=False, index=True),
)
replies = Table(
    "replies",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("conversation", ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("question", Text, nullable=False),
    Column("form", Text, nullable=False),  # comparison form of the question
    Column("answer", Text, nullable=False),
    Column("source", String(16), nullable=False),
    Column("score", Float, nullable=False),
    Column("evidence", JSON),
    Column("suggestions", JSON, nullable=False),
    Column("run", Integer, nullable=False),
    Column("lesson", String(40)),
    Column("milliseconds", Integer, nullable=False),
    Column("time", String(32), nullable=False, index=True),
    Column("vote", String(8)),
    Column("comment", Text),
)
lessons = Table(
    "lessons",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("question", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("scope", String(8), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("origin", String(16), nullable=False),
    Column("masked", Boolean, nullable=False),
    Column("was", Text),  # the answer that was corrected
    Column("reply", String(40)),  # no foreign key: a lesson outlives the conversation it came from
    Column("conversation", String(40), index=True),
    Column("replaces", String(40)),
    Column("created", String(32), nullable=False),
    Column("decided", String(32)),
    Column("hits", Integer, nullable=False, default=0),
    Column("last_hit", String(32)),
)
dismissed = Table(
    "dismissed",
    METADATA,
    Column("form", String(400), primary_key=True),  # comparison form of a question that needs no answer
    Column("time", String(32), nullable=False),
)
comparisons = Table(
    "comparisons",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("client", String(64), nullable=False),
    Column("question", Text, nullable=False),
    Column("left_run", Integer, nullable=False),
    Column("right_run", Integer, nullable=False),
    Column("left_answer", Text, nullable=False),
    Column("right_answer", Text, nullable=False),
    Column("winner", Integer),  # the run; 0: a tie; null: not judged
    Column("time", String(32), nullable=False),
    Index("ix_comparisons_runs", "left_run", "right_run"),
)
sessions = Table(
    "sessions",
    METADATA,
    Column("token", String(64), primary_key=True),  # digest of the owner's cookie
    Column("expires", String(32), nullable=False),
)
audit = Table(
    "audit",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time", String(32), nullable=False, index=True),
    Column("actor", String(16), nullable=False),
    Column("action", String(32), nullable=False),
    Column("detail", JSON, nullable=False),  # ids and counts, never text
)
events = Table(
    "events",
    METADATA,
    Column("key", String(64), primary_key=True),  # keyed digest of what a messenger sent
    Column("time", String(32), nullable=False, index=True),
    Column("answer", JSON(none_as_null=True)),
)
revisions = Table(
    "revisions",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", Integer, nullable=False),  # grows with every change, so that other processes notice it
)


def now(offset: timedelta = timedelta(0)) -> str:
    """The time in UTC plus `offset`, to the millisecond."""
    then = datetime.now(timezone.utc) + offset
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")
