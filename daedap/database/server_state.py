"""What the processes of a server share: the audit, the owner's sessions, events of messengers.

The audit says who looked at, exported or deleted what, and when. Each event that a messenger sends is worked on by one
of the processes; kept are a keyed digest of it and, for the others that get the same event, its answer, for a minute.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from daedap.database.connection import Store
from daedap.database.schema import audit, events, now, sessions
from daedap.runs import Json

Actor = Literal["owner", "visitor", "command", "server"]
SESSION = timedelta(hours=12)
"""How long a login lasts."""
SAME_EVENT = timedelta(seconds=10)
"""For how long the same event is taken for a repetition: platforms give up after 5 seconds and may send it again."""
_FORGOTTEN = timedelta(minutes=1)


class AuditLog(Store):
    """Entries hold ids and counts, never text; they outlive the conversations they tell about."""

    def note(self, actor: Actor, action: str, **detail: Any) -> None:
        """Add an entry."""
        with self.database.write() as connection:
            connection.execute(audit.insert().values(time=now(), actor=actor, action=action, detail=detail))

    def latest(self, limit: int) -> list[Json]:
        """The latest entries, newest first."""
        query = sql.select(audit.c.time, audit.c.actor, audit.c.action, audit.c.detail)
        with self.database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(query.order_by(audit.c.id.desc()).limit(limit))]


class OwnerSessions(Store):
    """Logins of the owner, valid at every server of the database."""

    def begin(self) -> str:
        """A new session's token; only its digest is kept."""
        token = secrets.token_urlsafe(32)
        with self.database.write() as connection:
            connection.execute(sessions.delete().where(sessions.c.expires < now()))
            connection.execute(sessions.insert().values(token=digest(token), expires=now(SESSION)))
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


class EventStore(Store):
    """Events by their keys."""

    def claim(self, connection: Connection, key: str) -> bool:
        """Whether the event is the caller's to work on, as nobody has claimed it in the last seconds."""
        connection.execute(events.delete().where(events.c.time < now(-_FORGOTTEN)))
        claimed = self.database.insert(events).values(key=key, time=now())
        fresh = {"time": claimed.excluded.time, "answer": None}
        expired = events.c.time < now(-SAME_EVENT)
        claim = claimed.on_conflict_do_update(index_elements=["key"], set_=fresh, where=expired)
        return connection.execute(claim.returning(events.c.key)).scalar() is not None

    def keep(self, connection: Connection, key: str, answer: Json) -> None:
        """Keep the answer to an event for those that get it, too."""
        connection.execute(events.update().where(events.c.key == key).values(answer=answer))

    def forget(self, connection: Connection, key: str) -> None:
        """Take an event for a new one when it comes again."""
        connection.execute(events.delete().where(events.c.key == key))

    def answer(self, key: str) -> Json | None:
        """The answer to an event, once whoever has claimed it has found one."""
        with self.database.read() as connection:
            kept: Json | None = connection.execute(sql.select(events.c.answer).filter_by(key=key)).scalar()
            return kept


def digest(token: str) -> str:
    """What is kept of a random token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
