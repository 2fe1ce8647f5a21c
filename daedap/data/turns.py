"""Turns of a conversation → pairs, each with the turns before it."""

from __future__ import annotations

from collections import deque

from daedap.pair import Message, Pair, Role

HISTORY = 6
"""Turns kept before a question, besides what the system said; older ones no longer decide the answer."""


class Conversation:
    """Takes messages one by one and gives back the pairs they complete; what one side says in a row is one turn."""

    def __init__(self, thread: str, label: str = "") -> None:
        self._thread, self._label = thread, label
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
