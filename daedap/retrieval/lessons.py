"""Lessons: corrected answers that come before everything else a bot knows.

A lesson answers its own question, letter for letter but for spacing and punctuation. With the scope "similar" it also
takes part in matching like a known pair (matcher.py): it answers where it is the best of all, and surely enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from daedap.korean.text import comparison_form
from daedap.retrieval.courtesies import Courtesy, by_courtesy
from daedap.retrieval.hybrid import HybridRetriever
from daedap.retrieval.lexical import LexicalIndex, damaged
from daedap.retrieval.matcher import SIGNALS, AnswerMatcher, Match, Signals, encode_pairs, with_rival
from daedap.retrieval.query import Query
from daedap.runs import DATABASE
from daedap.types import Evidence, Lesson, Pair, Reply

LESSONS = "lessons.jsonl"
"""In a bundle: the lessons in force when it was made, the latest first."""
_SCORE = SIGNALS.index("score")


class LessonHit(NamedTuple):
    """A lesson that may answer a question."""

    lesson: Lesson
    probability: float
    """That its answer is right; 1 for its own question."""
    similarity: float
    """To the question, 0 to 1."""
    exact: bool

    def reply(self, question: str) -> Reply:
        """The lesson's answer."""
        evidence = Evidence(self.lesson.question, self.lesson.answer, self.similarity)
        return Reply(question, self.lesson.answer, "lesson", self.probability, evidence, lesson=self.lesson)


@dataclass(frozen=True)
class LessonBook:
    """The lessons in force, the latest first; of two for the same question only the latest counts."""

    lessons: tuple[Lesson, ...]
    retriever: HybridRetriever
    """What is known besides."""

    @classmethod
    def build(cls, lessons: Sequence[Lesson], retriever: HybridRetriever) -> LessonBook:
        """`lessons`: the latest first."""
        return cls(tuple(latest_lessons(lessons)), retriever)

    def exact(self, question: str) -> LessonHit | None:
        """The lesson for exactly this question."""
        lesson = self._by_form.get(comparison_form(question))
        return LessonHit(lesson, 1.0, 1.0, True) if lesson else None

    def courtesy(self, courtesy: Courtesy) -> LessonHit | None:
        """The latest lesson for a courtesy of this kind, however it is worded."""
        lesson = self._by_courtesy.get(courtesy.name)
        return LessonHit(lesson, 1.0, 1.0, False) if lesson else None

    def find(self, queries: Sequence[Query], known: Sequence[Match]) -> list[LessonHit | None]:
        """The lesson for exactly each query; else the one that fits it best, if better than all `known` pairs."""
        exact = [self.exact(query.text) for query in queries]
        if not self._matcher:
            return exact
        nearest = self._matcher.signals(queries, 2)
        return [hit or self._hit(near, rival) for hit, near, rival in zip(exact, nearest, known, strict=True)]

    def _hit(self, nearest: Signals, known: Match) -> LessonHit | None:
        assert self._matcher, "signals come from a matcher"
        lesson = self._similar[int(nearest.rows[0])]
        margin = float(nearest.calibration[_SCORE]) - self._rival(lesson, known)
        if margin <= 0:
            return None
        signals = with_rival(nearest.calibration, margin)
        similarity = float(nearest.similarities[0].clip(0, 1))
        return LessonHit(lesson, self._matcher.weights.probability(signals), similarity, False)

    def _rival(self, lesson: Lesson, known: Match) -> float:
        """Similarity of the best known pair that the lesson does not correct and that has another answer."""
        pairs, own = self.retriever.index.pairs, comparison_form(lesson.question)
        for row, similarity in zip(known.rows, known.similarities, strict=True):
            if comparison_form(pairs[row].question) != own and pairs[row].answer != lesson.answer:
                return float(similarity)
        return 0.0

    @cached_property
    def _by_form(self) -> dict[str, Lesson]:
        return {comparison_form(each.question): each for each in self.lessons}

    @cached_property
    def _by_courtesy(self) -> dict[str, Lesson]:
        return by_courtesy((each.question, each) for each in self._similar)

    @cached_property
    def _similar(self) -> list[Lesson]:
        return [each for each in self.lessons if each.scope == "similar"]

    @cached_property
    def _matcher(self) -> AnswerMatcher | None:
        """Matches questions to lessons as the bot's own matcher does to its pairs: with the same weights.

        Lessons are too few to tell how rare an n-gram is and how much answers count: that comes from the known pairs.
        """
        if not self._similar:
            return None
        pairs = [Pair(each.question, each.answer) for each in self._similar]
        index, known = LexicalIndex.build(pairs, self.retriever.index.ngrams), self.retriever.matcher
        vectors = encode_pairs(known.encoder, pairs)
        return AnswerMatcher(index, known.encoder, *vectors, known.weights, reference=known)


def latest_lessons(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Of lessons for the same question only the latest. `lessons`: the latest first."""
    latest = {comparison_form(each.question): each for each in reversed(lessons)}
    return [each for each in lessons if latest[comparison_form(each.question)] is each]


def stored_lessons(runs: Path) -> list[Lesson]:
    """The lessons in force in the database of a folder of runs, the latest first. Raises StorageError."""
    if not (os.environ.get("DAEDAP_DB") or (runs / DATABASE).is_file()):
        return []
    from daedap.database.connection import Database  # a second to import
    from daedap.database.lessons import LessonStore

    with closing(Database.open(None, runs)) as database:
        return LessonStore(database).in_force()


def bundled_lessons(folder: Path) -> list[Lesson]:
    """The lessons in a bundle's folder, the latest first; none for a run. Raises RunError when they can't be read."""
    if not (folder / LESSONS).is_file():
        return []
    try:
        return [Lesson(**json.loads(line)) for line in (folder / LESSONS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder / LESSONS, str(error)) from error
