"""`daedap teach`: a right answer, effective at once."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daedap.config import RUNS
from daedap.database.connection import Database
from daedap.database.conversations import ConversationStore
from daedap.database.lessons import LessonStore, TaughtLesson, new_lesson
from daedap.database.server_state import AuditLog
from daedap.i18n import translate
from daedap.retrieval.bot import Bot
from daedap.runs import Json
from daedap.serve.review import ASKED, preview
from daedap.types import LessonScope


@dataclass(frozen=True)
class Taught:
    """A lesson, and what it changes."""

    lesson: TaughtLesson
    effect: Json
    """`catches`, `near`, `conflict`: see serve/review.py."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**self.lesson.to_json(), **self.effect}

    def lines(self) -> list[str]:
        """For a terminal."""
        lesson, conflict = self.lesson, self.effect["conflict"]
        taught = "Taught: “{question}” is answered with “{answer}”"
        lines = [translate(taught, question=lesson.question, answer=lesson.answer)]
        if lesson.masked:
            lines.append(translate("Personal data in it was masked; --keep-personal keeps it."))
        if conflict:
            lines.append(translate("It takes precedence over: “{answer}”", answer=conflict["answer"]))
        asked = [caught["question"] for caught in self.effect["catches"] if caught["kind"] == "asked"]
        return [*lines, *(translate("It will also answer: {question}", question=question) for question in asked)]


def teach(
    question: str,
    answer: str,
    *,
    scope: LessonScope = "similar",
    keep_personal: bool = False,
    db: str | None = None,
    runs: Path = RUNS,
) -> Taught:
    """Teach the right answer to a question; every run answers with it from the next reply on.

    Raises DataError, RunError, SettingsError and StorageError.

    Parameters
    ----------
    question
        What is asked.
    answer
        What is right.
    scope
        exact: only this question; similar: questions like it, too.
    keep_personal
        Keep telephone numbers, e-mail addresses and the like as they are.
    db
        URL of a PostgreSQL database. [default: DAEDAP_DB, else daedap.db beside the runs]
    runs
        Folder of the runs.
    """
    lesson = new_lesson(question, answer, scope, origin="command", keep_personal=keep_personal)
    bot = Bot.open(runs=runs)
    with closing(Database.open(db, runs)) as database:
        store = LessonStore(database)
        effect = preview(bot, lesson, store.in_force(), ConversationStore(database).recent_questions(ASKED))
        store.add(lesson)
        AuditLog(database).note("command", "teach", lesson=lesson.id)
    return Taught(lesson, effect)
