"""`daedap lessons`: list them, take them to a table and back, take one out of force."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daedap.config import RUNS
from daedap.data.inputs import detect, open_text
from daedap.database.connection import Database
from daedap.database.lessons import SCOPES, LessonStore, TaughtLesson, from_cell, new_lesson, write_csv
from daedap.database.server_state import AuditLog
from daedap.errors import DataError, SettingsError
from daedap.evaluation.tables import align_columns
from daedap.files import write_text
from daedap.i18n import translate
from daedap.types import LessonScope

Action = Literal["list", "export", "import", "accept", "reject", "undo"]


@dataclass(frozen=True)
class LessonList:
    """Lessons, and what was done with them."""

    lessons: Sequence[TaughtLesson]
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"lessons": [lesson.to_json() for lesson in self.lessons]}

    def lines(self) -> list[str]:
        """A table, or what was done."""
        if self.message:
            return [self.message]
        heads = [translate("id"), translate("state"), translate("hits"), translate("question"), translate("answer")]
        cells = [[each.id[:8], each.state, str(each.hits), each.question, each.answer] for each in self.lessons]
        return align_columns([heads, *cells])


def lessons(
    action: Action = "list", target: str | None = None, *, db: str | None = None, runs: Path = RUNS
) -> LessonList:
    """List the lessons, or export, import, accept, reject or undo some.

    Raises DataError, SettingsError and StorageError.

    Parameters
    ----------
    action
        list; export or import a CSV file; accept or reject a lesson that waits; undo one.
    target
        The CSV file, or the id of the lesson (its beginning is enough).
    db
        URL of a PostgreSQL database. [default: DAEDAP_DB, else daedap.db beside the runs]
    runs
        Folder of the runs.
    """
    if action != "list" and target is None:
        raise SettingsError("daedap lessons {action} needs a file or an id.", "See: daedap lessons", action=action)
    with closing(Database.open(db, runs)) as database:
        store, audit = LessonStore(database), AuditLog(database)
        if action == "list":
            return LessonList(store.all())
        if action == "export":
            return _export(store, audit, Path(str(target)))
        if action == "import":
            return _import(store, audit, Path(str(target)))
        return _decide(store, audit, action, str(target))


def _export(store: LessonStore, audit: AuditLog, file: Path) -> LessonList:
    lessons = store.all()
    write_text(file, write_csv(lessons))
    audit.note("command", "export_lessons", lessons=len(lessons))
    return LessonList(lessons, translate("{count:,} lessons written to {file}", count=len(lessons), file=file))


def _import(store: LessonStore, audit: AuditLog, file: Path) -> LessonList:
    """Add the lessons of a table that are not there yet."""
    known = {(each.question, each.answer, each.scope) for each in store.in_force()}
    read = [new_lesson(*row, origin="import", keep_personal=True) for row in _rows(file)]
    new = [each for each in read if (each.question, each.answer, each.scope) not in known]
    store.add(*new)
    audit.note("command", "import_lessons", lessons=len(new))
    message = "{count:,} lessons taught, {known:,} were known"
    return LessonList(new, translate(message, count=len(new), known=len(read) - len(new)))


def _rows(file: Path) -> list[tuple[str, str, LessonScope]]:
    """Question, answer and scope of each lesson that the table has in force."""
    try:
        with open_text(file, detect(file)) as text:
            table = list(csv.DictReader(text))
    except OSError as error:
        raise DataError(
            "{file} can't be read ({error}).", "Check the name and the folder.", file=file, error=error.strerror
        ) from error
    if not table or not {"question", "answer"} <= table[0].keys():
        raise DataError(
            "{file}: needs the columns question and answer.", "daedap lessons export writes such a table.", file=file
        )
    scopes: dict[str | None, LessonScope] = {scope: scope for scope in SCOPES}
    return [
        (from_cell(row["question"] or ""), from_cell(row["answer"] or ""), scopes.get(row.get("scope"), "similar"))
        for row in table
        if (row.get("state") or "accepted") == "accepted"
    ]


def _decide(store: LessonStore, audit: AuditLog, action: Action, id: str) -> LessonList:
    matching = [lesson for lesson in store.all() if lesson.id.startswith(id) and lesson.state != "replaced"]
    if len(matching) != 1:
        raise SettingsError("{id}: no such lesson, or several.", "See their ids: daedap lessons", id=id)
    act = {"accept": store.accept, "reject": store.reject, "undo": store.undo}[action]
    changed = act(matching[0].id)
    audit.note("command", f"{action}_lesson", lesson=matching[0].id)
    assert changed, "it was found a moment ago"
    in_force = translate("In force:") if changed.state == "accepted" else translate("Not in force any more:")
    return LessonList([changed], f"{in_force} {changed.question} → {changed.answer}")
