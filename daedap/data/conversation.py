"""Conversations → pairs, each with the messages before it; who of the speakers answers; texts rendered for training."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from daedap.data.columns import Columns
from daedap.data.headers import has_role, speaker_side
from daedap.types import Message, Pair, Role

HISTORY = 6
"""Messages kept before a question, besides the system message; older ones hardly matter for the answer."""
Turn = tuple[Role, str, int]
"""Role, text and line of a message."""

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "사용자"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "chatgpt", "model", "챗봇"), "assistant"),
    **dict.fromkeys(("system", "developer", "시스템"), "system"),
}
_MARK = re.compile(
    r"#{2,}[ \t]*([^\n:：#]{1,20}?)[ \t]*[:：]|^#{2,}[ \t]*([^\n:：#]{1,20}?)[ \t]*$"
    r"|<\|im_start\|>(\w+)|<\|(user|assistant|system)\|>|(\[/?INST\]|<usr>|<sys>)"
    r"|^(질문|답변|사용자|챗봇|Q|A|User|Human|Assistant|Bot)[ \t]*[:：]",
    re.MULTILINE | re.IGNORECASE,
)
"""Begins a turn in a text that was rendered for training: ### 명령문:, <|im_start|>user, [INST], <usr>, 질문: …"""
_MARK_ROLES: dict[str, Role] = {"[inst]": "user", "[/inst]": "assistant", "<usr>": "user", "<sys>": "assistant"}
_END_MARK = re.compile(r"</?s>|<\|(?:im_end|endoftext|end)\|>|\[EOS\]")


class Conversation:
    """Takes messages one by one and returns the pairs they complete; consecutive messages of one role are joined."""

    def __init__(self, conversation_id: str, label: str = "") -> None:
        self._id, self._label = conversation_id, label
        self._system: tuple[Message, ...] = ()
        self._past: deque[Message] = deque(maxlen=HISTORY)
        self._question: tuple[str, int] | None = None
        self._role: Role | None = None
        self._texts: list[str] = []
        self._line = 0

    def add(self, role: Role, text: str, line: int) -> list[Pair]:
        """Add a message; returns the pair that ended before it, if any."""
        done: list[Pair] = []
        if role != self._role:
            done = self.end()
            self._role, self._line = role, line
        self._texts.append(text)
        return done

    def end(self) -> list[Pair]:
        """Close the last message; returns a pair when it answers a question."""
        role, text, self._role, self._texts = self._role, "\n".join(self._texts), None, []
        if role == "user":
            self._question = (text, self._line)
        elif role == "system":
            self._system = (Message("system", text),)
        elif role == "assistant":
            history, question, self._question = (*self._system, *self._past), self._question, None
            self._past += [Message("user", question[0])] if question else []  # else the assistant spoke first
            self._past.append(Message("assistant", text))
            return [Pair(question[0], text, self._label, history, question[1], self._id)] if question else []
        return []


def pairs_of(turns: Iterable[Turn], conversation: Conversation) -> Iterator[Pair]:
    """The pairs of a whole conversation."""
    for role, text, line in turns:
        if text.strip():
            yield from conversation.add(role, text, line)
    yield from conversation.end()


def round_pairs(values: Sequence[str], columns: Columns, line: int, conversation: Conversation) -> Iterator[Pair]:
    """The pairs of a row that holds a whole conversation in numbered columns."""
    turns: list[Turn] = []
    for question, answer in columns.rounds:
        turns += [("user", values[question], line), ("assistant", values[answer], line)]
    return pairs_of(turns, conversation)


def role_named(name: str) -> Role | None:
    """The role that a speaker's name says in so many words: user, gpt, 시스템."""
    return _ROLES.get(name.strip().casefold())


def assistant_among(speakers: Sequence[str]) -> str | None:
    """The speaker whose messages are answers, by name: 상담원, 점원, bot …, or the other one than 고객, user …

    Of two unknown `speakers`, in the order of their first message, the second; of more than two None.
    """
    # Of A and B, A is no answer; beside Q it is.
    marks = {name.casefold() for name in speakers} == {"q", "a"}
    sides = {name: speaker_side(name) if len(name) > 1 or marks else None for name in speakers}
    answering, asking = ([name for name in speakers if sides[name] == side] for side in ("answer", "question"))
    if len(answering) == 1:
        return answering[0]
    if len(speakers) != 2:
        return None
    return next(name for name in speakers if name != (asking[0] if len(asking) == 1 else speakers[0]))


def rendered_turns(text: object, line: int) -> list[Turn]:
    """The turns of a text that was rendered for training, such as `### 명령문: … ### 답변: …` (KoAlpaca).

    Empty when there is no question with its answer.
    """
    if not isinstance(text, str) or not (marks := list(_MARK.finditer(text))):
        return []
    turns: list[Turn] = []
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=True):
        body = _END_MARK.sub("", text[mark.end() : end]).strip()
        name = next(filter(None, mark.groups()))
        role = _MARK_ROLES.get(name.casefold()) or role_named(name)
        if role is None and has_role(name, "question", "answer"):
            role = "user" if has_role(name, "question") else "assistant"
        if role and body:
            turns.append((role, body, line))
        elif role is None and turns:  # a heading inside an answer
            turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{mark[0].strip()} {body}".strip(), line)
    roles = [role for role, _, _ in turns]
    return turns if "user" in roles and "assistant" in roles[roles.index("user") :] else []
