"""What helps to decide on lessons: like questions grouped, and what a lesson will change before it is taught."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from threading import Lock

import numpy as np

from daedap.database.lessons import TaughtLesson
from daedap.korean.text import comparison_form
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.bot import Bot
from daedap.retrieval.lessons import LessonBook
from daedap.runs import Json
from daedap.types import Float32Array, Lesson

ALIKE = 0.5
"""Cosine of sentence vectors from which questions belong together."""
_VECTORS = 4000
"""Questions whose vectors are remembered."""
ASKED = 300
"""The latest questions that are looked at."""
_CAUGHT, _NEAR = 20, 5
Asked = tuple[str, int, str]
"""A question that was asked, how often, and what it was answered last."""
_known: OrderedDict[str, Float32Array] = OrderedDict()
_lock = Lock()


def grouped(entries: Sequence[Json]) -> list[Json]:
    """Entries ("question", "count", …), the most frequent first → groups around their most frequent question.

    A question joins the nearest group that is near enough. Groups with the most askings come first.
    """
    leaders: list[Float32Array] = []
    groups: list[list[Json]] = []
    for entry, vector in zip(entries, _vectors([entry["question"] for entry in entries]), strict=True):
        similarities = np.array(leaders) @ vector if leaders else np.zeros(0)
        if leaders and similarities.max() >= ALIKE:
            groups[int(similarities.argmax())].append(entry)
        else:
            leaders.append(vector)
            groups.append([entry])
    return sorted((_group(group) for group in groups), key=lambda group: (-group["count"], group["question"]))


def _group(entries: Sequence[Json]) -> Json:
    leader = entries[0]
    questions = [{name: entry[name] for name in ("question", "count", "reply")} for entry in entries]
    return {
        "id": leader["reply"],
        "question": leader["question"],
        "count": sum(entry["count"] for entry in entries),
        "people": max(entry["people"] for entry in entries),
        "last": max(entry["last"] for entry in entries),
        "reason": "bad" if any(entry["reason"] == "bad" for entry in entries) else "fallback",
        "questions": questions,
        "nearest": leader["nearest"],
    }


def _vectors(questions: Sequence[str]) -> list[Float32Array]:
    """Sentence vectors, computed once for each question."""
    with _lock:
        if new := [question for question in dict.fromkeys(questions) if question not in _known]:
            _known.update(zip(new, built_in_encoder().encode(new), strict=True))
        vectors = [_known[question] for question in questions]
        while len(_known) > max(_VECTORS, len(questions)):
            _known.popitem(last=False)
        return vectors


def conflicts(bot: Bot, in_force: Sequence[Lesson], lessons: Sequence[TaughtLesson]) -> list[Json | None]:
    """For each lesson, what answers its question otherwise: another one in force (the latest first), or a row."""
    latest = {comparison_form(each.question): each for each in reversed(in_force)}

    def conflict(taught: TaughtLesson) -> Json | None:
        other = latest.get(comparison_form(taught.question))
        if other and other.id != taught.id and other.answer != taught.answer:
            return {"kind": "lesson", "question": other.question, "answer": other.answer, "id": other.id}
        row = bot.exact_pair(taught.question)
        if row and comparison_form(row.answer) != comparison_form(taught.answer):
            return {"kind": "row", "question": row.question, "answer": row.answer, "id": None}
        return None

    return [conflict(taught) for taught in lessons]


def preview(bot: Bot, taught: TaughtLesson, in_force: Sequence[Lesson], asked: Sequence[Asked] = ()) -> Json:
    """What a lesson would catch: a known question, other lessons', those that were asked.

    "near": the known questions nearest to its own, which keep their answers.
    """
    form, row = comparison_form(taught.question), bot.exact_pair(taught.question)
    caught = [_entry("known", row.question, row.answer, 1.0)] if row else []
    caught += [
        _entry("lesson", each.question, each.answer, 1.0)
        for each in in_force
        if each.id != taught.id and comparison_form(each.question) == form
    ]
    similarities = _caught(bot, taught.lesson, [question for question, _, _ in asked])
    caught += [
        _entry("asked", question, answer, similarity, times)
        for (question, times, answer), similarity in zip(asked, similarities, strict=True)
        if similarity is not None
    ]
    nearest = [] if taught.scope == "exact" else bot.nearest(taught.question, _NEAR + 1)
    near = [
        _entry("known", each.question, each.answer, each.similarity)
        for each in nearest
        if comparison_form(each.question) != form
    ]
    return {
        "catches": sorted(caught, key=lambda entry: -entry["similarity"])[:_CAUGHT],
        "near": near[:_NEAR],
        "conflict": conflicts(bot, in_force, [taught])[0],
    }


def _entry(kind: str, question: str, answer: str, similarity: float, times: int | None = None) -> Json:
    near = round(similarity, 4)
    return {"question": question, "kind": kind, "answer": answer, "similarity": near, "times": times}


def _caught(bot: Bot, lesson: Lesson, questions: Sequence[str]) -> list[float | None]:
    """Each question's similarity to the lesson where the lesson would answer it."""
    taught = copy(bot)
    taught.lessons = LessonBook.build([lesson], bot.retriever)
    taught.answer_options = replace(
        bot.answer_options, samples=0
    )  # the language model proposes where no lesson answers
    replies = taught.reply_many(questions)
    return [reply.evidence.similarity if reply.lesson and reply.evidence else None for reply in replies]
