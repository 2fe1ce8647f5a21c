"""The data doctor: reads a file of pairs once, repairs what is safe, drops what is of no use, and says so.

The file itself is never changed. Beside a few examples only digests and counts are kept: a million rows fit anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from daedap.data.clean import clean, clean_text, is_damaged, texts_of
from daedap.data.findings import KINDS, NOT_ROWS, Example, Finding, Report
from daedap.data.problem import Problem, excerpt
from daedap.data.read import TOLD_BY_THE_FILE, Layout, Source, open_source, rows
from daedap.data.tally import Conflicts, Labels, Lengths, Longest
from daedap.errors import DataError
from daedap.pair import Pair

Fits = Callable[[Pair], bool]

EXAMPLES = 5
"""Kept for each kind of finding."""
LONGEST = 1_000
"""Characters of question and answer that fit a model when nobody asks its tokenizer: KoGPT2, the base most people have,
takes 1,024 tokens, and its tokenizer hardly ever needs more than one for a character."""


@dataclass(frozen=True)
class Loaded:
    """What a command learns from."""

    pairs: list[Pair]
    """Cleaned, in the order of the file."""
    report: Report


def check(path: Path, layout: Layout = TOLD_BY_THE_FILE, *, fits: Fits | None = None) -> Report:
    """Examine a file without holding its pairs.

    Args:
        path: CSV, TSV, JSONL, Excel or a KakaoTalk chat.
        layout: Where the questions and answers are, if it can't be told.
        fits: Whether a pair with its end token fits the model; None: up to `LONGEST` characters do.

    Raises:
        DataError: The file can't be read at all. A file of which nothing is usable has a report with `usable` 0.
    """
    doctor = _Doctor(open_source(path, layout), fits or _fits)
    for _ in doctor.usable():
        pass
    return doctor.report()


def load(path: Path, layout: Layout = TOLD_BY_THE_FILE, *, fits: Fits | None = None) -> Loaded:
    """The cleaned pairs of a file and the same report as `check` gives.

    Raises:
        DataError: The file can't be read, or nothing in it is usable.
    """
    doctor = _Doctor(open_source(path, layout), fits or _fits)
    pairs = list(doctor.usable())
    report = doctor.report()
    if not pairs:
        _refuse(report)
    return Loaded(pairs, report)


def _fits(pair: Pair) -> bool:
    return len(pair.question) + len(pair.answer) <= LONGEST


def _refuse(report: Report) -> None:
    if not report.rows:
        raise DataError(
            "{file} holds no answered question.",
            "See what was found with daedap check.",
            file=report.source.path,
        )
    dropped = [finding for finding in report.findings if finding.action == "dropped"]
    first = min(dropped, key=lambda finding: finding.examples[0].line)
    raise DataError(
        "{file}: none of the {rows:,} rows is usable; first, line {line}: {what}.",
        "See all findings with daedap check.",
        file=report.source.path,
        rows=report.rows,
        line=first.examples[0].line,
        what=first.told,
    )


class _Doctor:
    """One examination of one file."""

    def __init__(self, source: Source, fits: Fits) -> None:
        self.source, self.fits = source, fits
        self.rows = self.kept = 0
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {kind: [] for kind in KINDS}
        self.known: set[int] = set()
        self.questions, self.answers, self.labels = Lengths(), Lengths(), Labels()
        self.longest, self.conflicts = Longest(EXAMPLES), Conflicts()

    def usable(self) -> Iterator[Pair]:
        """Every pair that is left, repaired; goes through the file once."""
        for row in rows(self.source):
            self.rows += not (isinstance(row, Problem) and row.kind in NOT_ROWS)
            if isinstance(row, Problem):
                self.note(row.kind, row.line, row.value)
            elif pair := self.examine(row):
                yield pair

    def note(self, kind: str, line: int, value: str) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(Example(line, excerpt(value)))

    def examine(self, raw: Pair) -> Pair | None:
        """The pair as it's learned, or None when it's dropped; a repair is noted only where it's of use."""
        pair, repairs = clean(raw)
        if fault := self.fault(raw, pair):
            self.note(fault, raw.line, raw.question or raw.answer)
            return None
        for kind in repairs:
            self.note(kind, raw.line, _repaired(raw, kind))
        self.count(pair)
        return pair

    def fault(self, raw: Pair, pair: Pair) -> str:
        """Why a pair is dropped; nothing when it isn't."""
        if is_damaged(*texts_of(raw)):
            return "damaged"
        if not pair.question:
            return "empty_question" if pair.answer else "blank"
        if not pair.answer:
            return "empty_answer"
        if not self.fits(pair):
            return "too_long"
        key = int(pair.id, 16)
        if key in self.known:
            return "duplicate"
        self.known.add(key)
        return ""

    def count(self, pair: Pair) -> None:
        self.kept += 1
        self.questions.add(pair.question)
        self.answers.add(pair.answer)
        self.labels.add(pair.label, pair.line)
        self.longest.add(pair)
        self.conflicts.add(pair)

    def report(self) -> Report:
        self.conclude()
        return Report(
            source=self.source,
            rows=self.rows,
            usable=self.kept,
            findings=tuple(
                Finding(kind, self.counts[kind], tuple(self.examples[kind])) for kind in KINDS if self.counts[kind]
            ),
            labels=self.labels.frequencies(),
            questions=self.questions.texts(),
            answers=self.answers.texts(),
        )

    def conclude(self) -> None:
        """The findings that take all rows to see."""
        for line, label, near in self.labels.similar():
            self.note("similar_label", line, f"{label} ~ {near}")
        self.counts["very_long"], outliers = self.longest.outliers()
        self.examples["very_long"] = [Example(line, excerpt(question)) for line, question in outliers]
        lines = self.conflicts.found()
        self.counts["conflict"] = len(lines)
        self.examples["conflict"] = self.questions_at(lines[:EXAMPLES])

    def questions_at(self, lines: Iterable[int]) -> list[Example]:
        """Read again from the beginning, as far as needed: only a few questions are wanted of the many passed over."""
        wanted, found = set(lines), list[Example]()
        for row in rows(self.source) if wanted else ():
            if row.line in wanted and isinstance(row, Pair):
                wanted.discard(row.line)
                found.append(Example(row.line, excerpt(row.question)))
            if not wanted:
                break
        return found


def _repaired(raw: Pair, kind: str) -> str:
    """The text that needed a repair."""
    if kind == "label":
        return raw.label
    return raw.question if kind in clean_text(raw.question)[1] else raw.answer
