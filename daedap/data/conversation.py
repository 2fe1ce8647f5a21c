"""Messages of a conversation → pairs, each with the messages before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from daedap.data.clean import BadRow
from daedap.data.headers import speaker_side
from daedap.data.tables import Record, bad_record
from daedap.data.turn_columns import TurnColumns
from daedap.korean.text import comparison_form, nfc
from daedap.types import Message, Pair, Role

HISTORY = 6
"""Messages kept before a question, besides the system message; older ones hardly matter for the answer."""


_ANSWER_MARKS = ("a", "답변", "답", "answer")
"""Instead of a speaker's name: then every question stands for itself."""


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
        if question is None:  # the assistant spoke first
            self._past.append(answer)
            return []
        self._past.extend((Message("user", question[0]), answer))
        return [Pair(question[0], text, self._label, history, question[1], self._id)]


def pairs_of(messages: Iterable[tuple[Role, str, int]], conversation: Conversation) -> Iterator[Pair]:
    """The pairs of a whole conversation from (role, text, line)."""
    for role, text, line in messages:
        if text.strip():
            yield from conversation.add(role, text, line)
    yield from conversation.end()


def assistant_among(speakers: Sequence[str]) -> str | None:
    """The speaker whose messages are answers, by name: 상담원, 점원, bot …, or the other one than 고객, user …

    Args:
        speakers: Distinct names in the order of their first message.

    Returns: None when the names do not tell and there are more than two of them; of two unknown ones the second.
    """
    # Of A and B, A is no answer; beside Q it is.
    marks = {name.casefold() for name in speakers} == {"q", "a"}
    sides = {name: speaker_side(name) if len(name) > 1 or marks else None for name in speakers}
    answering = [speaker for speaker, side in sides.items() if side == "answer"]
    if len(answering) == 1:
        return answering[0]
    if len(speakers) != 2:
        return None
    asking = [speaker for speaker, side in sides.items() if side == "question"]
    return next(speaker for speaker in speakers if speaker != (asking[0] if len(asking) == 1 else speakers[0]))


def table_conversations(
    table: Iterable[Record], turns: TurnColumns, speaker: str, name: str
) -> Iterator[Pair | BadRow]:
    """Pairs of a table in which every row is one message.

    Args:
        table: Its records without the header.
        turns: Its columns.
        speaker: Whose messages are the answers; not used for a table without speakers, where two take turns.
        name: Of the file, for conversation ids.
    """
    conversation, last, previous = Conversation(f"{name}:0"), "", -1
    answers = False
    unrelated = comparison_form(speaker) in _ANSWER_MARKS
    for record in table:
        if not record.fields or len(record.fields) < turns.text.index + 1:
            yield bad_record(record)
            continue
        fields = [*record.fields, *[""] * (turns.width - len(record.fields))]
        number = fields[turns.turn.index].strip() if turns.turn else ""
        place = int(number) if number.isdecimal() else -1
        key = fields[turns.conversation.index].strip() if turns.conversation else ""
        # Some tables mark only the first message of each dialogue (S), others repeat its id: then `last` is the same.
        if (key and key != last) or (0 <= place <= previous):
            yield from conversation.end()
            conversation, answers = Conversation(f"{name}:{record.line}"), False
        last, previous = key, place
        if turns.speaker:
            answered, answers = answers, nfc(fields[turns.speaker.index].strip()) == speaker
            if unrelated and answered and not answers:
                yield from conversation.end()
                conversation = Conversation(f"{name}:{record.line}")
        text = turns.text_of(fields)
        if text.strip():
            yield from conversation.add("assistant" if answers else "user", text, record.line)
        if not turns.speaker:
            answers = not answers
    yield from conversation.end()
