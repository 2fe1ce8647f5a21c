"""The owner's sessions, and the audit: who looked at, exported or deleted what, and when."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import sqlalchemy as sql

from daedap.database.connection import Database
from daedap.database.schema import audit, now, sessions
from daedap.runs import Json

Actor = Literal["owner", "visitor", "command", "server"]
SESSION = timedelta(hours=12)
"""How long a login lasts."""


@dataclass(frozen=True)
class AuditLog:
    """Entries hold ids and counts, never text; they outlive the conversations they tell about."""

    database: Database

    def note(self, actor: Actor, action: str, **detail: Any) -> None:
        """Add an entry."""
        with self.database.write() as connection:
            connection.execute(audit.insert().values(time=now(), actor=actor, action=action, detail=detail))

    def latest(self, limit: int) -> list[Json]:
        """The latest entries, newest first."""
        query = sql.select(audit.c.time, audit.c.actor, audit.c.action, audit.c.detail)
        with self.database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(query.order_by(audit.c.id.desc()).limit(limit))]


@dataclass(frozen=True)
class OwnerSessions:
    """Logins of the owner, valid at every server of the database."""

    database: Database

    def begin(self) -> str:
        """A new session's token; only its digest is kept."""
        token = secrets.token_urlsafe(32)
        expires = (datetime.now(timezone.utc) + SESSION).isoformat(timespec="seconds")
        with self.database.write() as connection:
            connection.execute(sessions.delete().where(sessions.c.expires < now()))
            connection.execute(sessions.insert().values(token=digest(token), expires=expires))
        return token

    def valid(self, token: str | None) -> bool:
        """Whether a session goes on."""
        if not token:
            return False
        query = sql.select(sessions.c.token).where(sessions.c.token == digest(token), sessions.c.expires > now())
        with self.database.read() as connection:
            return connection.execute(query).first() is not None

    def end(self, token: str | None) -> None:
        """Log out."""
        if token:
            with self.database.write() as connection:
                connection.execute(sessions.delete().where(sessions.c.token == digest(token)))


def digest(token: str) -> str:
    """What is kept of a random token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
