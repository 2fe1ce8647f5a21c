"""The same questions as other people might type them: what a bot loses by a slip, a missing space, another ending.

Known questions in other words: how often is the reply exactly a right answer?
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.data.clean import excerpt
from daedap.data.encoding import detect, open_text
from daedap.data.reader import refuse_unreadable
from daedap.data.tables import Record, records
from daedap.errors import DataError
from daedap.evaluation.metrics import FloatArray, RatioTerms, Score, gold_ranks, ranking, ratio
from daedap.evaluation.tables import Line, align, cell
from daedap.i18n import translate
from daedap.korean.text import comparison_form
from daedap.types import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from daedap.evaluation.testset import EvalSet, ScorableBot
    from daedap.types import Pair, Reply


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


def disturbed(
    bot: ScorableBot, eval_set: EvalSet, kinds: Mapping[str, Callable[[str, random.Random], str]]
) -> list[Effect]:
    """Ask the exam's questions as they are and disturbed in each of the `kinds`.

    A kind's function is given a question and its dice, which hang on the pair's id and the kind alone; it may return
    the question as it is. The candidates are the exam's own.
    """
    clean = _ask(bot, eval_set, range(len(eval_set.asked)), eval_set.questions)
    return [_effect(kind, bot, eval_set, clean, perturb) for kind, perturb in kinds.items()]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a bot made of some of the exam's questions; both (asked,), and meaningless where it was not asked."""

    hits: FloatArray
    replies: list[str]


def _ask(bot: ScorableBot, eval_set: EvalSet, places: Sequence[int], questions: Sequence[Pair]) -> _Asked:
    hits, replies = np.zeros(len(eval_set.asked)), [""] * len(eval_set.asked)
    if questions:
        ranks = gold_ranks(bot.preferences(questions, [eval_set.candidates[place] for place in places]))
        hits[list(places)] = ranking(ranks)["hits_at_1"].numerators
        for place, reply in zip(places, bot.answers(questions), strict=True):
            replies[place] = comparison_form(reply.text)
    return _Asked(hits, replies)


def _effect(
    kind: str, bot: ScorableBot, eval_set: EvalSet, clean: _Asked, perturb: Callable[[str, random.Random], str]
) -> Effect:
    asked = eval_set.questions
    typed = [replace(pair, question=perturb(pair.question, random.Random(f"{pair.id} {kind}"))) for pair in asked]
    places = [place for place, pair in enumerate(asked) if typed[place].question != pair.question]
    found = _ask(bot, eval_set, places, [typed[place] for place in places])
    same = np.array([mine == other for mine, other in zip(clean.replies, found.replies, strict=True)])
    values = (clean.hits, found.hits, found.hits - clean.hits, same.astype(np.float64))
    return Effect(kind, len(places), *(_score(value, places, eval_set) for value in values))


def _score(values: FloatArray, places: Sequence[int], eval_set: EvalSet) -> Score | None:
    chosen = list(places)
    groups = eval_set.groups[[eval_set.asked[place] for place in chosen]]
    tally = RatioTerms(values[chosen], np.ones(len(chosen)))
    return ratio(tally, groups, resamples=eval_set.options.resamples, seed=eval_set.options.seed)


def to_json(effects: Sequence[Effect]) -> dict[str, Any]:
    """Kind → its scores."""
    return {
        effect.kind: {name: value for name, value in asdict(effect).items() if name != "kind"} for effect in effects
    }


def lines(effects: Sequence[Effect], candidates: int) -> list[str]:
    """A table with a row for each kind."""
    heads = [
        translate("disturbed questions"),
        translate("rows"),
        translate("right of {count}, first (%)", count=candidates),
    ]
    heads += [translate("disturbed (%)"), translate("difference"), translate("same reply (%)")]
    return align([heads, *(_cells(effect) for effect in effects)])


def _cells(effect: Effect) -> list[str]:
    line = Line("", "", 100)
    scores = (effect.clean, effect.disturbed, effect.difference, effect.same_reply)
    return [_kind(effect.kind), f"{effect.rows:,}", *(cell(line, score) for score in scores)]


def _kind(name: str) -> str:
    known = {
        "typo": translate("typing slips"),
        "spacing": translate("spaces"),
        "particles": translate("particles left out"),
    }
    known |= {
        "polite": translate("politely"),
        "casual": translate("casually"),
        "laughter": translate("laughter or tears"),
    }
    return known.get(name, name)


