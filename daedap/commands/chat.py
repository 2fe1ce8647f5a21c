"""`daedap chat`: talk with a run in the terminal."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from daedap.config import RUNS, AnswerOptions
from daedap.errors import DataError
from daedap.i18n import translate
from daedap.retrieval.bot import Bot
from daedap.types import Message, Reply

_ENDS = ("종료", "끝", "exit", "quit")
"""Words that end the chat, with or without a slash."""
_REMEMBERED = 6
"""Messages of the conversation that the next answer is based on."""


def chat(
    *,
    run: str = "latest",
    answer_options: Annotated[AnswerOptions, Parameter(name="*")] = AnswerOptions(),
    runs: Path = RUNS,
) -> None:
    """Talk with a run. /good and /bad judge the last answer, exit ends; Ctrl-C stops an answer.

    Raises RunError.

    Parameters
    ----------
    run
        Number, folder, latest or best.
    runs
        Folder of the runs.
    """
    talk = Talk(Bot.open(run, runs=runs, answer_options=answer_options))
    message = "Run {number}. /good and /bad judge the last answer; 종료, 끝, exit or quit end the chat."
    _write(translate(message, number=talk.bot.run.number))
    while (line := _read_line()) is not None:
        try:
            if not talk.take(line):
                return
        except KeyboardInterrupt:  # ends the answer, not the chat
            _write("")
        except DataError as error:  # the question is too long
            _write(str(error))


class Talk:
    """One conversation."""

    def __init__(self, bot: Bot) -> None:
        self.bot = bot
        self.turns: list[Message] = []
        self.last: Reply | None = None

    def take(self, line: str) -> bool:
        """Answer a line or obey a command; False ends the chat."""
        if line.casefold().removeprefix("/") in _ENDS or line == "/q":
            return False
        if not line.startswith("/"):
            self._answer(self._suggested(line) or line)
        elif line not in ("/good", "/bad") and not line.startswith("/teach "):
            _write(translate("Commands: /good /bad /teach ANSWER /quit"))
        elif self.last is None:
            _write(translate("Nothing has been answered yet."))
        elif line.startswith("/teach "):
            self._teach(self.last.question, line.removeprefix("/teach "))
        else:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            self.bot.run.note(line[1:], time=now, **self.last.to_json())
            _write(translate("Noted."))
        return True

    def _suggested(self, line: str) -> str | None:
        """The suggestion that a number stands for."""
        suggestions = self.last.suggestions if self.last else ()
        return suggestions[int(line) - 1] if line.isdecimal() and 0 < int(line) <= len(suggestions) else None

    def _answer(self, question: str) -> None:
        self.last = None  # an answer that is stopped can't be judged
        self.last = self.bot.reply(question, self.turns[-_REMEMBERED:])
        _write("\n".join(self.last.lines()))
        if self.last.suggestions:
            _write(translate("Type its number, or ask another way."))
        self.turns += [Message("user", question), Message("assistant", self.last.text)]

    def _teach(self, question: str, answer: str) -> None:
        """The right answer to the last question, from now on."""
        from daedap.database.connection import Database  # a second to import
        from daedap.database.lessons import LessonStore, new_lesson

        with closing(Database.open(None, self.bot.run.folder.parent)) as database:
            store = LessonStore(database)
            store.add(new_lesson(question, answer, origin="command"))
            self.bot.teach(store.in_force())
        _write(translate("Taught. Questions like it are answered with it, too."))


def _read_line() -> str | None:
    """The next line; None at the end of input or on Ctrl-C."""
    if sys.stdin is None:  # closed by the program that started this one
        return None
    try:
        while not (line := input("> ").strip()):
            pass
    except (EOFError, KeyboardInterrupt):
        _write("")
        return None
    return line


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
