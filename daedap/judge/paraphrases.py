"""Known questions in other words: how often is the reply exactly a right answer?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daedap.data.encoding import detect, open_text
from daedap.data.problem import excerpt
from daedap.data.source import refuse_unreadable
from daedap.data.table import Record, records
from daedap.errors import DataError
from daedap.judge.metrics import Score, Tally, ratio
from daedap.judge.table import Line, cell
from daedap.korean import comparison_form
from daedap.language import say
from daedap.pair import Pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from daedap.judge.systems import Answerer
    from daedap.pair import Reply

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
        return [say("Paraphrases answered exactly right (%): {score} (n={count:,})", score=told, count=self.right.n)]


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


def answer_paraphrases(bot: Answerer, paraphrases: Sequence[Paraphrase]) -> Paraphrased:
    """Ask all of them (at least one) and count the right replies; paraphrases of one answer stand or fall together."""
    replies = bot.answers([Pair(paraphrase.question, "") for paraphrase in paraphrases])
    forms = [{comparison_form(answer) for answer in paraphrase.answers} for paraphrase in paraphrases]
    right = [comparison_form(reply.text) in known for reply, known in zip(replies, forms, strict=True)]
    _, groups = np.unique([min(known) for known in forms], return_inverse=True)
    score = ratio(Tally(np.array(right, dtype=np.float64), np.ones(len(right))), groups.astype(np.int64))
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
