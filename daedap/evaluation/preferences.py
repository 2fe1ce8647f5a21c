"""Blind human preferences between the answers of two runs, one JSON line each in `verdicts.jsonl`.

A line is on the disk before the next question is shown. A last line without a newline was cut short by a crash: it is
ignored, and removed when the next line is appended.
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
class Preference:
    """One person's choice between two answers to one question."""

    time: str
    """UTC, ISO 8601."""
    id: str
    """The id of the test row."""
    question: str
    answers: dict[str, str]
    """Run → its answer."""
    order: tuple[str, str]
    """The runs in the order in which their answers were shown."""
    winner: str | None
    """The run with the better answer; None: a tie."""


@dataclass(frozen=True, slots=True)
class PreferenceCounts:
    """Preferences between two runs, with a sign test."""

    first: int
    """Wins of the first run."""
    second: int
    ties: int
    share: float | None
    """Wins of the second run ÷ wins of either, 0 to 1; None if there are only ties."""
    low: float | None
    """Exact 95% interval of the share (Clopper-Pearson)."""
    high: float | None
    p: float | None
    """Two-sided sign test of equal win rates."""

    @property
    def clear(self) -> bool:
        """Whether the interval excludes one half."""
        return self.low is not None and self.high is not None and not self.low <= 0.5 <= self.high


def read_preferences(path: Path) -> list[Preference]:
    """All preferences, oldest first; none if the file does not exist. Raises RunError for a damaged line."""
    if not path.exists():
        return []
    with storage(path):
        *lines, _unterminated = path.read_bytes().split(b"\n")
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse(path: Path, number: int, line: bytes) -> Preference:
    try:
        record: dict[str, Any] = json.loads(line)
        first, second = record["order"]
        return Preference(**{**record, "order": (first, second), "answers": dict(record["answers"])})
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            "{file}, line {line}: not a preference ({error}).",
            "Take the line out, or restore the file from a backup.",
            file=path,
            line=number,
            error=error,
        ) from error


def append_preference(path: Path, preference: Preference) -> None:
    """Append to the file; it is on the disk when this returns. Several processes may append at once."""
    add_line(path, asdict(preference), lasting=True)


def on_answers(preferences: Iterable[Preference], answers: dict[str, str], row: str) -> list[Preference]:
    """The preferences between exactly these answers to this test row.

    A new run under an old number may answer differently; preferences on the old answers do not apply to it.
    """
    return [preference for preference in preferences if preference.id == row and preference.answers == answers]


def count_preferences(preferences: Iterable[Preference], first: str, second: str) -> PreferenceCounts:
    """Wins, ties and the sign test of two runs."""
    winners = [preference.winner for preference in preferences]
    wins = [winners.count(first), winners.count(second)]
    return sign_test(wins[0], wins[1], len(winners) - sum(wins))


def sign_test(first: int, second: int, ties: int) -> PreferenceCounts:
    """The sign test of these numbers of wins."""
    from scipy.stats import binomtest  # half a second to import

    if not first + second:
        return PreferenceCounts(0, 0, ties, None, None, None, None)
    test = binomtest(second, first + second)
    low, high = test.proportion_ci(0.95, "exact")
    share = second / (first + second)
    return PreferenceCounts(first, second, ties, share, float(low), float(high), float(test.pvalue))
