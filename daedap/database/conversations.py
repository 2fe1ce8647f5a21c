"""Conversations, replies and votes in the database, what was not understood, and blind comparisons of two runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from daedap.database.connection import Store
from daedap.database.schema import comparisons, conversations, dismissed, lessons, now, replies
from daedap.korean.text import comparison_form
from daedap.runs import Json

_SUMMARY = ("id", "title", "started", "updated")
_TITLE = 80
"""Characters of the first question that become a conversation's title."""
_FORM = 400
"""Characters of a comparison form that are kept."""
_FAILED = replies.c.source == "fallback"
TIE = 0
"""`winner` of a tie."""


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


class ConversationStore(Store):
    """The conversations of a database. A client is the digest of a visitor's cookie."""

    def add(self, connection: Connection, client: str, reply: StoredReply, *, begins: bool = True) -> None:
        """Keep a reply, within a transaction.

        `begins`: it may be the first one of its conversation; else that must be there, and a reply to one that was
        deleted meanwhile is not kept.
        """
        which = conversations.update().where(conversations.c.id == reply.conversation)
        known = connection.execute(which.values(updated=reply.time)).rowcount  # whoever deletes it now, waits
        if not known:
            if not begins:
                return
            begun = {"id": reply.conversation, "client": client, "title": reply.question[:_TITLE]}
            connection.execute(conversations.insert().values(**begun, started=reply.time, updated=reply.time))
        form = comparison_form(reply.question)[:_FORM]
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

    def replies(self, conversation: str, limit: int | None = None) -> list[StoredReply]:
        """The replies of a conversation, oldest first: all, or the last ones."""
        query = sql.select(replies).filter_by(conversation=conversation).limit(limit)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(replies.c.time.desc(), replies.c.id.desc())).all()
            return [_reply(row) for row in reversed(rows)]

    def vote(self, reply: str, vote: str | None, comment: str | None) -> None:
        """Judge a reply; `None` takes a vote back."""
        with self.database.write() as connection:
            connection.execute(replies.update().where(replies.c.id == reply).values(vote=vote, comment=comment))

    def find(self, id: str) -> Json | None:
        """A conversation with its replies."""
        columns = [conversations.c[name] for name in _SUMMARY]
        with self.database.read() as connection:
            row = connection.execute(sql.select(*columns).filter_by(id=id)).one_or_none()
        return {**row._mapping, "replies": [asdict(reply) for reply in self.replies(id)]} if row else None

    def of_client(self, client: str, limit: int = 100) -> list[Json]:
        """A client's conversations, the latest first."""
        return self._list(conversations.c.client == client, limit=limit)

    def latest(self, *, limit: int, before: str | None, only: str | None, text: str | None) -> list[Json]:
        """Conversations of everybody, the latest first: those with a bad vote, a fallback, a lesson, or a text."""
        where, of_reply = list[Any](), list[Any]()
        if before:
            where.append(conversations.c.updated < before)
        if only:
            of_reply.append(replies.c.vote == "bad" if only == "bad" else replies.c.source == only)
        if text:
            contains = [column.contains(text, autoescape=True) for column in (replies.c.question, replies.c.answer)]
            of_reply.append(sql.or_(*contains))
        if of_reply:
            where.append(conversations.c.id.in_(sql.select(replies.c.conversation).where(*of_reply)))
        return self._list(*where, limit=limit)

    def _list(self, *where: Any, limit: int) -> list[Json]:
        columns = [
            *(conversations.c[name] for name in _SUMMARY),
            sql.func.count().label("replies"),
            sql.func.count().filter(replies.c.vote == "bad").label("bad"),
            sql.func.count().filter(_FAILED).label("fallback"),
            sql.func.max(replies.c.run).label("run"),
        ]
        query = sql.select(*columns).join(replies).where(*where).group_by(conversations.c.id)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(conversations.c.updated.desc()).limit(limit))
            return [dict(row._mapping) for row in rows]

    def delete(self, *, id: str | None = None, client: str | None = None, before: str | None = None) -> int:
        """Delete a conversation, or all of a client, or all that ended before a time; their lessons lose the link."""
        columns = conversations.c
        conditions: list[Any] = [columns.id == id] if id is not None else []
        conditions += [columns.client == client] if client is not None else []
        conditions += [columns.updated < before] if before is not None else []
        assert conditions, "say which conversations"
        with self.database.write() as connection:
            which = sql.select(columns.id).where(*conditions).order_by(columns.id).with_for_update()
            ids = connection.execute(which).scalars().all()
            for start in range(0, len(ids), 500):
                part = ids[start : start + 500]
                gone = {"conversation": None, "reply": None, "was": None}
                connection.execute(lessons.update().where(lessons.c.conversation.in_(part)).values(**gone))
                connection.execute(conversations.delete().where(columns.id.in_(part)))  # and its replies: CASCADE
            if client is not None:
                connection.execute(comparisons.delete().where(comparisons.c.client == client))
            return len(ids)

    def not_understood(self, limit: int) -> list[Json]:
        """Questions without an answer or with a bad one, most asked first: question, count, people, last, reply."""
        open_forms = (replies.c.form != "", replies.c.form.not_in(sql.select(dismissed.c.form)))
        query = sql.select(replies, conversations.c.client).join(conversations).order_by(replies.c.time.desc())
        query = query.where(_FAILED | (replies.c.vote == "bad"), *open_forms).limit(20 * limit)
        by_form: dict[str, list[Any]] = defaultdict(list)
        with self.database.read() as connection:
            for row in connection.execute(query):
                by_form[row.form].append(row)
        return sorted(map(_not_understood, by_form.values()), key=lambda each: -each["count"])[:limit]

    def recent_questions(self, limit: int) -> list[tuple[str, int, str]]:
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
        count = sql.func.count()
        times = count.label("times")
        by_source = sql.select(replies.c.source, times).group_by(replies.c.source)
        by_vote = sql.select(replies.c.vote, times).group_by(replies.c.vote)
        day = sql.func.substr(replies.c.time, 1, 10).label("day")
        by_day = sql.select(day, count.label("replies"), count.filter(_FAILED).label("fallback")).group_by(day)
        with self.database.read() as connection:
            sources = {row.source: row.times for row in connection.execute(by_source)}
            votes = {row.vote: row.times for row in connection.execute(by_vote)}
            days = [dict(row._mapping) for row in connection.execute(by_day.order_by(day.desc()).limit(30))]
            talks = connection.execute(sql.select(count).select_from(conversations)).scalar()
        return {
            "replies": sum(sources.values()),
            "conversations": talks,
            "sources": {name: sources.get(name, 0) for name in ("retrieved", "lesson", "generated", "fallback")},
            "votes": {name: votes.get(name, 0) for name in ("good", "bad")},
            "days": days[::-1],
        }

    def dismiss(self, questions: Sequence[str]) -> int:
        """Take questions out of the queue."""
        forms = sorted({comparison_form(question)[:_FORM] for question in questions})
        with self.database.write() as connection:
            rows = [{"form": form, "time": now()} for form in forms]
            connection.execute(self.database.insert(dismissed).on_conflict_do_nothing(), rows)
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs' answers to a question, in the order in which they were shown."""

    id: str
    client: str
    question: str
    left_run: int
    right_run: int
    left_answer: str
    right_answer: str
    time: str
    winner: int | None = None
    """A run, TIE, or None: not judged yet."""


class ComparisonStore(Store):
    """The comparisons of a database."""

    def add(self, comparison: Comparison) -> None:
        """Keep a comparison that is about to be shown."""
        with self.database.write() as connection:
            connection.execute(comparisons.insert().values(**asdict(comparison)))

    def find(self, id: str, client: str) -> Comparison | None:
        """A comparison that was shown to this client."""
        with self.database.read() as connection:
            row = connection.execute(sql.select(comparisons).filter_by(id=id, client=client)).one_or_none()
            return Comparison(**row._mapping) if row else None

    def judge(self, id: str, winner: int) -> None:
        """Keep a verdict: a run or TIE."""
        with self.database.write() as connection:
            connection.execute(comparisons.update().where(comparisons.c.id == id).values(winner=winner))

    def winners(self, first: int, second: int) -> Counter[int]:
        """How often each of two runs won, and TIE."""
        both: Any = comparisons.c.left_run.in_((first, second)) & comparisons.c.right_run.in_((first, second))
        query = sql.select(comparisons.c.winner).where(both, comparisons.c.winner.is_not(None))
        with self.database.read() as connection:
            return Counter(connection.execute(query).scalars())
