"""Lessons in the database: taught, accepted, edited, rejected, taken back. No answer is ever overwritten.

An edit adds a lesson that replaces the old one; taking it back puts the old one in force again. Every change raises a
revision number in the same transaction: that is how other processes notice it.
"""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from daedap.data.clean import mask_personal
from daedap.database.connection import Store
from daedap.database.schema import lessons, now, revisions
from daedap.errors import DataError
from daedap.i18n import translate
from daedap.korean.text import nfc
from daedap.types import Lesson, LessonScope

State = Literal["pending", "accepted", "rejected", "undone", "replaced"]
Origin = Literal["owner", "visitor", "command", "import"]
SCOPES: tuple[LessonScope, ...] = ("exact", "similar")
LONGEST_QUESTION, LONGEST_ANSWER = 2000, 4000
"""Characters."""


@dataclass(frozen=True, kw_only=True)
class TaughtLesson:
    """A lesson with its state and where it came from."""

    id: str
    question: str
    answer: str
    scope: LessonScope
    state: State
    origin: Origin
    masked: bool = False
    """Whether personal data was masked in it."""
    was: str | None = None
    """The answer that was corrected."""
    reply: str | None = None
    conversation: str | None = None
    replaces: str | None = None
    created: str = ""
    decided: str | None = None
    hits: int = 0
    last_hit: str | None = None

    @property
    def lesson(self) -> Lesson:
        """What a bot answers from."""
        return Lesson(self.id, self.question, self.answer, self.scope)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def new_lesson(
    question: str,
    answer: str,
    scope: LessonScope = "similar",
    *,
    origin: Origin,
    id: str | None = None,
    keep_personal: bool = False,
) -> TaughtLesson:
    """A lesson to be added: an owner's is in force at once, a visitor's waits. Personal data is masked.

    Raises DataError when question or answer is empty or too long.
    """
    texts = (
        _text(translate("question"), question, LONGEST_QUESTION),
        _text(translate("answer"), answer, LONGEST_ANSWER),
    )
    masked = texts if keep_personal else (mask_personal(texts[0]), mask_personal(texts[1]))
    pending = origin == "visitor"
    return TaughtLesson(
        id=id or uuid.uuid4().hex,
        question=masked[0],
        answer=masked[1],
        scope=scope,
        state="pending" if pending else "accepted",
        origin=origin,
        masked=masked != texts,
        created=now(),
        decided=None if pending else now(),
    )


def _text(what: str, text: str, longest: int) -> str:
    text = nfc(text.encode("utf-8", "replace").decode().replace("\0", "")).strip()
    if not text:
        raise DataError("The {what} of the lesson is empty.", "Give a question and its right answer.", what=what)
    if len(text) > longest:
        raise DataError(
            "The {what} of the lesson has {length:,} characters; the most is {longest:,}.",
            "Shorten it.",
            what=what,
            length=len(text),
            longest=longest,
        )
    return text


