"""Question → Reply: what is known, what the model would say, and of all these the answer that fits best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daedap.data.split import HELD_OUT, read_side
from daedap.errors import DataError, SettingsError
from daedap.i18n import translate
from daedap.korean.text import SpeechLevel, comparison_form, speech_level
from daedap.retrieval.hybrid import Hits, HybridRetriever
from daedap.retrieval.small_talk import SmallTalk
from daedap.runs import FOLDER, Run, find
from daedap.types import Evidence, Generation, Message, Pair, Reply

if TYPE_CHECKING:
    from daedap.model.language_model import LanguageModel  # torch takes seconds to import
    from daedap.retrieval.rerank import Reranker

KNOWN = 0.6
"""Similarity from which a question counts as known. Measured: docs/EXPERIMENTS.md, "When a question is known"."""
_NEAR = 20
_HEARD, _ONE_VOICE = 1000, 0.9
_TEMPERATURE, _AMONG = 0.7, 40


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How a bot answers."""

    samples: int = 8
    """Answers that the model proposes to a question that is not known; 0: what is known must do."""
    fallback: str | None = None
    """What to say when nothing known is like the question: a text, or off. [default: a friendly request]"""
    seed: int = 42
    """Decides what the model proposes: the same questions get the same answers."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise SettingsError("--samples {value}: must not be negative.", "Try 8.", value=self.samples)


@dataclass
class Bot:
    """A run that answers. What it knows is read at once, the model when it is first needed."""

    run: Run
    memory: HybridRetriever
    answer_options: AnswerOptions = AnswerOptions()
    unseen: frozenset[str] = frozenset()
    """Ids of pairs that it must not know."""
    device: str = "cpu"
    model: LanguageModel | None = None
    """The run's model where it is open already; else it is opened when it is first needed."""

    @classmethod
    def open(
        cls,
        run: str | int | Path = "latest",
        *,
        runs: str | Path = FOLDER,
        answer_options: AnswerOptions = AnswerOptions(),
        held_out: bool = True,
    ) -> Bot:
        """Open a run by number, folder, `latest` or `best`. Raises RunError when it is unknown or damaged.

        The bot also knows the answers of the rows that were held out for the scores: these are the user's, too.
        """
        return cls.of(find(str(run), Path(runs)), answer_options=answer_options, held_out=held_out)

    @classmethod
    def of(
        cls,
        run: Run,
        *,
        answer_options: AnswerOptions = AnswerOptions(),
        held_out: bool,
        model: LanguageModel | None = None,
    ) -> Bot:
        """The bot of a run that may lack nothing but its scores."""
        apart = [pair for side in HELD_OUT for pair in read_side(run.folder, side)]
        memory = HybridRetriever.open(run.folder / "index", apart if held_out else [])
        unseen = frozenset() if held_out else frozenset(pair.id for pair in apart)
        return cls(run, memory, answer_options, unseen, model=model)

    @cached_property
    def talker(self) -> LanguageModel:
        """The run's model."""
        if self.model:
            return self.model
        from daedap.model.verify import open_engine

        return open_engine(self.run, self.device)

    @cached_property
    def _ranker(self) -> Reranker:
        return self.memory.ranker(self.talker)

    @cached_property
    def _manners(self) -> SmallTalk:
        return SmallTalk.built_in(self.memory.space.encoder, without=self.unseen)

    def reply(self, question: str, history: Sequence[Message] = ()) -> Reply:
        """Answer one question, given the turns before it."""
        return self._answer([_asked(question, history)])[0]

    def reply_many(self, questions: Iterable[str]) -> list[Reply]:
        """Answer many questions that have nothing to do with each other; faster than one by one."""
        return self._answer([_asked(question) for question in questions])

    def stream(self, question: str, on_text: Callable[[str], None], history: Sequence[Message] = ()) -> Reply:
        """Like `reply`, telling each word; nothing can be told before the best of several answers is found."""
        reply = self.reply(question, history)
        for word in reply.text.splitlines(keepends=True):
            on_text(word)
        return reply

    def answers(self, pairs: Sequence[Pair]) -> list[Reply]:
        """A reply to each pair's question, the turns before it heard; their own answers are not looked at."""
        return self._answer([_asked(pair.question, pair.history) for pair in pairs])

    def preferences(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(pairs, candidates): how well each candidate fits. All lists of candidates are equally long."""
        return np.stack(self._ranker.scores([_asked(pair.question, pair.history) for pair in pairs], candidates))

    def _answer(self, pairs: Sequence[Pair]) -> list[Reply]:
        found = dict[int, Reply]()
        asked = [row for row, pair in enumerate(pairs) if pair.question.strip()]
        near = dict(zip(asked, self.memory.near([pairs[row].question for row in asked], _NEAR), strict=True))
        for row in asked:
            if reply := self._at_once(pairs[row], near[row]):
                found[row] = reply
        rest = [row for row in asked if row not in found]
        found |= zip(rest, self._choose([pairs[row] for row in rest], [near[row] for row in rest]), strict=True)
        return [found.get(row) or self._fallback(pair, None) for row, pair in enumerate(pairs)]

    def _at_once(self, pair: Pair, near: Hits) -> Reply | None:
        """What needs no choice: a known question, a word of manners, or one that is like nothing known."""
        best = self.memory.evidence(near)
        if comparison_form(best.question) != comparison_form(pair.question):
            if polite := self._manners.answer(pair.question, unless=best.similarity):
                return Reply(pair.question, polite.answer, "retrieved", polite.similarity, polite)
            if (
                best.similarity < min(self.memory.weights.out_of_scope_threshold, KNOWN)
                and self.answer_options.fallback != "off"
            ):
                return self._fallback(pair, best)
        known = best.similarity >= KNOWN or not self._readable(pair)
        return Reply(pair.question, best.answer, "retrieved", best.similarity, best) if known else None

    def _readable(self, pair: Pair) -> bool:
        """Whether the model can read the question; one that is too long for it is still looked up."""
        try:
            self.talker.prompt.question(replace(pair, history=()), room=self.talker.prompt.max_length - 1)
        except DataError:
            return False
        return True

    def _choose(self, pairs: Sequence[Pair], near: Sequence[Hits]) -> list[Reply]:
        """Of what was answered to the nearest questions and of what the model proposes, what fits best."""
        if not pairs:
            return []
        near = [self._in_tone(found) for found in near]
        known = [[self.memory.index.pairs[row].answer for row in found.rows] for found in near]
        proposed = [
            [one for one in spoken if one.ended and one.text and self._keeps_tone(one.text)]
            for spoken in self._proposals(pairs)
        ]
        texts = [[*old, *(one.text for one in new)] for old, new in zip(known, proposed, strict=True)]
        best = self._ranker.best(pairs, texts)
        return [self._chosen(*each) for each in zip(pairs, near, proposed, best, strict=True)]

    def _in_tone(self, near: Hits) -> Hits:
        """Without answers that are out of tone, unless there are no others."""
        keep = [place for place, row in enumerate(near.rows) if self._keeps_tone(self.memory.index.pairs[row].answer)]
        return Hits(near.rows[keep], near.similarities[keep]) if keep else near

    def _keeps_tone(self, answer: str) -> bool:
        return self._tone in (None, speech_level(answer))

    @cached_property
    def _tone(self) -> SpeechLevel | None:
        """The speech level of nearly all known answers, where they have one: what is chosen among many keeps to it."""
        levels = Counter(speech_level(pair.answer) for pair in self.memory.index.pairs[:_HEARD])
        level, count = levels.most_common(1)[0]
        return level if count >= _ONE_VOICE * levels.total() else None

    def _proposals(self, pairs: Sequence[Pair]) -> list[list[Generation]]:
        if not self.answer_options.samples:
            return [[] for _ in pairs]
        count, seed = self.answer_options.samples, self.answer_options.seed
        return self.talker.sample(pairs, count, seed=seed, temperature=_TEMPERATURE, top_k=_AMONG)

    def _chosen(self, pair: Pair, near: Hits, proposed: Sequence[Generation], best: int) -> Reply:
        if best < len(near.rows):
            evidence = self.memory.evidence(near, best)
            return Reply(pair.question, evidence.answer, "retrieved", evidence.similarity, evidence)
        spoken = proposed[best - len(near.rows)]
        return Reply(pair.question, spoken.text, "generated", spoken.log2_probability, self.memory.evidence(near))

    def _fallback(self, pair: Pair, evidence: Evidence | None) -> Reply:
        """Nothing was asked, or nothing is known of it."""
        told = self.answer_options.fallback
        text = (
            translate("I didn't quite understand. Could you say it another way?")
            if told in (None, "off")
            else str(told)
        )
        return Reply(pair.question, text, "fallback", evidence.similarity if evidence else 0.0, evidence)


def _asked(question: str, history: Sequence[Message] = ()) -> Pair:
    """The question as a pair without an answer; bytes that a terminal could not decode become "?"."""
    return Pair(question.encode("utf-8", "replace").decode(), "", history=tuple(history))
