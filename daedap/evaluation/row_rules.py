"""Diagnosis of a file's rows: which of them the bot will confuse, and what to write instead.

For files of up to 1,000 rows, as FAQs are. Thresholds: docs/EXPERIMENTS.md, "Rows that are confused".
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daedap.data.clean import excerpt
from daedap.data.dedup import near_duplicates
from daedap.evaluation.finding import Finding
from daedap.i18n import translate
from daedap.korean.text import comparison_form
from daedap.model.sentence_encoder import built_in_encoder
from daedap.types import Float32Array, Pair

MAX_ROWS = 1000
"""Encoding more takes too long for `daedap check`, and only FAQs are meant."""
_ALIKE = 0.75
"""Cosine of two questions from which small typing mistakes lead to the other row four times as often as below."""
_FAQ_FIT = 0.45
"""Share of rows whose own answer is the nearest to their question from which a file is an FAQ: those of held-out trades
have 0.3 to 0.8, half of them at least 0.55, small talk 0.2."""
_OFTEN_MISSED = 0.5
"""Share of a row's paraphrases without its answer from which the row is named."""
_SHOWN = 5
_NUMBERS = re.compile(r"\d[\d,.]*")
_NEGATION = re.compile(r"않|안 |못|없|불가|아니")


@dataclass(frozen=True)
class Rows:
    """The rows of a file, compared with each other."""

    pairs: Sequence[Pair]
    faq: Mapping[str, Any] | None = None
    """The run's scores on paraphrases, as `FaqEvaluation.to_json` gives them."""

    @cached_property
    def vectors(self) -> tuple[Float32Array, Float32Array]:
        """(rows, width) of the questions and of the answers."""
        vectors = built_in_encoder().encode([text for pair in self.pairs for text in (pair.question, pair.answer)])
        return vectors[::2], vectors[1::2]

    @cached_property
    def other_answer(self) -> NDArray[np.bool_]:
        """(rows, rows): whether two rows have different answers."""
        groups = np.unique([comparison_form(pair.answer) for pair in self.pairs], return_inverse=True)[1]
        different: NDArray[np.bool_] = groups[:, None] != groups[None, :]
        return different

    def name(self, row: int) -> str:
        """A row as it is shown: its line and its question."""
        pair = self.pairs[row]
        question = excerpt(pair.question)
        return translate("line {line} '{value}'", line=pair.line, value=question) if pair.line else f"'{question}'"


def missed_paraphrases(rows: Rows) -> Finding | None:
    """Rows whose paraphrases, as far as any were given to `daedap evaluate`, mostly do not get their answer."""
    if not rows.faq:
        return None
    paraphrases: Counter[str] = Counter()
    missed: defaultdict[str, list[str]] = defaultdict(list)
    for reply in rows.faq["replies"]:
        for form in {comparison_form(answer) for answer in reply["answers"][:1]}:
            paraphrases[form] += 1
            if reply["outcome"] != "right":
                missed[form].append(reply["question"])
    by_answer = {comparison_form(pair.answer): row for row, pair in reversed(list(enumerate(rows.pairs)))}
    often = [form for form in missed if form in by_answer and len(missed[form]) >= _OFTEN_MISSED * paraphrases[form]]
    if not often:
        return None
    often.sort(key=lambda form: -len(missed[form]) / paraphrases[form])
    shown = [
        f"{rows.name(by_answer[form])} {len(missed[form])}/{paraphrases[form]} ('{excerpt(missed[form][0])}')"
        for form in often[:_SHOWN]
    ]
    return Finding(
        "missed_paraphrases",
        "warning",
        translate("Some rows are not found in other words."),
        translate(
            "{count} of {all} rows miss at least half of their paraphrases: {rows}.",
            count=len(often),
            all=len(paraphrases),
            rows=_listed(shown, len(often)),
        ),
        translate("Add these wordings as rows of their own, with the same answer."),
    )


