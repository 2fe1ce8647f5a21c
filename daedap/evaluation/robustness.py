"""Robustness of a bot: Hits@1 on perturbed test questions, and exact-answer accuracy on paraphrases of known questions.

Perturbations are typos, spacing, particles, speech level and laughter (`daedap.korean.perturb`). Paraphrases come from
a CSV file of questions with their right answers.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.data.clean import excerpt
from daedap.data.encoding import detect, open_text
from daedap.data.inputs import refuse_unreadable
from daedap.data.tables import Record, records
from daedap.errors import DataError
from daedap.evaluation.metrics import FloatArray, RatioTerms, Score, gold_ranks, ranking, ratio
from daedap.evaluation.tables import MetricFormat, align_columns, format_score
from daedap.i18n import translate
from daedap.korean.text import comparison_form
from daedap.types import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from daedap.evaluation.testset import EvalSet, ScorableBot
    from daedap.types import Reply

SEPARATOR = "|"
"""Between several right answers."""
_PERCENT = MetricFormat("", "", 100)


@dataclass(frozen=True, slots=True)
class PerturbationEffect:
    """The effect of one kind of perturbation on the rows whose question it changes; scores are None without rows."""

    kind: str
    rows: int
    """Number of questions that were changed."""
    clean: Score | None
    """Hits@1 of these rows with their original question."""
    disturbed: Score | None
    """Hits@1 with the perturbed question."""
    difference: Score | None
    """Perturbed minus clean, with its paired interval by bootstrap over components."""
    same_reply: Score | None
    """Share of replies that stay the same, by comparison form."""


def measure_robustness(
    bot: ScorableBot, eval_set: EvalSet, kinds: Mapping[str, Callable[[str, random.Random], str]]
) -> list[PerturbationEffect]:
    """Evaluate the bot on the ranked pairs as they are and with each kind of perturbation; candidates stay the same.

    A perturbation takes a question and a generator seeded by the pair's id and the kind; it may return the question
    unchanged.
    """
    clean = _evaluate(bot, eval_set, range(len(eval_set.ranked_rows)), eval_set.ranked_pairs)
    return [_effect(kind, bot, eval_set, clean, perturb) for kind, perturb in kinds.items()]


@dataclass(frozen=True, slots=True)
class _BotResult:
    """A bot on some of the ranked rows; both (ranked rows,), undefined in the other rows."""

    hits: FloatArray
    replies: list[str]
    """Comparison forms."""


def _evaluate(bot: ScorableBot, eval_set: EvalSet, positions: Sequence[int], questions: Sequence[Pair]) -> _BotResult:
    hits, replies = np.zeros(len(eval_set.ranked_rows)), [""] * len(eval_set.ranked_rows)
    if questions:
        ranks = gold_ranks(bot.preferences(questions, [eval_set.candidates[position] for position in positions]))
        hits[list(positions)] = ranking(ranks)["hits_at_1"].numerators
        for position, reply in zip(positions, bot.answers(questions), strict=True):
            replies[position] = comparison_form(reply.text)
    return _BotResult(hits, replies)


def _effect(
    kind: str, bot: ScorableBot, eval_set: EvalSet, clean: _BotResult, perturb: Callable[[str, random.Random], str]
) -> PerturbationEffect:
    pairs = eval_set.ranked_pairs
    perturbed = [replace(pair, question=perturb(pair.question, random.Random(f"{pair.id} {kind}"))) for pair in pairs]
    positions = [position for position, pair in enumerate(pairs) if perturbed[position].question != pair.question]
    result = _evaluate(bot, eval_set, positions, [perturbed[position] for position in positions])
    same = np.array([before == after for before, after in zip(clean.replies, result.replies, strict=True)])
    values = (clean.hits, result.hits, result.hits - clean.hits, same.astype(np.float64))
    return PerturbationEffect(kind, len(positions), *(_score(value, positions, eval_set) for value in values))


def _score(values: FloatArray, positions: Sequence[int], eval_set: EvalSet) -> Score | None:
    groups = eval_set.groups[[eval_set.ranked_rows[position] for position in positions]]
    terms = RatioTerms(values[list(positions)], np.ones(len(positions)))
    return ratio(terms, groups, resamples=eval_set.options.resamples, seed=eval_set.options.seed)


def robustness_json(effects: Sequence[PerturbationEffect]) -> dict[str, Any]:
    """Kind → its number of rows and its scores."""
    return {
        effect.kind: {name: value for name, value in asdict(effect).items() if name != "kind"} for effect in effects
    }


def robustness_table(effects: Sequence[PerturbationEffect], candidates: int) -> list[str]:
    """A table with one row for each kind."""
    kinds = {
        "typo": translate("typos"),
        "spacing": translate("spaces"),
        "particles": translate("particles left out"),
        "polite": translate("politely"),
        "casual": translate("casually"),
        "laughter": translate("laughter or tears"),
    }
    heads = [
        translate("disturbed questions"),
        translate("rows"),
        translate("right of {count}, first (%)", count=candidates),
        translate("disturbed (%)"),
        translate("difference"),
        translate("same reply (%)"),
    ]
    rows = [
        [
            kinds.get(effect.kind, effect.kind),
            f"{effect.rows:,}",
            *(
                format_score(_PERCENT, score)
                for score in (effect.clean, effect.disturbed, effect.difference, effect.same_reply)
            ),
        ]
        for effect in effects
    ]
    return align_columns([heads, *rows])


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """A question, and every answer that counts as right."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParaphraseResult:
    """A bot's replies to paraphrases."""

    right: Score
    """Share of replies that are exactly a right answer, by comparison form; bootstrap over answers."""
    replies: tuple[tuple[Reply, bool], ...]
    """Each reply, and whether it is right."""

    def to_json(self) -> dict[str, Any]:
        """The score and every reply as a JSON object."""
        rows = [
            {"question": reply.question, "answer": reply.text, "source": reply.source, "right": right}
            for reply, right in self.replies
        ]
        return {"right": asdict(self.right), "replies": rows}

    def lines(self) -> list[str]:
        """The score as a line for a terminal."""
        template = "Paraphrases answered exactly right (%): {score} (n={count:,})"
        return [translate(template, score=format_score(_PERCENT, self.right), count=self.right.n)]


