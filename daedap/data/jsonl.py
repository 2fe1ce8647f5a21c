"""Turns of a conversation → pairs, each with the turns before it.

JSON lines → pairs: a question and an answer, or a whole conversation, in every line.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from daedap.data.clean import BadRow, excerpt
from daedap.data.tables import Columns, part_of
from daedap.errors import DataError
from daedap.types import Message, Pair, Role

HISTORY = 6
"""Turns kept before a question, besides what the system said; older ones no longer decide the answer."""


class Conversation:
    """Takes messages one by one and gives back the pairs they complete; what one side says in a row is one turn."""

    def __init__(self, conversation_id: str, label: str = "") -> None:
        self._thread, self._label = conversation_id, label
        self._system: tuple[Message, ...] = ()
        self._past: deque[Message] = deque(maxlen=HISTORY)
        self._question: tuple[str, int] | None = None
        self._role: Role | None = None
        self._texts: list[str] = []
        self._line = 0

    def add(self, role: Role, text: str, line: int) -> list[Pair]:
        """A message; at most one pair comes back."""
        done: list[Pair] = []
        if role != self._role:
            done = self.end()
            self._role, self._line = role, line
        self._texts.append(text)
        return done

    def end(self) -> list[Pair]:
        """Close the open turn; it's a pair when it answers a question."""
        role, text, question = self._role, "\n".join(self._texts), self._question
        self._role, self._texts, self._question = None, [], None
        if role == "user":
            self._question = (text, self._line)
        elif role == "system":
            self._system, self._question = (Message("system", text),), question
        elif role == "assistant":
            return self._answered(text, question)
        return []

    def _answered(self, text: str, question: tuple[str, int] | None) -> list[Pair]:
        history = (*self._system, *self._past)
        answer = Message("assistant", text)
        if question is None:  # the bot spoke first
            self._past.append(answer)
            return []
        self._past.extend((Message("user", question[0]), answer))
        return [Pair(question[0], text, self._label, history, question[1], self._thread)]


CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
"""Keys under which a list of turns stands."""
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "사용자"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "chatgpt", "model", "챗봇"), "assistant"),
    **dict.fromkeys(("system", "developer", "시스템"), "system"),
}
Chooser = Callable[[tuple[str, ...]], Columns]


def objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Line number and object; a line that isn't a JSON object is a problem. Blank lines at the end don't count."""
    blank: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank.append(number)
            continue
        yield from ((at, BadRow(at, "blank", "")) for at in blank)
        blank.clear()
        yield number, _object(number, line)


def _object(number: int, line: str) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return BadRow(number, "json", excerpt(line.strip()))
    return row if isinstance(row, dict) else BadRow(number, "json", excerpt(line.strip()))


def conversation_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The turns of a row that holds a conversation."""
    return next((row[key] for key in CONVERSATIONS if isinstance(row.get(key), list)), None)


def object_pairs(row: Mapping[str, Any], line: int, choose: Chooser, name: str) -> Iterator[Pair | BadRow]:
    """The pairs of one object: one, or one for every answer of a conversation.

    Args:
        row: The object.
        line: Where it stands.
        choose: The columns for an object with these keys.
        name: The file's, for the thread of a conversation.
    """
    turns = conversation_of(row)
    if turns is None:
        yield _single(row, line, choose)
    else:
        label = next((text for key in row if part_of(key) == "label" and (text := _text(row[key]))), "")
        yield from _several(turns, line, Conversation(f"{name}:{line}", label))


def _single(row: Mapping[str, Any], line: int, choose: Chooser) -> Pair | BadRow:
    try:
        columns = choose(tuple(row))
    except DataError:
        return BadRow(line, "keys", excerpt(", ".join(row)))
    question, answer = _text(row[columns.question.name]), _text(row[columns.answer.name])
    label = _text(row[columns.label.name]) if columns.label else ""
    if question is None or answer is None:
        return BadRow(line, "keys", excerpt(str(row)))
    if columns.question.name == "instruction" and (subject := _text(row.get("input"))):
        question = f"{question}\n{subject}"  # what the instruction is about, in the layout of Alpaca
    return Pair(question, answer, label or "", line=line)


def _several(turns: list[Any], line: int, talk: Conversation) -> Iterator[Pair | BadRow]:
    """Nothing is taken from a conversation of which one turn can't be read: what follows may refer to it."""
    found: list[Pair] = []
    for turn in turns:
        role, text = _role(turn), _content(turn)
        if role is None or text is None:
            yield BadRow(line, "turns", excerpt(str(turn)))
            return
        found += talk.add(role, text, line)
    found += talk.end()
    if found:
        yield from found
    else:
        yield BadRow(line, "turns", excerpt(str(turns)))


def _role(turn: object) -> Role | None:
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return _ROLES.get(role.strip().casefold()) if isinstance(role, str) else None


def _content(turn: object) -> str | None:
    return _text(turn.get("content", turn.get("value", []))) if isinstance(turn, dict) else None


def _text(value: object) -> str | None:
    """A value as text: `null` is empty; a list or an object is none."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str | int | float) else None