def far_from_answer(rows: Rows) -> Finding | None:
    """Rows of an FAQ whose question is nearer to another row's answer than to its own."""
    if rows.faq:  # what paraphrases showed says more
        return None
    questions, answers = rows.vectors
    similarities = questions @ answers.T
    own = np.where(rows.other_answer, -1.0, similarities).max(axis=1)
    margins = own - np.where(rows.other_answer, similarities, -1.0).max(axis=1)
    far = [int(row) for row in np.argsort(margins, kind="stable") if margins[row] < 0]
    if not far or len(far) > (1 - _FAQ_FIT) * len(rows.pairs):
        return None
    return Finding(
        "far_from_answer",
        "hint",
        translate("Customers may ask for some rows in words that the file does not have."),
        translate(
            "{count} of {all} questions are nearer to the answer of another row than to their own: {rows}. Paraphrases "
            "of such rows were missed nearly twice as often (39 %, others 22 %).",
            count=len(far),
            all=len(rows.pairs),
            rows=_listed([rows.name(row) for row in far[:_SHOWN]], len(far)),
        ),
        translate("Let the question name what its answer is about, or add other wordings with the same answer."),
    )


def rows_too_alike(rows: Rows) -> Finding | None:
    """Questions with different answers that are too similar to distinguish."""
    questions, _ = rows.vectors
    similarities = np.where(np.triu(rows.other_answer), questions @ questions.T, -1.0)
    places = np.argwhere(similarities >= _ALIKE)
    if not len(places):
        return None
    order = sorted(places.tolist(), key=lambda place: -similarities[place[0], place[1]])
    shown = [
        f"{rows.name(first)} ~ {rows.name(second)} ({similarities[first, second]:.2f})"
        for first, second in order[:_SHOWN]
    ]
    return Finding(
        "rows_too_alike",
        "warning",
        translate("Some questions with different answers are too alike to tell apart."),
        translate(
            "{count} pair(s) with a similarity of at least {least}: {rows}.",
            count=len(order),
            least=_ALIKE,
            rows=_listed(shown, len(order)),
        ),
        translate("Write into each question what sets it apart, or give both rows one answer that covers both."),
    )


def repeated_answers(rows: Rows) -> Finding | None:
    """Answers under different questions that are nearly equal: conflicting if numbers or negation differ, else fine."""
    equal = list(_nearly_equal_answers(rows.pairs))
    if not equal:
        return None
    conflicts = [pair for pair in equal if _contradict(*(rows.pairs[row].answer for row in pair))]
    shown = [f"{rows.name(first)} ~ {rows.name(second)}" for first, second in (conflicts or equal)[:_SHOWN]]
    if conflicts:
        return Finding(
            "repeated_answers",
            "warning",
            translate("Nearly equal answers differ in a number or in a negation."),
            translate("{count} pair(s): {rows}.", count=len(conflicts), rows=_listed(shown, len(conflicts))),
            translate("Check which one is right; where both are, say in the questions when each holds."),
        )
    return Finding(
        "repeated_answers",
        "hint",
        translate("Some answers stand under several questions in nearly the same words."),
        translate("{count} pair(s): {rows}.", count=len(equal), rows=_listed(shown, len(equal))),
        translate("That is fine. Word for word the same, they would count as one answer with several questions."),
    )


def _nearly_equal_answers(pairs: Sequence[Pair]) -> Iterator[tuple[int, int]]:
    """Rows with different questions and nearly equal, but not equal, answers."""
    forms = [(comparison_form(pair.question), comparison_form(pair.answer)) for pair in pairs]
    for row, earlier in near_duplicates([pair.answer for pair in pairs]):
        for other in earlier:
            if forms[other][0] != forms[row][0] and forms[other][1] != forms[row][1]:
                yield other, row
                break


def _contradict(first: str, second: str) -> bool:
    """Whether two nearly equal answers have other numbers, or only one of them negates more often."""
    numbers = [sorted(_NUMBERS.findall(text)) for text in (first, second)]
    negations = [len(_NEGATION.findall(text)) for text in (first, second)]
    return numbers[0] != numbers[1] or negations[0] != negations[1]


def _listed(shown: Sequence[str], count: int) -> str:
    return ", ".join(shown) + (", …" if count > len(shown) else "")


ROW_RULES: tuple[Callable[[Rows], Finding | None], ...] = (
    missed_paraphrases,
    rows_too_alike,
    repeated_answers,
    far_from_answer,
)


def diagnose_rows(pairs: Sequence[Pair], faq: Mapping[str, Any] | None = None) -> list[Finding]:
    """The findings of all rules on rows, in the order of the rules; none for files of more than 1,000 rows.

    `faq`: the run's scores on paraphrases, where it has any (`evaluation/faq.json`).
    """
    if not 1 < len(pairs) <= MAX_ROWS:
        return []
    rows = Rows(sorted(pairs, key=lambda pair: pair.line), faq)
    return [finding for rule in ROW_RULES if (finding := rule(rows))]
