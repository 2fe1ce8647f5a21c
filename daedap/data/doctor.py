"""The data doctor: reads a file of pairs, repairs what is safe, drops unusable rows, and reports both.

The file is never changed. One pass in bounded memory: besides a few examples only digests and counts are kept.
"""

from __future__ import annotations

import difflib
import heapq
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from daedap.config import ReadOptions
from daedap.data.clean import BadRow, clean, clean_text, excerpt, find_personal, is_damaged, mask_personal, texts_of
from daedap.data.findings import KINDS, NOT_ROWS, Example, Finding, Report, TextStats
from daedap.data.reader import DEFAULT_READ_OPTIONS, Source, detect_source, read_pairs
from daedap.errors import DataError
from daedap.korean.text import comparison_form, speech_level
from daedap.types import Message, Pair

Fits = Callable[[Pair], bool]

MAX_LABELS = 1_000
"""A column with more distinct values does not hold labels."""
EXAMPLES = 5
"""Examples kept for each kind of finding."""
LONGEST = 1_000
"""Maximum characters of question and answer when no tokenizer is given: KoGPT2 takes 1,024 tokens, and its tokenizer
hardly ever needs more than one for a character."""


@dataclass(frozen=True)
class Loaded:
    """Training data of a command."""

    pairs: list[Pair]
    """Usable pairs, normalized, in file order."""
    report: Report
    lookup: list[Pair] = field(default_factory=list)
    """Pairs that are too long for the model: the bot finds them, but nothing is trained or scored on them."""


def check(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS, *, fits: Fits | None = None) -> Report:
    """Examine a file without holding its pairs in memory.

    `fits` tells whether a pair and its end token fit the model; None: pairs of up to `LONGEST` characters do. Raises
    DataError when the file can't be read; a file without usable rows gives a report with `usable` 0.
    """
    doctor = _Doctor(detect_source(path, read_options), fits)
    deque(doctor.kept_pairs(), 0)
    return doctor.report()


def load(
    path: Path,
    read_options: ReadOptions = DEFAULT_READ_OPTIONS,
    *,
    fits: Fits | None = None,
    keep_too_long: bool = False,
) -> Loaded:
    """The usable pairs of a file, and the report that `check` gives for the same arguments.

    Raises DataError when the file can't be read or has no usable row; `keep_too_long` returns pairs of which all are
    too long as usable ones.
    """
    doctor = _Doctor(detect_source(path, read_options), fits)
    pairs, lookup = list[Pair](), list[Pair]()
    for pair, is_learned in doctor.kept_pairs():
        (pairs if is_learned else lookup).append(pair)
    report = doctor.report()
    if not pairs and keep_too_long:
        pairs, lookup = lookup, []
    if not pairs:
        raise _nothing_usable(report)
    return Loaded(pairs, report, lookup)


def _nothing_usable(report: Report) -> DataError:
    found = [one for one in report.findings if one.examples and (one.action == "dropped" or one.kind == "too_long")]
    if not report.rows or not found:
        return DataError(
            "{file} holds no answered question.", "See what was found with daedap check.", file=report.source.path
        )
    first = min(found, key=lambda finding: finding.examples[0].line)
    return DataError(
        "{file}: none of the {rows:,} rows is usable; first, line {line}: {what}.",
        "See all findings with daedap check.",
        file=report.source.path,
        rows=report.rows,
        line=first.examples[0].line,
        what=first.description,
    )


