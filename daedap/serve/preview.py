"""What a lesson will change: the questions that it will answer, those nearest to it, and what it contradicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from daedap.database.lessons import TaughtLesson
from daedap.korean.text import comparison_form
from daedap.retrieval.bot import Bot
from daedap.retrieval.lessons import LessonBook
from daedap.runs import Json
from daedap.types import Lesson

ASKED = 300
"""The latest questions that are looked at."""
_CAUGHT, _NEAR = 20, 5
Asked = tuple[str, int, str]
"""A question that was asked, how often, and what it was answered last."""


@dataclass(frozen=True)
class Conflicts:
    """What lessons may contradict: rows of the run, and the lessons in force by the question's comparison form."""

    bot: Bot
    lessons: dict[str, Lesson]

    @classmethod
    def of(cls, bot: Bot, in_force: Sequence[Lesson]) -> Conflicts:
        """`in_force`: the latest first."""
        return cls(bot, {comparison_form(each.question): each for each in reversed(in_force)})

    def with_lesson(self, taught: TaughtLesson) -> Json | None:
        """The lesson or row that answers the same question otherwise."""
        other = self.lessons.get(comparison_form(taught.question))
        if other and other.id != taught.id and other.answer != taught.answer:
            return {"kind": "lesson", "question": other.question, "answer": other.answer, "id": other.id}
        row = self.bot.known_row(taught.question)
        if row and comparison_form(row.answer) != comparison_form(taught.answer):
            return {"kind": "row", "question": row.question, "answer": row.answer, "id": None}
        return None


def preview(bot: Bot, taught: TaughtLesson, in_force: Sequence[Lesson], asked: Sequence[Asked] = ()) -> Json:
    """What a lesson would catch: a known question, other lessons', those that were asked; and what it would not."""
    form, row = comparison_form(taught.question), bot.known_row(taught.question)
    caught = [_entry("known", row.question, row.answer, 1.0)] if row else []
    caught += [
        _entry("lesson", each.question, each.answer, 1.0)
        for each in in_force
        if each.id != taught.id and comparison_form(each.question) == form
    ]
    similarities = _caught(bot, taught.lesson, [question for question, _, _ in asked])
    for (question, times, answer), similarity in zip(asked, similarities, strict=True):
        if similarity is not None:
            caught.append(_entry("asked", question, answer, similarity, times))
    caught.sort(key=lambda entry: -entry["similarity"])
    near = [] if taught.scope == "exact" else list(_near_known(bot, taught.question))
    return {
        "catches": caught[:_CAUGHT],
        "near": near[:_NEAR],
        "conflict": Conflicts.of(bot, in_force).with_lesson(taught),
    }


def _entry(kind: str, question: str, answer: str, similarity: float, times: int | None = None) -> Json:
    near = round(similarity, 4)
    return {"question": question, "kind": kind, "answer": answer, "similarity": near, "times": times}


def _near_known(bot: Bot, question: str) -> Iterable[Json]:
    """The known questions nearest to a lesson's, other than its own: they keep their answers."""
    form = comparison_form(question)
    for evidence in bot.nearest(question, _NEAR + 1):
        if comparison_form(evidence.question) != form:
            yield _entry("known", evidence.question, evidence.answer, evidence.similarity)


def _caught(bot: Bot, lesson: Lesson, questions: Sequence[str]) -> list[float | None]:
    """Each question's similarity to the lesson where the lesson would answer it."""
    if not questions:
        return []
    book, queries = LessonBook.build([lesson], bot.retriever), bot.retriever.encode(questions)
    known = bot.retriever.matcher.match(queries, 4)
    result: list[float | None] = []
    for place, hit in enumerate(book.find(queries, known)):
        sure = hit and hit.probability >= bot.answer_options.direct_answer_threshold
        lost = hit and not hit.exact and known[place].exact
        result.append(hit.similarity if hit and sure and not lost else None)
    return result
