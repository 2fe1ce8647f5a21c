"""The same questions as other people might type them: what a bot loses by a slip, a missing space, another ending."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.judge.metrics import FloatArray, Score, Tally, gold_ranks, ranking, ratio
from daedap.judge.table import Line, align, cell
from daedap.korean import comparison_form
from daedap.language import say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from daedap.judge.exam import Exam
    from daedap.judge.systems import Answerer
    from daedap.pair import Pair


@dataclass(frozen=True, slots=True)
class Effect:
    """What one kind of disturbance does to a bot, over the rows whose question it changes; None: there are none."""

    kind: str
    rows: int
    """So many questions were changed."""
    clean: Score | None
    """Hits@1 on these rows as they stand in the test."""
    disturbed: Score | None
    """Hits@1 on the changed questions."""
    difference: Score | None
    """Disturbed less clean, with its paired interval by bootstrap over components."""
    same_reply: Score | None
    """Share of the replies that stay the same, by comparison form."""


def disturbed(bot: Answerer, exam: Exam, kinds: Mapping[str, Callable[[str, random.Random], str]]) -> list[Effect]:
    """Ask the exam's questions as they are and disturbed in each of the `kinds`.

    A kind's function is given a question and its dice, which hang on the pair's id and the kind alone; it may return
    the question as it is. The candidates are the exam's own.
    """
    clean = _ask(bot, exam, range(len(exam.asked)), exam.questions)
    return [_effect(kind, bot, exam, clean, disturb) for kind, disturb in kinds.items()]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a bot made of some of the exam's questions; both (asked,), and meaningless where it was not asked."""

    hits: FloatArray
    replies: list[str]


def _ask(bot: Answerer, exam: Exam, places: Sequence[int], questions: Sequence[Pair]) -> _Asked:
    hits, replies = np.zeros(len(exam.asked)), [""] * len(exam.asked)
    if questions:
        ranks = gold_ranks(bot.preferences(questions, [exam.candidates[place] for place in places]))
        hits[list(places)] = ranking(ranks)["hits_at_1"].numerators
        for place, reply in zip(places, bot.answers(questions), strict=True):
            replies[place] = comparison_form(reply.text)
    return _Asked(hits, replies)


def _effect(
    kind: str, bot: Answerer, exam: Exam, clean: _Asked, disturb: Callable[[str, random.Random], str]
) -> Effect:
    asked = exam.questions
    typed = [replace(pair, question=disturb(pair.question, random.Random(f"{pair.id} {kind}"))) for pair in asked]
    places = [place for place, pair in enumerate(asked) if typed[place].question != pair.question]
    found = _ask(bot, exam, places, [typed[place] for place in places])
    same = np.array([mine == other for mine, other in zip(clean.replies, found.replies, strict=True)])
    values = (clean.hits, found.hits, found.hits - clean.hits, same.astype(np.float64))
    return Effect(kind, len(places), *(_score(value, places, exam) for value in values))


def _score(values: FloatArray, places: Sequence[int], exam: Exam) -> Score | None:
    chosen = list(places)
    groups = exam.groups[[exam.asked[place] for place in chosen]]
    tally = Tally(values[chosen], np.ones(len(chosen)))
    return ratio(tally, groups, resamples=exam.options.resamples, seed=exam.options.seed)


def to_json(effects: Sequence[Effect]) -> dict[str, Any]:
    """Kind → its scores."""
    return {
        effect.kind: {name: value for name, value in asdict(effect).items() if name != "kind"} for effect in effects
    }


def lines(effects: Sequence[Effect], candidates: int) -> list[str]:
    """A table with a row for each kind."""
    heads = [say("disturbed questions"), say("rows"), say("right of {count}, first (%)", count=candidates)]
    heads += [say("disturbed (%)"), say("difference"), say("same reply (%)")]
    return align([heads, *(_cells(effect) for effect in effects)])


def _cells(effect: Effect) -> list[str]:
    line = Line("", "", 100)
    scores = (effect.clean, effect.disturbed, effect.difference, effect.same_reply)
    return [_kind(effect.kind), f"{effect.rows:,}", *(cell(line, score) for score in scores)]


def _kind(name: str) -> str:
    known = {"typo": say("typing slips"), "spacing": say("spaces"), "particles": say("particles left out")}
    known |= {"polite": say("politely"), "casual": say("casually"), "laughter": say("laughter or tears")}
    return known.get(name, name)
