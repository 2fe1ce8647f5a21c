"""Conversations, replies, votes and comparisons in the database, and what was not understood."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from daedap.database.connection import Database
from daedap.database.schema import comparisons, conversations, dismissed, lessons, now, replies
from daedap.korean.text import comparison_form
from daedap.runs import Json

_TITLE = 80
"""Characters of the first question that become a conversation's title."""
FORM = 400
"""Characters of a comparison form that are kept."""


@dataclass(frozen=True, kw_only=True)
class StoredReply:
    """A reply of the bot, as it is kept and as the page gets it."""

    id: str
    conversation: str | None
    question: str
    answer: str
    source: str
    score: float
    evidence: Json | None
    suggestions: list[str]
    run: int
    lesson: str | None
    milliseconds: int
    time: str
    vote: str | None = None
    comment: str | None = None

    def to_json(self) -> Json:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class ConversationStore:
    """The conversations of a database. A client is the digest of a visitor's cookie."""

    database: Database

    def add(self, connection: Connection, client: str, reply: StoredReply, *, begins: bool = True) -> None:
        """Keep a reply, within a transaction.

        `begins`: it may be the first one of its conversation; else that must be there, and a reply to one that was
        deleted meanwhile is not kept.
        """
        which = conversations.update().where(conversations.c.id == reply.conversation)
        known = connection.execute(which.values(updated=reply.time)).rowcount  # whoever deletes it now, waits
        if not known and not begins:
            return
        if not known:
            title = reply.question[:_TITLE]
            begun = {"id": reply.conversation, "client": client, "title": title, "started": reply.time}
            connection.execute(conversations.insert().values(**begun, updated=reply.time))
        form = comparison_form(reply.question)[:FORM]
        connection.execute(replies.insert().values(**asdict(reply), form=form))

    def owner_of(self, conversation: str) -> str | None:
        """The client that a conversation belongs to."""
        with self.database.read() as connection:
            client = connection.execute(sql.select(conversations.c.client).filter_by(id=conversation)).scalar()
            return str(client) if client else None

    def reply(self, id: str, client: str | None = None) -> StoredReply | None:
        """A reply, of a conversation of this client if one is named."""
        query = sql.select(replies).join(conversations).where(replies.c.id == id)
        with self.database.read() as connection:
            row = connection.execute(query.where(conversations.c.client == client) if client else query).one_or_none()
            return _reply(row) if row else None

    def replies(self, conversation: str) -> list[StoredReply]:
        """All replies of a conversation, oldest first."""
        query = sql.select(replies).filter_by(conversation=conversation).order_by(replies.c.time, replies.c.id)
        with self.database.read() as connection:
            return [_reply(row) for row in connection.execute(query)]

    def history(self, conversation: str, turns: int) -> list[tuple[str, str]]:
        """The last questions and answers of a conversation, oldest first."""
        columns = sql.select(replies.c.question, replies.c.answer).filter_by(conversation=conversation)
        query = columns.order_by(replies.c.time.desc()).limit(turns)
        with self.database.read() as connection:
            return [(row.question, row.answer) for row in connection.execute(query)][::-1]

    def vote(self, reply: str, vote: str | None, comment: str | None) -> None:
        """Judge a reply; `None` takes a vote back."""
        with self.database.write() as connection:
            connection.execute(replies.update().where(replies.c.id == reply).values(vote=vote, comment=comment))

    def find(self, id: str) -> Json | None:
        """A conversation with its replies."""
        with self.database.read() as connection:
            row = connection.execute(sql.select(conversations).filter_by(id=id)).one_or_none()
        if not row:
            return None
        summary = {"id": row.id, "title": row.title, "started": row.started, "updated": row.updated}
        return {**summary, "replies": [reply.to_json() for reply in self.replies(id)]}

    def of_client(self, client: str, limit: int = 100) -> list[Json]:
        """A client's conversations, the latest first."""
        return self._list(conversations.c.client == client, limit=limit)

    def latest(self, *, limit: int, before: str | None, only: str | None, text: str | None) -> list[Json]:
        """Conversations of everybody, the latest first: those with a bad vote, a fallback, a lesson, or a text."""
        where = []
        if before:
            where.append(conversations.c.updated < before)
        condition = {
            "bad": replies.c.vote == "bad",
            "fallback": replies.c.source == "fallback",
            "lesson": replies.c.source == "lesson",
        }.get(only or "")
        if text:
            contains = replies.c.question.contains(text, autoescape=True)
            contains |= replies.c.answer.contains(text, autoescape=True)
            condition = contains if condition is None else sql.and_(condition, contains)
        if condition is not None:
            where.append(conversations.c.id.in_(sql.select(replies.c.conversation).where(condition)))
        return self._list(*where, limit=limit)

    def _list(self, *where: Any, limit: int) -> list[Json]:
        def count(condition: Any) -> Any:
            return sql.func.sum(sql.case((condition, 1), else_=0))

        columns = [
            *(conversations.c[name] for name in ("id", "title", "started", "updated")),
            sql.func.count(replies.c.id).label("replies"),
            count(replies.c.vote == "bad").label("bad"),
            count(replies.c.source == "fallback").label("fallback"),
            sql.func.max(replies.c.run).label("run"),
        ]
        query = sql.select(*columns).join(replies).where(*where).group_by(conversations.c.id)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(conversations.c.updated.desc()).limit(limit))
            return [dict(row._mapping) for row in rows]

    def delete(self, *, id: str | None = None, client: str | None = None, before: str | None = None) -> int:
        """Delete a conversation, or all of a client, or all that ended before a time; their lessons lose the link."""
        conditions: list[Any] = [conversations.c.id == id] if id is not None else []
        conditions += [conversations.c.client == client] if client is not None else []
        conditions += [conversations.c.updated < before] if before is not None else []
        assert conditions, "say which conversations"
        with self.database.write() as connection:
            which = sql.select(conversations.c.id).where(*conditions).order_by(conversations.c.id).with_for_update()
            ids = connection.execute(which).scalars().all()
            for start in range(0, len(ids), 500):
                part = ids[start : start + 500]
                gone = {"conversation": None, "reply": None, "was": None}
                connection.execute(lessons.update().where(lessons.c.conversation.in_(part)).values(**gone))
                connection.execute(replies.delete().where(replies.c.conversation.in_(part)))
                connection.execute(conversations.delete().where(conversations.c.id.in_(part)))
            if client is not None and id is None:
                connection.execute(comparisons.delete().where(comparisons.c.client == client))
            return len(ids)

    def not_understood(self, limit: int = 2000) -> list[Json]:
        """Questions without an answer or with a bad one, most asked first: question, count, people, last, reply."""
        where = sql.or_(replies.c.source == "fallback", replies.c.vote == "bad")
        done = sql.select(dismissed.c.form)
        query = (
            sql.select(replies, conversations.c.client)
            .join(conversations)
            .where(where, replies.c.form.not_in(done), replies.c.form != "")
            .order_by(replies.c.time.desc())
            .limit(20 * limit)
        )
        by_form: dict[str, list[Any]] = defaultdict(list)
        with self.database.read() as connection:
            for row in connection.execute(query):
                by_form[row.form].append(row)
        result = [_not_understood(rows) for rows in by_form.values()]
        return sorted(result, key=lambda each: -each["count"])[:limit]

    def asked(self, limit: int = 2000) -> list[tuple[str, int, str]]:
        """The latest different questions: question, times asked, its last answer."""
        query = sql.select(replies.c.question, replies.c.form, replies.c.answer).order_by(replies.c.time.desc())
        counts, latest = Counter[str](), dict[str, tuple[str, str]]()
        with self.database.read() as connection:
            for row in connection.execute(query.limit(10 * limit)):
                counts[row.form] += 1
                latest.setdefault(row.form, (row.question, row.answer))
        return [(question, counts[form], answer) for form, (question, answer) in list(latest.items())[:limit]]

    def overview(self) -> Json:
        """Counts: replies, conversations, by source, votes, and for each of the last 30 days."""
        times = sql.func.count().label("times")
        by_source = sql.select(replies.c.source, times).group_by(replies.c.source)
        by_vote = sql.select(replies.c.vote, times).where(replies.c.vote.is_not(None))
        day = sql.func.substr(replies.c.time, 1, 10).label("day")
        failed = sql.func.sum(sql.case((replies.c.source == "fallback", 1), else_=0))
        by_day = sql.select(day, sql.func.count(), failed).group_by(day).order_by(day.desc()).limit(30)
        with self.database.read() as connection:
            sources = {row.source: row.times for row in connection.execute(by_source)}
            votes = {row.vote: row.times for row in connection.execute(by_vote.group_by(replies.c.vote))}
            days = [{"day": d, "replies": n, "fallback": int(f)} for d, n, f in connection.execute(by_day)]
            talks = connection.execute(sql.select(sql.func.count()).select_from(conversations)).scalar()
        return {
            "replies": sum(sources.values()),
            "conversations": talks,
            "sources": {name: sources.get(name, 0) for name in ("retrieved", "lesson", "generated", "fallback")},
            "votes": {name: votes.get(name, 0) for name in ("good", "bad")},
            "days": days[::-1],
        }

    def dismiss(self, questions: Sequence[str]) -> int:
        """Take questions out of the queue."""
        forms = sorted({comparison_form(question)[:FORM] for question in questions})
        insert = sqlite.insert if self.database.is_sqlite else postgresql.insert
        with self.database.write() as connection:
            rows = [{"form": form, "time": now()} for form in forms]
            connection.execute(insert(dismissed).on_conflict_do_nothing(), rows)
        return len(forms)


def _not_understood(rows: Sequence[Any]) -> Json:
    """Rows of one comparison form, the latest first."""
    latest = rows[0]
    return {
        "question": latest.question,
        "count": len(rows),
        "people": len({row.client for row in rows}),
        "last": latest.time,
        "reason": "bad" if any(row.vote == "bad" for row in rows) else "fallback",
        "reply": latest.id,
        "nearest": latest.evidence,
    }


def _reply(row: sql.Row[Any]) -> StoredReply:
    return StoredReply(**{name: value for name, value in row._mapping.items() if name != "form"})