SEVERAL = "|"
"""Between several right answers."""


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """A question, and every answer that is right."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Paraphrased:
    """What a bot replied to paraphrases."""

    right: Score
    """Share of the replies that are a right answer, by comparison form; the interval by bootstrap over answers."""
    replies: tuple[tuple[Reply, bool], ...]
    """Each with whether it is right."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        rows = [
            {"question": reply.question, "answer": reply.text, "source": reply.source, "right": right}
            for reply, right in self.replies
        ]
        return {"right": asdict(self.right), "replies": rows}

    def lines(self) -> list[str]:
        """For a terminal."""
        told = cell(Line("right", "", 100), self.right)
        return [
            translate("Paraphrases answered exactly right (%): {score} (n={count:,})", score=told, count=self.right.n)
        ]


def read_paraphrases(file: Path, known: Iterable[Pair]) -> list[Paraphrase]:
    """Read a CSV with the columns `question`, and `answers` or `answer_ids`, with `|` between several of a row.

    `known` are the pairs that ids may name. Raises DataError when the file can't be read, or a row of it can't.
    """
    refuse_unreadable(file)
    with open_text(file, detect(file)) as text:
        rows = [row for row in records(text, ",") if row.fields != []]
    names = [name.strip().casefold() for name in rows[0].fields or []] if rows else []
    column = next((name for name in ("answers", "answer_ids") if name in names), "")
    if "question" not in names or not column:
        raise DataError(
            "{file}: no columns question and answers (or answer_ids); its first row is: {value}",
            "Write these names into the first row, and each question with its right answers below.",
            file=file,
            value=excerpt(rows[0].text.strip()) if rows else "",
        )
    if len(rows) == 1:
        raise DataError("{file} holds only a header.", "Write one question and answer a line below it.", file=file)
    answers = {pair.id: pair.answer for pair in known} if column == "answer_ids" else None
    told = [(row, _told(row, names, column, file)) for row in rows[1:]]
    return [one if answers is None else _named(one, answers, row, file) for row, one in told]


def answer_paraphrases(bot: ScorableBot, paraphrases: Sequence[Paraphrase]) -> Paraphrased:
    """Ask all of them (at least one) and count the right replies; paraphrases of one answer stand or fall together."""
    replies = bot.answers([Pair(paraphrase.question, "") for paraphrase in paraphrases])
    forms = [{comparison_form(answer) for answer in paraphrase.answers} for paraphrase in paraphrases]
    right = [comparison_form(reply.text) in known for reply, known in zip(replies, forms, strict=True)]
    _, groups = np.unique([min(known) for known in forms], return_inverse=True)
    score = ratio(RatioTerms(np.array(right, dtype=np.float64), np.ones(len(right))), groups.astype(np.int64))
    assert score, "no paraphrases"
    return Paraphrased(score, tuple(zip(replies, right, strict=True)))


def _told(row: Record, names: Sequence[str], column: str, file: Path) -> Paraphrase:
    """A row with what stands in its column of answers or ids."""
    fields = dict(zip(names, row.fields, strict=True)) if row.fields and len(row.fields) == len(names) else {}
    question = fields.get("question", "").strip()
    parts = [part.strip() for part in fields.get(column, "").split(SEVERAL)]
    if not question or not all(parts):
        raise DataError(
            "{file}, line {line}: no question with its right answers, but: {value}",
            'Put a text that holds a comma or a quote between double quotes, and "|" between several answers.',
            file=file,
            line=row.line,
            value=excerpt(row.text.strip()),
        )
    return Paraphrase(question, tuple(parts))


def _named(paraphrase: Paraphrase, known: Mapping[str, str], row: Record, file: Path) -> Paraphrase:
    """The answers that the ids stand for."""
    for name in paraphrase.answers:
        if name not in known:
            raise DataError(
                "{file}, line {line}: no pair has the id {value}.",
                "Use a run that was trained on the pairs it means, or write the answers themselves: column answers.",
                file=file,
                line=row.line,
                value=excerpt(name),
            )
    return replace(paraphrase, answers=tuple(known[name] for name in paraphrase.answers))
