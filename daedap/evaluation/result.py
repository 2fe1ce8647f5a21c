"""Scores as lines of plain text, aligned although a Hangul letter is two columns wide.

The outcome of an evaluation, for people (a table), for programs (JSON) and for comparing runs (rows).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import daedap.evaluation.robustness as disturbances
from daedap.evaluation.tables import (
    draw,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daedap.evaluation.metrics import Score
    from daedap.evaluation.robustness import Effect, Paraphrased
    from daedap.types import Evidence


@dataclass(frozen=True, slots=True)
class Sample:
    """One test question and what everybody answered."""

    question: str
    answer: str
    seen: bool
    """The answer also occurs in the training pairs."""
    replies: Mapping[str, str]
    """System → its reply."""
    evidence: Evidence
    """The nearest known question."""


@dataclass(frozen=True, slots=True)
class Row:
    """One test pair's share of every score: what a paired comparison of two runs needs."""

    id: str
    component: int | str
    label: str
    seen: bool
    question: str
    answer: str
    replies: Mapping[str, str]
    """System → its reply; empty where the pair was not asked."""
    shares: Mapping[str, Mapping[str, tuple[float, float]]]
    """System → metric → (numerator, denominator); a metric that wasn't measured on this pair is left out."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        cleaned: dict[str, Any] = _clean(asdict(self))
        return cleaned

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Row:
        """What `to_json` gave; its nulls are numbers that were none. Raises KeyError, TypeError and ValueError."""
        shares = {
            system: {metric: (_number(above), _number(below)) for metric, (above, below) in found.items()}
            for system, found in record["shares"].items()
        }
        return cls(**{**record, "shares": shares})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of the systems under test, with their baselines beside them."""

    pairs: int
    components: int
    candidates: int
    """How many answers each ranking chooses from: 20, fewer in a small test set."""
    chance: Mapping[str, float]
    """What blind guessing scores in `hits_at_1`, `recall_at_5`, `mrr` and `backward_hits_at_1`."""
    scores: Mapping[str, Mapping[str, Mapping[str, Score]]]
    """System → slice ("all", "seen", "unseen", "label:…") → metric → score."""
    samples: tuple[Sample, ...]
    rows: tuple[Row, ...]
    """In the order of the test pairs; not part of `to_json`."""
    disturbed: tuple[Effect, ...] = ()
    """What disturbing the questions does to the bot, where that was measured."""
    paraphrases: Paraphrased | None = None
    """What the bot replied to paraphrases, where there were any."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; a value that is not a number becomes null."""
        fields = ("pairs", "components", "candidates", "chance")
        document = {name: getattr(self, name) for name in fields}
        scores = {
            system: {name: {metric: asdict(score) for metric, score in found.items()} for name, found in slices.items()}
            for system, slices in self.scores.items()
        }
        document |= {"scores": scores, "samples": [asdict(sample) for sample in self.samples]}
        if self.disturbed:
            document["disturbed"] = disturbances.to_json(self.disturbed)
        if self.paraphrases:
            document["paraphrases"] = self.paraphrases.to_json()
        cleaned: dict[str, Any] = _clean(document)
        return cleaned

    def lines(self) -> list[str]:
        """Lines for a terminal: one block for each slice, metrics down, systems across; then the bot's other tests."""
        lines = draw(self.scores, self.chance, self.candidates)
        if self.disturbed:
            lines += ["", *disturbances.lines(self.disturbed, self.candidates)]
        return [*lines, "", *self.paraphrases.lines()] if self.paraphrases else lines


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
