"""Counts over a stream of pairs, in little memory: lengths, speech levels, labels, questions with several answers."""

from __future__ import annotations

import difflib
import heapq
from array import array
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from daedap.data.findings import Texts
from daedap.korean import comparison_form, speech_level
from daedap.pair import Pair

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
