"""What people said when they saw two runs' answers without knowing whose they were: one JSON line each, kept at once.

A line that was being written when the machine stopped has no end; it is passed over, and goes when the next is added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daedap.errors import RunError
from daedap.files import add_line, storage


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement."""

    time: str
    """UTC, ISO 8601."""
    id: str
    """Of the test row."""
    question: str
    answers: dict[str, str]
    """Run → what it answered."""
    order: tuple[str, str]
    """The runs in the order in which their answers were shown."""
    winner: str | None
    """The run whose answer is better; None: a tie."""


@dataclass(frozen=True, slots=True)
class Count:
    """Verdicts on two runs."""

    first: int
    """The first run's answer is better."""
    second: int
    ties: int
    share: float | None
    """How often the second run wins where somebody does, 0 to 1; None without such a verdict."""
    low: float | None
    """Its exact 95 % interval (Clopper-Pearson)."""
    high: float | None
    p: float | None
    """Sign test, two-sided: how likely so uneven a result is if both are equally good."""

    @property
    def clear(self) -> bool:
        """Whether one of them is clearly better."""
        return self.low is not None and self.high is not None and not self.low <= 0.5 <= self.high


def read(path: Path) -> list[Verdict]:
    """All verdicts, oldest first. Raises RunError when the file has been damaged."""
    if not path.exists():
        return []
    with storage(path):
        *lines, _unended = path.read_bytes().split(b"\n")
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1)]


def _parsed(path: Path, number: int, line: bytes) -> Verdict:
    try:
        record: dict[str, Any] = json.loads(line)
        first, second = record["order"]
        return Verdict(**{**record, "order": (first, second), "answers": dict(record["answers"])})
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            "{file}, line {line}: not a verdict ({error}).",
            "Take the line out, or restore the file from a backup.",
            file=path,
            line=number,
            error=error,
        ) from error


def add(path: Path, verdict: Verdict) -> None:
    """Keep a verdict: it is on the disk when this returns. Several processes may add at once."""
    add_line(path, asdict(verdict), lasting=True)


def on(verdicts: Iterable[Verdict], answers: dict[str, str], row: str) -> list[Verdict]:
    """The verdicts on just these answers to this row; a run made anew under an old number may answer differently."""
    return [verdict for verdict in verdicts if verdict.id == row and verdict.answers == answers]


def count(verdicts: Iterable[Verdict], first: str, second: str) -> Count:
    """How the verdicts fall."""
    from scipy.stats import binomtest  # half a second to import

    winners = [verdict.winner for verdict in verdicts]
    wins = [winners.count(first), winners.count(second)]
    ties = len(winners) - sum(wins)
    if not sum(wins):
        return Count(0, 0, ties, None, None, None, None)
    test = binomtest(wins[1], sum(wins))
    interval = test.proportion_ci(0.95, "exact")
    return Count(
        wins[0], wins[1], ties, wins[1] / sum(wins), float(interval.low), float(interval.high), float(test.pvalue)
    )