def read_paraphrases(file: Path, known: Iterable[Pair]) -> list[Paraphrase]:
    """Read a CSV with the columns `question`, and `answers` or `answer_ids`, with `|` between several in a row.

    `known` are the pairs that ids may refer to. Raises DataError if the file or one of its rows can't be read.
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
    answer_of = {pair.id: pair.answer for pair in known} if column == "answer_ids" else None
    parsed = [(row, _parse_row(row, names, column, file)) for row in rows[1:]]
    return [
        paraphrase if answer_of is None else _resolve_ids(paraphrase, answer_of, row, file)
        for row, paraphrase in parsed
    ]


def score_paraphrases(bot: ScorableBot, paraphrases: Sequence[Paraphrase]) -> ParaphraseResult:
    """Ask at least one paraphrase and count the right replies; paraphrases of one answer are one bootstrap group."""
    replies = bot.answers([Pair(paraphrase.question, "") for paraphrase in paraphrases])
    forms = [{comparison_form(answer) for answer in paraphrase.answers} for paraphrase in paraphrases]
    right = [comparison_form(reply.text) in known for reply, known in zip(replies, forms, strict=True)]
    _, groups = np.unique([min(known) for known in forms], return_inverse=True)
    score = ratio(RatioTerms(np.array(right, dtype=np.float64), np.ones(len(right))), groups.astype(np.int64))
    assert score, "no paraphrases"
    return ParaphraseResult(score, tuple(zip(replies, right, strict=True)))


def _parse_row(row: Record, names: Sequence[str], column: str, file: Path) -> Paraphrase:
    """The question and the parts of its column of answers or ids."""
    fields = dict(zip(names, row.fields, strict=True)) if row.fields and len(row.fields) == len(names) else {}
    question = fields.get("question", "").strip()
    parts = [part.strip() for part in fields.get(column, "").split(SEPARATOR)]
    if not question or not all(parts):
        raise DataError(
            "{file}, line {line}: no question with its right answers, but: {value}",
            'Put a text that holds a comma or a quote between double quotes, and "|" between several answers.',
            file=file,
            line=row.line,
            value=excerpt(row.text.strip()),
        )
    return Paraphrase(question, tuple(parts))


def _resolve_ids(paraphrase: Paraphrase, answer_of: Mapping[str, str], row: Record, file: Path) -> Paraphrase:
    """The paraphrase with pair ids replaced by these pairs' answers."""
    for name in paraphrase.answers:
        if name not in answer_of:
            raise DataError(
                "{file}, line {line}: no pair has the id {value}.",
                "Use a run that was trained on the pairs it means, or write the answers themselves: column answers.",
                file=file,
                line=row.line,
                value=excerpt(name),
            )
    return replace(paraphrase, answers=tuple(answer_of[name] for name in paraphrase.answers))
