"""Two runs on the same test rows: what is clearly better, what worse, and where their answers differ most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daedap.judge.metrics import FloatArray, Tally, bootstrap, unique
from daedap.korean import comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from daedap.judge.evaluation import Row
    from daedap.judge.judged import Common

Verdict = Literal["better", "worse", "more", "less", "none"]
Both = tuple["Row", "Row"]
SYSTEMS = ("bot", "model")
"""Which of a run's systems is compared: the first of these that both runs have."""
FEW = 10
"""With fewer components an interval by resampling is far too narrow to call a difference clear."""
_SMALLER = frozenset({"bpc", "bland"})
"""Metrics of which less is better."""
_SOURCES = frozenset({"source_retrieved", "source_lesson", "source_generated", "source_fallback"})
_NEITHER = frozenset({"polite"}) | _SOURCES
"""Metrics of which neither more nor less is better: a bot is to speak as its owner does, from wherever."""
_BY_ITSELF = frozenset({"bpc", "bland", "polite", "ended"}) | _SOURCES
"""Metrics of a row that don't hang on which other rows are tested."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two runs on the same rows."""

    system: str
    """Whose scores they are: bot or model."""
    first: float
    second: float
    difference: float
    """Second less first."""
    low: float | None
    """95 % interval of the difference, by bootstrap over components; None where there is none to be had."""
    high: float | None
    n: int
    """Rows."""
    verdict: Verdict | None
    """Of the second run, where the interval leaves out 0: none is "no clear difference"; None without an interval."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One test question and what the two runs answered."""

    id: str
    question: str
    right: str
    """The written answer."""
    replies: tuple[str, str]
    places: tuple[float, float] | None
    """Of the written answer among the candidates, where both chose among the same."""
    bits: tuple[float, float] | None
    """Bits per character of the written answer."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        fields = {"id": self.id, "question": self.question, "right": self.right, "replies": list(self.replies)}
        return {**fields, "places": self.places, "bits_per_character": self.bits}


def differences(found: Common) -> dict[str, dict[str, Difference]]:
    """Slice ("all", and "seen" and "unseen" answers: so in both runs) → metric → difference."""
    seen = np.array([(mine.seen, other.seen) for mine, other in found.rows])
    slices: dict[str, NDArray[np.bool_]] = {"all": np.ones(len(seen), dtype=np.bool_)}
    slices |= {"seen": np.asarray(seen.all(axis=1)), "unseen": np.asarray(~seen.any(axis=1))}
    return {name: dict(_metrics(found, inside)) for name, inside in slices.items() if inside.any()}


def _metrics(found: Common, inside: NDArray[np.bool_]) -> Iterator[tuple[str, Difference]]:
    rows = [both for both, chosen in zip(found.rows, inside, strict=True) if chosen]
    groups = found.groups[inside]
    for metric in _shared(rows, found.same_test):
        system = next(name for name in SYSTEMS if any(_both_have(both, name, metric) for both in rows))
        yield metric, _difference(metric, system, _tallies(rows, system, metric), groups)
    if answered := _answered(rows):
        system = _system(rows)
        first, second = (unique([both[run].replies[system] for both in answered]).value for run in (0, 1))
        yield "unique", Difference(system, first, second, second - first, None, None, len(answered), None)


def _shared(rows: Sequence[Both], same_test: bool) -> list[str]:
    """Metrics that both runs have, of the first system that has each, and that can be compared."""
    measured = dict.fromkeys(
        metric
        for both in rows
        for system in SYSTEMS
        for metric in both[0].shares.get(system, {})
        if _both_have(both, system, metric)
    )
    return [metric for metric in measured if same_test or metric in _BY_ITSELF]


def _both_have(both: Both, system: str, metric: str) -> bool:
    """Whether it was measured on this row, in the same way, in both runs."""
    first, second = (row.shares.get(system, {}).get(metric) for row in both)
    return first is not None and second is not None and first[1] == second[1]


def _tallies(rows: Sequence[Both], system: str, metric: str) -> tuple[Tally, Tally]:
    """(rows,) each: of the first run and of the second; unmeasured in both where it is in one."""
    nothing = ((0.0, 0.0), (0.0, 0.0))
    shares = np.array(
        [[row.shares[system][metric] for row in both] if _both_have(both, system, metric) else nothing for both in rows]
    )
    return Tally(shares[:, 0, 0], shares[:, 0, 1]), Tally(shares[:, 1, 0], shares[:, 1, 1])


def _difference(metric: str, system: str, tallies: tuple[Tally, Tally], groups: NDArray[np.int64]) -> Difference:
    measured = tallies[0].denominators > 0
    first, second = (tally.numerators[measured] for tally in tallies)
    below, groups = tallies[0].denominators[measured], groups[measured]
    values = [float(above.sum() / below.sum()) for above in (first, second)]
    low, high = _interval(second - first, below, groups)
    verdict = None if low is None or high is None else _verdict(metric, low, high)
    return Difference(system, values[0], values[1], values[1] - values[0], low, high, len(below), verdict)


def _interval(above: FloatArray, below: FloatArray, groups: NDArray[np.int64]) -> tuple[float | None, float | None]:
    if len(np.unique(groups)) < FEW or not np.isfinite(above).all():
        return None, None
    found = bootstrap(above, below, groups)
    return found.low, found.high


def _verdict(metric: str, low: float, high: float) -> Verdict:
    if low <= 0 <= high:
        return "none"
    if metric in _NEITHER:
        return "more" if low > 0 else "less"
    return "better" if (low > 0) != (metric in _SMALLER) else "worse"


def answers(found: Common, asked: Mapping[str, str]) -> list[Answers]:
    """The questions that the runs answer differently: first those where the written answer's place differs most.

    Among equals, where its bits per character do. `asked` names each question by id, its conversation before it.
    """
    rows = _answered(found.rows)
    system = _system(rows) if rows else ""
    different = [both for both in rows if len({comparison_form(row.replies[system]) for row in both}) > 1]
    listed = [_side_by_side(both, system, asked, found.same_test) for both in different]
    return sorted(listed, key=_telling, reverse=True)


def answered(found: Common) -> int:
    """So many questions were answered by both runs."""
    return len(_answered(found.rows))


def _system(rows: Sequence[Both]) -> str:
    """Whose replies are shown: the bot's where both runs have them, else the model's."""
    return next((name for name in SYSTEMS if any(_both_replied(both, name) for both in rows)), SYSTEMS[-1])


def _answered(rows: Sequence[Both]) -> list[Both]:
    system = _system(rows)
    return [both for both in rows if _both_replied(both, system)]


def _both_replied(both: Both, system: str) -> bool:
    return all(system in row.replies for row in both)


def _side_by_side(both: Both, system: str, asked: Mapping[str, str], same_test: bool) -> Answers:
    mine, other = both
    reciprocal = _shares(both, "mrr") if same_test else None
    places = reciprocal and (1 / reciprocal[0], 1 / reciprocal[1])
    question = asked.get(mine.id, mine.question)
    replies = (mine.replies[system], other.replies[system])
    return Answers(mine.id, question, mine.answer, replies, places, _shares(both, "bpc"))


def _shares(both: Both, metric: str) -> tuple[float, float] | None:
    """The row's own ratio in each run; None where it was not measured, or is no number."""
    for system in SYSTEMS:
        if _both_have(both, system, metric):
            first, second = (above / below for above, below in (row.shares[system][metric] for row in both))
            return (first, second) if math.isfinite(first) and math.isfinite(second) else None
    return None


def _telling(answers: Answers) -> tuple[float, float, str]:
    place = abs(1 / answers.places[0] - 1 / answers.places[1]) if answers.places else 0.0
    bits = abs(answers.bits[0] - answers.bits[1]) if answers.bits else 0.0
    return place, bits, answers.id