class _Doctor:
    """State of the examination of one file."""

    def __init__(self, source: Source, fits: Fits | None) -> None:
        self.source = source
        self.fits = fits or (lambda pair: len(pair.question) + len(pair.answer) <= LONGEST)
        self.rows = self.kept = 0
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {kind: [] for kind in KINDS}
        self.seen: set[int] = set()
        self.questions, self.answers, self.labels = TextCounter(), TextCounter(), LabelCounter()
        self.outliers, self.conflicts = OutlierCounter(), ConflictCounter()
        self.first: Pair | None = None

    def kept_pairs(self) -> Iterator[tuple[Pair, bool]]:
        """Every pair that is kept, normalized, and whether it fits the model; reads the file once."""
        for row in read_pairs(self.source):
            self.rows += not (isinstance(row, BadRow) and row.kind in NOT_ROWS)
            if isinstance(row, BadRow):
                self.record(row.kind, row.line, row.value)
            elif pair := self.examine(row):
                yield pair, self.count(pair)

    def record(self, kind: str, line: int, value: str) -> None:
        """Count a finding; keep the first few as examples."""
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(Example(line, excerpt(value)))

    def examine(self, raw: Pair) -> Pair | None:
        """The normalized pair, or None when it is dropped; repairs are recorded only for pairs that are kept."""
        pair, repairs = clean(raw)
        personal = next(filter(find_personal, texts_of(pair)), "")
        is_masked = self.source.read_options.mask_personal
        pair = masked(pair) if personal and is_masked else pair
        if fault := self.fault(raw, pair):
            self.record(fault, raw.line, raw.question or raw.answer)
            return None
        for kind in repairs:
            repaired = raw.question if kind in clean_text(raw.question)[1] else raw.answer
            self.record(kind, raw.line, raw.label if kind == "label" else repaired)
        if personal:
            self.record("masked" if is_masked else "personal", raw.line, mask_personal(personal))
        self.first = self.first or pair
        return pair

    def fault(self, raw: Pair, pair: Pair) -> str:
        """The kind of finding for which a pair is dropped; empty when it is kept."""
        if is_damaged(*texts_of(raw)):
            return "damaged"
        if not pair.question:
            return "empty_question" if pair.answer else "blank"
        if not pair.answer:
            return "empty_answer"
        key = int(pair.id, 16)
        if key in self.seen:
            return "duplicate"
        self.seen.add(key)
        return ""

    def count(self, pair: Pair) -> bool:
        """Add a pair to all statistics; False for one that is too long to be learned."""
        if not self.fits(pair):
            self.record("too_long", pair.line, pair.question)
            return False
        self.kept += 1
        self.questions.add(pair.question)
        self.answers.add(pair.answer)
        self.labels.add(pair.label, pair.line)
        self.outliers.add(pair)
        self.conflicts.add(pair)
        return True

    def report(self) -> Report:
        """Everything that was found; call after `kept_pairs` is exhausted."""
        for line, label, similar in self.labels.similar():
            self.record("similar_label", line, f"{label} ~ {similar}")
        self.counts["very_long"], self.examples["very_long"] = self.outliers.found()
        lines = self.conflicts.lines()
        self.counts["conflict"] = len(lines)
        self.examples["conflict"] = self.questions_at(lines[:EXAMPLES])
        counts = ((kind, count) for kind in KINDS if (count := self.counts[kind]))
        return Report(
            source=self.source,
            rows=self.rows,
            usable=self.kept,
            looked_up=self.counts["too_long"],
            findings=tuple(Finding(kind, count, tuple(self.examples[kind])) for kind, count in counts),
            labels=self.labels.frequencies(),
            questions=self.questions.stats(),
            answers=self.answers.stats(),
            first=self.first,
        )

    def questions_at(self, lines: Iterable[int]) -> list[Example]:
        """Questions by line number, read from the file again: keeping all of them would cost memory."""
        missing, examples = set(lines), list[Example]()
        for row in read_pairs(self.source) if missing else ():
            if row.line in missing and isinstance(row, Pair):
                missing.discard(row.line)
                examples.append(Example(row.line, excerpt(row.question)))
                if not missing:
                    break
        return examples


def masked(pair: Pair) -> Pair:
    """A pair without personal data."""
    question, answer, label = map(mask_personal, (pair.question, pair.answer, pair.label))
    history = tuple(Message(message.role, mask_personal(message.content)) for message in pair.history)
    return replace(pair, question=question, answer=answer, label=label, history=history)


@dataclass
class TextCounter:
    """Counts lengths and speech levels of texts."""

    lengths: Counter[int] = field(default_factory=Counter)
    polite: int = 0

    def add(self, text: str) -> None:
        """Count one text."""
        self.lengths[len(text)] += 1
        self.polite += speech_level(text) == "polite"

    def stats(self) -> TextStats:
        """Mean, percentiles and share of polite texts."""
        if not (count := self.lengths.total()):
            return TextStats()
        p50, p95, p99 = (percentile(self.lengths, share) for share in (0.5, 0.95, 0.99))
        mean = sum(length * texts for length, texts in self.lengths.items()) / count
        polite = self.polite / count
        return TextStats(round(mean, 2), p50, p95, p99, max(self.lengths), round(polite, 4))