class LessonStore(Store):
    """The lessons of a database."""

    def revision(self) -> int:
        """A number that every change raises."""
        with self.database.read() as connection:
            return int(connection.execute(sql.select(revisions.c.value).filter_by(name="lessons")).scalar_one())

    def in_force(self) -> list[Lesson]:
        """The accepted lessons, the latest first."""
        order = (lessons.c.decided.desc(), lessons.c.id)
        with self.database.read() as connection:
            rows = connection.execute(sql.select(lessons).filter_by(state="accepted").order_by(*order))
            return [_taught(row).lesson for row in rows]

    def all(self, state: State | None = None) -> list[TaughtLesson]:
        """All lessons, or those of one state: the latest first, but those that wait in the order they came in."""
        order = lessons.c.created.asc() if state == "pending" else lessons.c.created.desc()
        query = sql.select(lessons).order_by(order, lessons.c.id)
        with self.database.read() as connection:
            return [_taught(row) for row in connection.execute(query.filter_by(state=state) if state else query)]

    def find(self, id: str) -> TaughtLesson | None:
        """One lesson."""
        with self.database.read() as connection:
            return _find(connection, id)

    def add(self, *new: TaughtLesson) -> list[TaughtLesson]:
        """Add lessons; one whose id is there already is left as it is, so that a request may be repeated."""
        with self.database.write() as connection:
            _raise_revision(connection)
            return [_find(connection, each.id) or _insert(connection, each) for each in new]

    def accept(self, id: str, change: Mapping[str, Any] | None = None) -> TaughtLesson | None:
        """Put a lesson in force; with a change of question, answer or scope, as a new one that replaces it.

        Returns None for an unknown id. Raises DataError for texts that are no lesson.
        """
        with self.database.write() as connection:
            _raise_revision(connection)
            if not (old := _find(connection, id)):
                return None
            if old.replaces:  # in force again where this one was undone
                is_there = lessons.c.state.in_(("accepted", "pending"))
                which = lessons.update().where(lessons.c.id == old.replaces, is_there)
                connection.execute(which.values(state="replaced"))
            changed = replace(old, **(change or {}))
            if changed == old:
                _set(connection, id, state="accepted", decided=now())
            else:
                new = new_lesson(changed.question, changed.answer, changed.scope, origin="owner", keep_personal=True)
                new = replace(new, was=old.was, reply=old.reply, conversation=old.conversation)
                _insert(connection, replace(new, masked=old.masked, replaces=old.id))
                _set(connection, id, state="replaced")
                id = new.id
            return _find(connection, id)

    def reject(self, id: str) -> TaughtLesson | None:
        """Take a waiting lesson out of the queue. Returns None for an unknown id."""
        return self._move(id, "rejected")

    def undo(self, id: str) -> TaughtLesson | None:
        """Take a lesson out of force, which brings back the one it replaced; a rejected one waits again."""
        lesson = self.find(id)
        return lesson and self._move(id, "pending" if lesson.state == "rejected" else "undone")

    def _move(self, id: str, state: State) -> TaughtLesson | None:
        with self.database.write() as connection:
            _raise_revision(connection)
            if not (lesson := _find(connection, id)):
                return None
            _set(connection, id, state=state, decided=None if state == "pending" else now())
            if state == "undone" and (before := lesson.replaces and _find(connection, lesson.replaces)):
                _set(connection, before.id, state="accepted" if before.decided else "pending")
            return _find(connection, id)


_COLUMNS = ("question", "answer", "scope", "state", "origin", "hits", "created", "id")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet compute a cell instead of showing it."""


def write_csv(taught: Sequence[TaughtLesson]) -> str:
    """A table for spreadsheets and `daedap lessons import`; no cell is taken for a formula."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(_COLUMNS)
    rows.writerows([_cell(getattr(each, name)) for name in _COLUMNS] for each in taught)
    return "\ufeff" + out.getvalue()  # Excel takes a table without the mark for CP949


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def from_cell(text: str) -> str:
    """A text of such a table, without the sign that was put before a formula's."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA) else text


def count_hits(connection: Connection, hits: Mapping[str, int]) -> None:
    """Add to the lessons' hit counts; to be called last in a transaction.

    In the order of their ids: two servers that count the same lessons would wait for each other otherwise.
    """
    for id, count in sorted(hits.items()):
        _set(connection, id, hits=lessons.c.hits + count, last_hit=now())


def _find(connection: Connection, id: str) -> TaughtLesson | None:
    row = connection.execute(sql.select(lessons).filter_by(id=id)).one_or_none()
    return _taught(row) if row else None


def _insert(connection: Connection, lesson: TaughtLesson) -> TaughtLesson:
    connection.execute(lessons.insert().values(**asdict(lesson)))
    return lesson


def _set(connection: Connection, id: str, **values: Any) -> None:
    connection.execute(lessons.update().where(lessons.c.id == id).values(**values))


def _raise_revision(connection: Connection) -> None:
    """Before anything else in a transaction: its lock lets those who change lessons take turns, on PostgreSQL too."""
    which = revisions.update().where(revisions.c.name == "lessons")
    connection.execute(which.values(value=revisions.c.value + 1))


def _taught(row: sql.Row[Any]) -> TaughtLesson:
    return TaughtLesson(**row._mapping)
