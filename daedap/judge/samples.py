"""Answers to show: those nearest to what a person wrote, and those farthest from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daedap.runs import Json


@dataclass(frozen=True, slots=True)
class Shown:
    """One test row to look at."""

    row: Json
    """A line of `evaluation/rows.jsonl`."""
    likeness: float
    """chrF of the bot's reply and the written answer, 0 to 100."""
    place: float | None
    """Place of the written answer among the candidates, counted from 1; ties at mean rank."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows to look at."""

    good: tuple[Shown, ...]
    """The likest first."""
    bad: tuple[Shown, ...]
    """The unlikest first."""


def choose(rows: Sequence[Json], count: int = 8) -> Samples:
    """At most `count` of each kind, no row twice; of equal likeness, the higher its right answer ranks the better."""
    shown = sorted(map(_shown, (row for row in rows if _speaker(row))), key=_goodness, reverse=True)
    count = min(count, len(shown) // 2) if len(shown) > 1 else len(shown)
    return Samples(tuple(shown[:count]), tuple(reversed(shown[count:][-count:])))


def _speaker(row: Json) -> str | None:
    """Who answers: the bot, or the model where it was scored alone."""
    return next((name for name in ("bot", "model") if name in row["replies"]), None)


def _shown(row: Json) -> Shown:
    import sacrebleu  # a second to import

    speaker = _speaker(row) or ""
    likeness = sacrebleu.sentence_chrf(row["replies"][speaker], [row["answer"]]).score
    reciprocal = row["shares"][speaker].get("mrr", [0, 1])[0]
    return Shown(row, float(likeness), 1 / reciprocal if reciprocal else None)


def _goodness(shown: Shown) -> tuple[float, float]:
    return shown.likeness, -(shown.place or 0.0)
