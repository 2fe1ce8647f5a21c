"""What messengers have sent: each event is worked on by one of the processes that share the database.

Kept are a keyed digest of the event and, for the others that get the same event, its answer; both for a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from daedap.database.connection import Database
from daedap.database.schema import events, now
from daedap.runs import Json

SAME_EVENT = 10.0
"""Seconds in which the same event is taken for a repetition: platforms give up after 5 and may send it again."""
_FORGOTTEN = 60.0


@dataclass(frozen=True)
class EventStore:
    """Events by their keys."""

    database: Database

    def claim(self, connection: Connection, key: str) -> bool:
        """Whether the event is the caller's to work on, as nobody has claimed it in the last seconds."""
        connection.execute(events.delete().where(events.c.time < _before(_FORGOTTEN)))
        insert = sqlite.insert if self.database.is_sqlite else postgresql.insert
        claimed = insert(events).values(key=key, time=now())
        fresh = {"time": claimed.excluded.time, "answer": None}
        expired = events.c.time < _before(SAME_EVENT)
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
            result: Json | None = connection.execute(sql.select(events.c.answer).filter_by(key=key)).scalar()
            return result


def _before(seconds: float) -> str:
    then = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")
