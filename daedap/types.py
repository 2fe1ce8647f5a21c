"""The nouns every floor speaks of: a message, a pair to learn, a reply given."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Source = Literal["retrieved", "generated", "lesson", "fallback"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and the answer to learn, with the turns that came before it (oldest first)."""

    question: str
    answer: str
    label: str = ""
    history: tuple[Message, ...] = ()
    line: int = 0
    """Where it begins in its file, counted from 1; 0 when it comes from no file."""
    conversation_id: str = ""
    """Pairs cut from one conversation share it; a split never parts them."""

    @property
    def id(self) -> str:
        """Digest of what is learned: the same text has the same id in every file and on every machine."""
        turns = [f"{turn.role}\x1f{turn.content}" for turn in self.history]
        text = "\x1e".join([*turns, self.question, self.answer])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation up to and including the answer."""
        return (*self.history, Message("user", self.question), Message("assistant", self.answer))


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model said by itself."""

    text: str
    ended: bool
    """Whether it came to its end token, rather than to the limit."""
    tokens: int
    """Its length, the end token included."""
    log2_probability: float
    """Mean over its tokens, the end token included; at most 0."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The nearest known question and its answer."""

    question: str
    answer: str
    similarity: float
    """Cosine, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the bot said and why."""

    question: str
    text: str
    source: Source
    score: float
    """Retrieved: cosine of the nearest question. Generated: mean log2-probability of its tokens (at most 0)."""
    evidence: Evidence | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object: question, answer, source, score, evidence."""
        evidence = asdict(self.evidence) if self.evidence else None
        return {
            "question": self.question,
            "answer": self.text,
            "source": self.source,
            "score": round(self.score, 6),
            "evidence": evidence,
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        return self.text.splitlines()
