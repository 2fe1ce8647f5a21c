"""What a lesson will change: the questions that it will answer, those nearest to it, and what it contradicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daedap.database.lessons import TaughtLesson
from daedap.korean.text import comparison_form
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.bot import Bot
from daedap.retrieval.lessons import LessonBook
from daedap.runs import Json
from daedap.serve.service import Service
from daedap.types import Lesson, Pair

_CAUGHT, _NEAR, _ASKED = 20, 5, 300
"""Questions that are shown, and the latest ones that are looked at."""


def preview(server: Service, taught: TaughtLesson, *, show_asked: bool) -> Json:
    """What a lesson would catch: known questions, other lessons' and, for the owner, those that were asked."""
    bot, form = server.bots.current, comparison_form(taught.question)
    caught = [
        _entry("known", pair.question, pair.answer, 1.0)
        for pair in [server.bots.known_row(taught.question)]
        if pair is not None
    ]
    others = [each for each in server.lessons.in_force() if each.id != taught.id]
    caught += [
        _entry("lesson", each.question, each.answer, 1.0) for each in others if comparison_form(each.question) == form
    ]
    near = [] if taught.scope == "exact" else _near_known(bot, taught.question)
    if show_asked and server.options.store:
        asked = server.conversations.asked(_ASKED)
        similarities = _caught(bot, taught.lesson, [question for question, _, _ in asked])
        for (question, times, answer), similarity in zip(asked, similarities, strict=True):
            if similarity is not None:
                caught.append(_entry("asked", question, answer, similarity, times))
    caught.sort(key=lambda entry: -entry["similarity"])
    return {"catches": caught[:_CAUGHT], "near": near, "conflict": Conflicts.of(server).with_lesson(taught)}


def _entry(kind: str, question: str, answer: str, similarity: float, times: int | None = None) -> Json:
    return {
        "question": question,
        "kind": kind,
        "answer": answer,
        "similarity": round(similarity, 4),
        "times": times,
    }


def _near_known(bot: Bot, question: str) -> list[Json]:
    """The known questions nearest to a lesson's, other than its own: they keep their answers."""
    hits = bot.retriever.search([question], _NEAR + 1)[0]
    pairs, form = bot.retriever.index.pairs, comparison_form(question)
    return [
        _entry("known", pairs[row].question, pairs[row].answer, float(similarity))
        for row, similarity in zip(hits.rows, hits.similarities, strict=True)
        if comparison_form(pairs[row].question) != form
    ][:_NEAR]


def _caught(bot: Bot, lesson: Lesson, questions: Sequence[str]) -> list[float | None]:
    """Each question's similarity to the lesson where the lesson would answer it."""
    if not questions:
        return []
    book, vectors = LessonBook.build([lesson], bot.retriever), built_in_encoder().encode(questions)
    known = bot.retriever.matcher.match(questions, 4, vectors) if bot.retriever.matcher else None
    found: list[float | None] = []
    for place, hit in enumerate(book.find(questions, vectors, known)):
        sure = hit and hit.probability >= bot.answer_options.direct_answer_threshold
        lost = hit and not hit.exact and known and known[place].exact
        found.append(hit.similarity if hit and sure and not lost else None)
    return found


@dataclass(frozen=True)
class Conflicts:
    """What lessons may contradict: rows of the run and the lessons in force, by the question's comparison form."""

    server: Service
    lessons: dict[str, Lesson]

    @classmethod
    def of(cls, server: Service) -> Conflicts:
        """Those of a server now."""
        in_force = reversed(server.lessons.in_force())
        return cls(server, {comparison_form(each.question): each for each in in_force})

    def with_lesson(self, taught: TaughtLesson) -> Json | None:
        """The lesson or row that answers the same question otherwise."""
        other = self.lessons.get(comparison_form(taught.question))
        if other and other.id != taught.id and other.answer != taught.answer:
            return {"kind": "lesson", "question": other.question, "answer": other.answer, "id": other.id}
        row: Pair | None = self.server.bots.known_row(taught.question)
        if row and comparison_form(row.answer) != comparison_form(taught.answer):
            return {"kind": "row", "question": row.question, "answer": row.answer, "id": None}
        return None
