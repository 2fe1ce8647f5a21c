"""`daedap answer`: one question or a file of them → replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from daedap.config import RUNS, AnswerOptions
from daedap.data.questions import read_questions
from daedap.errors import DataError, SettingsError
from daedap.files import write_lines
from daedap.i18n import translate
from daedap.retrieval.bot import Bot
from daedap.types import Reply

_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """A file of questions, and where its replies go."""

    in_: Path | None = None
    """A text with one question a line, or a .csv, .xlsx or .jsonl with a column of questions."""
    out: Path | None = None
    """Where the replies go: one JSON object a line."""
    question_column: str | None = None
    """Name of the questions' column, or its number counted from 1. [default: by its name or content]"""


@dataclass(frozen=True)
class Answered:
    """A batch that was answered."""

    out: Path
    counts: dict[str, int]
    """Replies by source."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"out": str(self.out), "replies": self.counts}

    def lines(self) -> list[str]:
        """For a terminal."""
        return [translate("{count:,} replies written to {out}", count=sum(self.counts.values()), out=self.out)]


def answer(
    question: str | None = None,
    *,
    run: str = "latest",
    batch: Annotated[BatchOptions, Parameter(name="*")] = BatchOptions(),
    answer_options: Annotated[AnswerOptions, Parameter(name="*")] = AnswerOptions(),
    runs: Path = RUNS,
) -> Reply | Answered:
    """Answer one question, or a file of them.

    Raises RunError, DataError and SettingsError.

    Parameters
    ----------
    question
        What to answer.
    run
        Number, folder, latest or best.
    runs
        Folder of the runs.
    """
    if question is not None and batch == BatchOptions():
        return Bot.open(run, runs=runs, answer_options=answer_options).reply(question)
    if question is not None or batch.in_ is None or batch.out is None:
        raise SettingsError("Nothing to answer.", "Give a question, or both --in FILE and --out FILE.")
    return _answer_file(
        Bot.open(run, runs=runs, answer_options=answer_options), batch.in_, batch.out, batch.question_column
    )


def _answer_file(bot: Bot, questions: Path, out: Path, column: str | None) -> Answered:
    if out.is_dir():
        raise SettingsError("--out {out}: this is a folder.", "Give the name of a file.", out=out)
    if out.exists() and questions.exists() and out.samefile(questions):
        raise SettingsError("--out {out}: this is the file of questions.", "Choose another name.", out=out)
    counts = Counter[str]()
    write_lines(out, _replies(bot, questions, column, counts))
    return Answered(out, dict(sorted(counts.items())))


def _replies(bot: Bot, file: Path, column: str | None, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The replies as JSON objects, counted by source, some hundred at a time."""
    questions = read_questions(file, column)
    while some := list(islice(questions, _AT_ONCE)):
        for reply in bot.reply_many(some):
            counts[reply.source] += 1
            yield reply.to_json()
    if not counts:
        raise DataError("{file}: holds no question.", "Write one question a line.", file=file)
