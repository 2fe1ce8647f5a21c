"""Findings, and those on a file's rows: which of them the bot will confuse, and what to write instead.

The rules on rows are for files of up to 1,000 rows, as FAQs are. Thresholds: docs/EXPERIMENTS.md, "Rows that are
confused".
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from daedap.data.clean import excerpt
from daedap.data.dedup import near_duplicates
from daedap.i18n import translate
from daedap.korean.text import comparison_form
from daedap.model.sentence_encoder import built_in_encoder
from daedap.types import Float32Array, Pair

Subject = TypeVar("Subject")
Severity = Literal["serious", "warning", "hint"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""serious: the run or its scores are unreliable. warning: a better run is possible. hint: worth knowing."""
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


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one rule, in the user's language."""

    rule: str = field(default="", kw_only=True)
    """The name of the function that found it."""
    severity: Severity
    message: str
    """What is wrong."""
    evidence: str
    """The numbers behind it."""
    advice: str
    """What to try next."""

    def line(self) -> str:
        """The finding as a line for a terminal."""
        return f"{self.message} {self.evidence} → {self.advice}"


def finding(severity: Severity, message: str, evidence: str, advice: str, /, **fields: object) -> Finding:
    """A finding from templates of its three texts, which are translated and filled from `fields`."""
    return Finding(severity, *(translate(text, **fields) for text in (message, evidence, advice)))


def apply_rules(rules: Sequence[Callable[[Subject], Finding | None]], subject: Subject) -> list[Finding]:
    """What the rules find, in their order."""
    return [replace(found, rule=rule.__name__) for rule in rules if (found := rule(subject))]


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
        for form in map(comparison_form, reply["answers"][:1]):
            paraphrases[form] += 1
            if reply["outcome"] != "right":
                missed[form].append(reply["question"])
    by_answer = {comparison_form(pair.answer): row for row, pair in reversed(list(enumerate(rows.pairs)))}
    rates = {form: len(missed[form]) / paraphrases[form] for form in missed if form in by_answer}
    often = sorted((form for form in rates if rates[form] >= _OFTEN_MISSED), key=lambda form: -rates[form])
    if not often:
        return None
    shown = (
        f"{rows.name(by_answer[form])} {len(missed[form])}/{paraphrases[form]} ('{excerpt(missed[form][0])}')"
        for form in often
    )
    return finding(
        "warning",
        "Some rows are not found in other words.",
        "{count} of {all} rows miss at least half of their paraphrases: {rows}.",
        "Add these wordings as rows of their own, with the same answer.",
        count=len(often),
        all=len(paraphrases),
        rows=_listed(shown, len(often)),
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
    return finding(
        "hint",
        "Customers may ask for some rows in words that the file does not have.",
        "{count} of {all} questions are nearer to the answer of another row than to their own: {rows}. Paraphrases "
        "of such rows were missed nearly twice as often (39 %, others 22 %).",
        "Let the question name what its answer is about, or add other wordings with the same answer.",
        count=len(far),
        all=len(rows.pairs),
        rows=_listed(map(rows.name, far), len(far)),
    )


def rows_too_alike(rows: Rows) -> Finding | None:
    """Questions with different answers that are too similar to distinguish."""
    questions, _ = rows.vectors
    similarities = np.where(np.triu(rows.other_answer), questions @ questions.T, -1.0)
    places = np.argwhere(similarities >= _ALIKE).tolist()
    if not places:
        return None
    order = sorted(places, key=lambda place: -similarities[place[0], place[1]])
    shown = (f"{rows.name(first)} ~ {rows.name(second)} ({similarities[first, second]:.2f})" for first, second in order)
    return finding(
        "warning",
        "Some questions with different answers are too alike to tell apart.",
        "{count} pair(s) with a similarity of at least {least}: {rows}.",
        "Write into each question what sets it apart, or give both rows one answer that covers both.",
        count=len(order),
        least=_ALIKE,
        rows=_listed(shown, len(order)),
    )


def repeated_answers(rows: Rows) -> Finding | None:
    """Answers under different questions that are nearly equal: conflicting if numbers or negation differ, else fine."""
    equal = list(_nearly_equal_answers(rows.pairs))
    conflicts = [pair for pair in equal if len({_claims(rows.pairs[row].answer) for row in pair}) > 1]
    named = conflicts or equal
    if not named:
        return None
    return finding(
        "warning" if conflicts else "hint",
        "Nearly equal answers differ in a number or in a negation."
        if conflicts
        else "Some answers stand under several questions in nearly the same words.",
        "{count} pair(s): {rows}.",
        "Check which one is right; where both are, say in the questions when each holds."
        if conflicts
        else "That is fine. Word for word the same, they would count as one answer with several questions.",
        count=len(named),
        rows=_listed((f"{rows.name(first)} ~ {rows.name(second)}" for first, second in named), len(named)),
    )


def _nearly_equal_answers(pairs: Sequence[Pair]) -> Iterator[tuple[int, int]]:
    """Rows with different questions and nearly equal, but not equal, answers."""
    forms = [(comparison_form(pair.question), comparison_form(pair.answer)) for pair in pairs]
    for row, earlier in near_duplicates([pair.answer for pair in pairs]):
        for other in earlier:
            if forms[other][0] != forms[row][0] and forms[other][1] != forms[row][1]:
                yield other, row
                break


def _claims(answer: str) -> tuple[tuple[str, ...], int]:
    """What nearly equal answers must share not to contradict each other: the numbers, and how often they negate."""
    return tuple(sorted(_NUMBERS.findall(answer))), len(_NEGATION.findall(answer))


def _listed(shown: Iterable[str], count: int) -> str:
    """The first 5 of `count` texts."""
    return ", ".join(islice(shown, _SHOWN)) + (", …" if count > _SHOWN else "")


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
    return apply_rules(ROW_RULES, Rows(sorted(pairs, key=lambda pair: pair.line), faq))