def percentile(lengths: Counter[int], share: float) -> int:
    """The smallest length that at least this share of the texts do not exceed; 0 where there are none."""
    seen, needed = 0, share * lengths.total()
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= needed:
            return length
    return 0


class OutlierCounter:
    """Counts the sizes of pairs and keeps the longest ones."""

    def __init__(self) -> None:
        self._sizes: Counter[int] = Counter()
        self._longest: list[tuple[int, int, str]] = []  # a heap of (characters, -line, question)

    def add(self, pair: Pair) -> None:
        """Count one pair."""
        size = len(pair.question) + len(pair.answer)
        self._sizes[size] += 1
        heapq.heappush(self._longest, (size, -pair.line, pair.question))
        if len(self._longest) > EXAMPLES:
            heapq.heappop(self._longest)

    def found(self) -> tuple[int, list[Example]]:
        """Number of outliers, and the longest ones, longest first.

        Outliers are over ten times as long as the 95th percentile, or over 1,000 characters.
        """
        limit = min(1_000, 10 * percentile(self._sizes, 0.95))
        longest = [Example(-line, excerpt(text)) for size, line, text in sorted(self._longest)[::-1] if size > limit]
        return sum(pairs for size, pairs in self._sizes.items() if size > limit), longest


@dataclass
class LabelCounter:
    """Counts labels and keeps the first line of each."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, line: int) -> None:
        """Count one label; new ones are ignored beyond `MAX_LABELS`."""
        if label in self.counts or len(self.counts) < MAX_LABELS:
            self.counts[label] += 1
            self.lines.setdefault(label, line)

    def frequencies(self) -> dict[str, int]:
        """Counts by label, most frequent first; empty when there are no labels or too many to be labels."""
        if not any(self.counts) or len(self.counts) == MAX_LABELS:
            return {}
        return dict(self.counts.most_common())

    def similar(self) -> list[tuple[int, str, str]]:
        """Labels that may be misspelled: line, label, and the more frequent label it resembles."""
        names = [label for label in self.frequencies() if label][:200]  # quadratic
        return sorted(
            (self.lines[label], label, similar)
            for place, label in enumerate(names)
            if (similar := next((other for other in names[:place] if self._is_misspelled(label, other)), None))
        )

    def _is_misspelled(self, label: str, other: str) -> bool:
        if _number(label) or _number(other):
            return _number(label) == _number(other)
        if comparison_form(label) == comparison_form(other):
            return True
        size = max(len(label), len(other))
        once = self.counts[label] == 1 < self.counts[other]
        # One letter of `size` may differ; in labels of two letters that would be half the word.
        return once and size > 2 and difflib.SequenceMatcher(None, label, other).ratio() >= (size - 1) / size


def _number(label: str) -> str:
    """Canonical spelling of a number (`2.0` → `2`); empty for other labels."""
    try:
        return format(float(label), "g")
    except ValueError:
        return ""


class ConflictCounter:
    """Finds questions with several answers; 24 bytes a pair, sorted at the end."""

    def __init__(self) -> None:
        self._questions, self._answers, self._lines = array("Q"), array("Q"), array("Q")

    def add(self, pair: Pair) -> None:
        """Add one pair; the same words after different messages are a different question."""
        history = [f"{message.role}\x1f{message.content}" for message in pair.history]
        self._questions.append(_digest(*history, comparison_form(pair.question)))
        self._answers.append(_digest(pair.answer))
        self._lines.append(pair.line)

    def lines(self) -> list[int]:
        """For each such question, the line of its first pair with a different answer, in file order."""
        questions, answers, lines = map(np.array, (self._questions, self._answers, self._lines))
        _, first, question_of = np.unique(questions, return_index=True, return_inverse=True)
        differs = np.flatnonzero(answers != answers[first[question_of]])
        _, places = np.unique(question_of[differs], return_index=True)
        return sorted(lines[differs[places]].tolist())


def _digest(*texts: str) -> int:
    """A 64-bit digest: among a million texts, two collide by chance in one of 40 million files."""
    return int.from_bytes(blake2b("\x1e".join(texts).encode(), digest_size=8).digest(), "little")
