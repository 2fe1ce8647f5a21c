"""A row that can't be learned from, and how its text is shown to the user.

Repair of what can't be meant: stray spaces, invisible characters, letters in pieces.

Counts over a stream of pairs, in little memory: lengths, speech levels, labels, questions with several answers.

The data doctor: reads a file of pairs once, repairs what is safe, drops what is of no use, and says so.

The file itself is never changed. Beside a few examples only digests and counts are kept: a million rows fit anywhere.
"""

from __future__ import annotations

import difflib
import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from daedap.data.clean import (
    BadRow,
    clean,
    clean_text,
    excerpt,
    is_damaged,
    texts_of,
)
from daedap.data.findings import KINDS, NOT_ROWS, Example, Finding, Report, Texts
from daedap.data.reader import DEFAULT_READ_OPTIONS, ReadOptions, Source, open_source, rows
from daedap.errors import DataError
from daedap.korean.text import comparison_form, speech_level
from daedap.types import Pair

# Also soft hyphens and marks of writing direction. The zero-width joiner (U+200D) stays where it builds an emoji.


MOST_LABELS = 1_000
"""Different ones; more are not labels but a column chosen by mistake, and are no longer counted."""


def digest(*texts: str) -> int:
    """Eight bytes that stand for texts: among a million, two alike by chance once in 40 million files."""
    return int.from_bytes(blake2b("\x1e".join(texts).encode(), digest_size=8).digest(), "little")


@dataclass
class Lengths:
    """Lengths and speech levels of texts."""

    counts: Counter[int] = field(default_factory=Counter)
    polite: int = 0

    def add(self, text: str) -> None:
        """Count one text."""
        self.counts[len(text)] += 1
        self.polite += speech_level(text) == "polite"

    def texts(self) -> Texts:
        """What was counted, summed up."""
        total = self.counts.total()
        if not total:
            return Texts()
        mean = sum(length * count for length, count in self.counts.items()) / total
        p50, p95, p99 = (percentile(self.counts, share) for share in (0.5, 0.95, 0.99))
        return Texts(round(mean, 2), p50, p95, p99, max(self.counts), round(self.polite / total, 4))


def percentile(counts: Counter[int], share: float) -> int:
    """The smallest length that at least this share of the texts don't exceed."""
    seen, needed = 0, share * counts.total()
    for length in sorted(counts):
        seen += counts[length]
        if seen >= needed:
            return length
    return 0


class Longest:
    """The sizes of all pairs, and where the longest are."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._sizes: Counter[int] = Counter()
        self._heap: list[tuple[int, int, str]] = []  # (characters, -line, question)

    def add(self, pair: Pair) -> None:
        """Count one pair."""
        size = len(pair.question) + len(pair.answer)
        self._sizes[size] += 1
        if len(self._heap) < self._keep:
            heapq.heappush(self._heap, (size, -pair.line, pair.question))
        elif size > self._heap[0][0]:
            heapq.heapreplace(self._heap, (size, -pair.line, pair.question))

    def outliers(self) -> tuple[int, list[tuple[int, str]]]:
        """How many are over ten times as long as 95 % of the pairs, or over 1,000 characters; line and question of the
        longest of them, the longest first.
        """
        limit = min(1_000, 10 * percentile(self._sizes, 0.95))
        count = sum(many for size, many in self._sizes.items() if size > limit)
        return count, [(-line, question) for size, line, question in sorted(self._heap, reverse=True) if size > limit]


class Labels:
    """How often each label is used, and where first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lines: dict[str, int] = {}

    def add(self, label: str, line: int) -> None:
        """Count one."""
        if label in self.counts or len(self.counts) < MOST_LABELS:
            self.counts[label] += 1
            self.lines.setdefault(label, line)

    def frequencies(self) -> dict[str, int]:
        """The labels, the most frequent first; nothing when there are none, or too many to be labels."""
        if not any(self.counts) or len(self.counts) == MOST_LABELS:
            return {}
        return dict(self.counts.most_common())

    def similar(self) -> list[tuple[int, str, str]]:
        """Line, label and the more frequent label it may be a slip for."""
        names = [label for label in self.frequencies() if label]
        found = []
        for place, label in enumerate(names[:200]):  # compares each with each
            near = next((other for other in names[:place] if self._is_slip(label, other)), None)
            if near:
                found.append((self.lines[label], label, near))
        return sorted(found)

    def _is_slip(self, label: str, other: str) -> bool:
        if _number(label) or _number(other):
            return _number(label) == _number(other)
        if comparison_form(label) == comparison_form(other):
            return True
        size = max(len(label), len(other))
        once = self.counts[label] == 1 < self.counts[other]
        # One letter put for another in `size` of them; of two letters, half the word would differ.
        return once and size > 2 and difflib.SequenceMatcher(None, label, other).ratio() >= (size - 1) / size


def _number(label: str) -> str:
    """One spelling of a number (`2.0` → `2`); nothing for other labels."""
    try:
        return format(float(label), "g")
    except ValueError:
        return ""


class Conflicts:
    """Finds questions with several answers: 24 bytes a pair, sorted at the end."""

    def __init__(self) -> None:
        self._questions, self._answers, self._lines = array("Q"), array("Q"), array("Q")

    def add(self, pair: Pair) -> None:
        """Remember one pair; after different turns the same words are a different question."""
        turns = [f"{turn.role}\x1f{turn.content}" for turn in pair.history]
        self._questions.append(digest(*turns, comparison_form(pair.question)))
        self._answers.append(digest(pair.answer))
        self._lines.append(pair.line)

    def found(self) -> list[int]:
        """For every such question the line of its first pair with a different answer, in the order of the file."""
        questions = np.array(self._questions, dtype=np.uint64)
        order = np.argsort(questions, kind="stable")  # stable: the pairs of a question stay in the file's order
        questions, answers = questions[order], np.array(self._answers, dtype=np.uint64)[order]
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = questions[1:] != questions[:-1]
        first = np.flatnonzero(begins)[np.cumsum(begins) - 1]  # for each pair the first one of its question
        differs = np.flatnonzero(answers != answers[first])
        _, places = np.unique(first[differs], return_index=True)
        lines = np.array(self._lines, dtype=np.uint64)[order][differs[places]]
        return [int(line) for line in np.sort(lines)]


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


def check(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS, *, fits: Fits | None = None) -> Report:
    """Examine a file without holding its pairs.

    Args:
        path: CSV, TSV, JSONL, Excel or a KakaoTalk chat.
        layout: Where the questions and answers are, if it can't be told.
        fits: Whether a pair with its end token fits the model; None: up to `LONGEST` characters do.

    Raises:
        DataError: The file can't be read at all. A file of which nothing is usable has a report with `usable` 0.
    """
    doctor = _Doctor(open_source(path, read_options), fits or _fits)
    for _ in doctor.usable():
        pass
    return doctor.report()


def load(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS, *, fits: Fits | None = None) -> Loaded:
    """The cleaned pairs of a file and the same report as `check` gives.

    Raises:
        DataError: The file can't be read, or nothing in it is usable.
    """
    doctor = _Doctor(open_source(path, read_options), fits or _fits)
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
            self.rows += not (isinstance(row, BadRow) and row.kind in NOT_ROWS)
            if isinstance(row, BadRow):
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
