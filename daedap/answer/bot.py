"""Question → Reply: a known question gets its known answer, any other one is answered by the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from daedap.answer.index import Index
from daedap.data.store import HELD_OUT, read_side
from daedap.language import say
from daedap.pair import Evidence, Message, Pair, Reply, Spoken
from daedap.runs import FOLDER, Run, find

if TYPE_CHECKING:
    from daedap.lm.speaker import Speaker  # torch takes seconds to import

KNOWN = 0.5
"""Cosine from which a question counts as known. Measured choice: docs/EXPERIMENTS.md, "When a question is known"."""


@dataclass
class Bot:
    """A run that answers. The index is read at once, the model when it is first needed."""

    run: Run
    index: Index
    known: float = KNOWN
    device: str = "cpu"

    @classmethod
    def open(cls, run: str | int | Path = "latest", *, runs: str | Path = FOLDER) -> Bot:
        """Open a run by number, folder, `latest` or `best`. Raises RunError when it is unknown or damaged.

        The bot also knows the answers of the rows that were held out for the scores: these are the user's, too.
        """
        found = find(str(run), Path(runs))
        held_out = [pair for side in HELD_OUT for pair in read_side(found.folder, side)]
        return cls(found, Index.open(found.folder / "index").extended(held_out))

    @cached_property
    def speaker(self) -> Speaker:
        """The run's model."""
        from daedap.lm.learned import open_learned

        return open_learned(self.run, self.device)

    def reply(self, question: str, history: Sequence[Message] = ()) -> Reply:
        """Answer one question, given the turns before it."""
        return self._answer([_asked(question, history)])[0]

    def reply_many(self, questions: Sequence[str]) -> list[Reply]:
        """Answer many questions that have nothing to do with each other; faster than one by one."""
        return self._answer([_asked(question) for question in questions])

    def stream(self, question: str, tell: Callable[[str], None], history: Sequence[Message] = ()) -> Reply:
        """Like `reply`, telling each word as soon as it is there."""
        pair = _asked(question, history)
        if not pair.question.strip() or (near := self._nearest([pair])[0]).similarity >= self.known:
            reply = self._answer([pair])[0]
            tell(reply.text)
            return reply
        reply = _generated(pair, self.speaker.stream(pair, tell), near)
        if reply.source == "fallback":  # the model said nothing
            tell(reply.text)
        return reply

    def _answer(self, pairs: Sequence[Pair]) -> list[Reply]:
        near = self._nearest(pairs)
        asked = [row for row, pair in enumerate(pairs) if pair.question.strip()]
        unknown = [row for row in asked if near[row].similarity < self.known]
        spoken = dict(zip(unknown, self.speaker.reply([pairs[row] for row in unknown]) if unknown else [], strict=True))
        replies = []
        for row, (pair, evidence) in enumerate(zip(pairs, near, strict=True)):
            if row in spoken:
                replies.append(_generated(pair, spoken[row], evidence))
            elif pair.question.strip():
                replies.append(Reply(pair.question, evidence.answer, "retrieved", evidence.similarity, evidence))
            else:
                replies.append(_fallback(pair, evidence=None))
        return replies

    def _nearest(self, pairs: Sequence[Pair]) -> list[Evidence]:
        return [near[0] for near in self.index.nearest([pair.question for pair in pairs])]


def _asked(question: str, history: Sequence[Message] = ()) -> Pair:
    """The question as a pair without an answer; bytes that a terminal could not decode become "?"."""
    return Pair(question.encode("utf-8", "replace").decode(), "", history=tuple(history))


def _generated(pair: Pair, spoken: Spoken, evidence: Evidence) -> Reply:
    if not spoken.text:
        return _fallback(pair, evidence)
    return Reply(pair.question, spoken.text, "generated", spoken.log2_probability, evidence)


def _fallback(pair: Pair, evidence: Evidence | None) -> Reply:
    """Nothing was asked, or the model had nothing to say."""
    return Reply(
        pair.question, say("I didn't quite understand. Could you say it another way?"), "fallback", 0.0, evidence
    )
