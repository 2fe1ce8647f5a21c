"""How much of a whole training a trial is, so that enough of them fit into the time.

The dev score of a search: bits per character of the answers, in which what the question contributes counts more.

Rows stand in groups of four with four different questions and answers, and every answer is scored after each of the
four questions. Of an answer A after its own question Q and those of its group, Q′:

    any    −log2 mean p(A | Q′): how surprising the answer is, whatever was asked
    gain   log2 p(A | Q) − log2 mean p(A | Q′): what it owes to its question; 0 for a model that ignores questions,
           2 bits at most (InfoNCE, van den Oord et al. 2018: a lower bound of the mutual information)
    score  Σ (any − 4 gain) ÷ Σ characters of the answers (lower is better)

With weight 1 this is BPC, in which the question is a tenth of all bits. The gain alone would take no notice of a model
that forgets how to write; Hits@1 calls each row right or wrong and throws away what lies between (docs/tuning.md). A
model that is sure and wrong pays for it in the gain's logarithm; more surprise at other questions earns it nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from daedap.errors import SettingsError
from daedap.evaluation.metrics import FloatArray, bootstrap, characters
from daedap.korean.text import comparison_form
from daedap.types import Pair

if TYPE_CHECKING:
    from daedap.evaluation.metrics import Interval
    from daedap.training.planner import Plan  # torch takes seconds to import

AIM = 20
"""Trials that the time should suffice for, if none of them is stopped early."""
_OVERHEAD = 2.0
"""Seconds that a trial takes besides its rows."""
_ENOUGH, _ENOUGH_ROWS = 0.2, 2000
"""Share of the rows, or their number, from which on it makes sense to search for the number of epochs, too."""
_FEWEST = 64
_FORWARD = 1 / 3
"""What it takes to score a row in relation to learning it."""


@dataclass(frozen=True)
class Scale:
    """The share of the rows that a trial learns, and how often."""

    fraction: float
    epochs: int | None
    """None: as often as the settings say."""


@dataclass(frozen=True)
class Times:
    """Seconds for the parts of a search."""

    search: float
    final: float
    """For the run in the end."""
    proof: float
    """For a whole training with the defaults, to compare with the run; 0: there is no time for that."""


def divide(plan: Plan, budget: float) -> Times:
    """Half of the budget at most goes into the run; where all is plenty, the defaults get a whole training, too."""
    whole = plan.seconds + plan.scoring
    final = min(1.1 * whole, budget / 2)
    proof = plan.seconds if budget >= 4 * (whole + plan.seconds) else 0.0
    return Times(budget - final - proof, final, proof)


def choose_scale(plan: Plan, seconds: float, trials: int, judged: int, *, epochs_told: bool) -> Scale:
    """The largest trial of which so many fit into these seconds. `judged`: dev rows that each is scored on."""
    each = plan.seconds / (plan.rows * plan.epochs)
    room = (seconds / trials - _OVERHEAD) / each - 2 * judged * _FORWARD
    many = _rows(room, plan.epochs, judged)
    if epochs_told or many >= min(_ENOUGH * plan.rows, _ENOUGH_ROWS):
        return Scale(_share(many, plan), None)
    few = min(2, plan.epochs)
    return Scale(_share(_rows(room, few, judged), plan), few)


def _rows(room: float, epochs: int, judged: int) -> float:
    """Rows that can be learned so often; after each epoch the dev rows are looked at, too."""
    return room / epochs - judged * _FORWARD


def _share(rows: float, plan: Plan) -> float:
    return round(min(1.0, max(rows, _FEWEST) / plan.rows), 4)


Scorer = Callable[[Sequence[Pair]], FloatArray]
"""Pairs to log2 p of each answer after its question, and its tokens: (pairs, 2)."""
GROUP = 4
WEIGHT = 4.0
"""Of the gain: more of it would make the score noisier, as the gain is known less exactly than BPC (docs/tuning.md)."""
_MOST = 256
"""Rows of each half: more make no trial clearly better, and take a larger part of its time."""
_LEAST = 2 * GROUP
_GLANCE = 64
"""Rows that are looked at after each epoch."""


@dataclass(frozen=True)
class Rows:
    """Dev rows, group after group."""

    pairs: Sequence[Pair]
    components: Sequence[str]

    @property
    def glance(self) -> Rows:
        """The first of them."""
        return Rows(self.pairs[:_GLANCE], self.components[:_GLANCE])


@dataclass(frozen=True)
class Marks:
    """What a model scores on rows: (rows,) each, in bits."""

    own: FloatArray
    """log2 p of each answer after its own question."""
    mean: FloatArray
    """log2 of its mean p after each question of its group."""
    characters: FloatArray

    @property
    def bits(self) -> FloatArray:
        """Each row's share of the score, before it is divided by the characters of all."""
        weighed: FloatArray = -self.mean - WEIGHT * (self.own - self.mean)
        return weighed

    @property
    def score(self) -> float:
        """Lower is better."""
        return float(self.bits.sum() / self.characters.sum())

    @property
    def bpc(self) -> float:
        """Bits per character of the answers after their own questions."""
        return float(-self.own.sum() / self.characters.sum())

    @property
    def gain(self) -> float:
        """Bits that an answer owes to its question, of 2 at most."""
        return float((self.own - self.mean).mean())


def halve(dev: Sequence[Pair], components: Sequence[str]) -> tuple[Rows, Rows]:
    """Dev rows to choose trials by, and others to compare the chosen one with the defaults: by components, at random.

    The best of many trials is also the luckiest one on the rows it was chosen by. Raises SettingsError when there are
    too few rows.
    """
    order = sorted(range(len(dev)), key=lambda row: (_die(components[row]), dev[row].id))
    halves = [[row for row in order if _die(components[row]) % 2 == side] for side in (0, 1)]
    choosing, comparing = (_grouped([dev[row] for row in half], [components[row] for row in half]) for half in halves)
    if min(len(choosing.pairs), len(comparing.pairs)) < _LEAST:
        raise SettingsError(
            "{rows} dev rows are too few to tell settings apart.",
            "Keep more apart: --dev-size 0.2, or add rows.",
            rows=len(dev),
        )
    return choosing, comparing


def mark(scorer: Scorer, rows: Rows) -> Marks:
    """Score a model on rows: each answer after the four questions of its group, each question read once."""
    groups = [rows.pairs[start : start + GROUP] for start in range(0, len(rows.pairs), GROUP)]
    crossed = [replace(asked, answer=pair.answer) for group in groups for asked in group for pair in group]
    log2 = scorer(crossed)[:, 0].reshape(-1, GROUP, GROUP)  # groups, questions, answers
    own = np.diagonal(log2, axis1=1, axis2=2).ravel()
    mean = np.logaddexp2.reduce(log2, axis=1).ravel() - np.log2(GROUP)
    return Marks(own, mean, characters([pair.answer for pair in rows.pairs]))


def difference(bits: FloatArray, others: FloatArray, rows: Rows) -> tuple[float, Interval]:
    """Score of one less that of another on the same rows, with its paired interval; below 0, the first is better."""
    size = characters([pair.answer for pair in rows.pairs])
    _, components = np.unique(rows.components, return_inverse=True)
    apart = np.asarray(bits) - np.asarray(others)
    return float(apart.sum() / size.sum()), bootstrap(apart, size, components)


def _die(component: str) -> int:
    return hashlib.blake2b(component.encode(), digest_size=4).digest()[0]


def _grouped(pairs: Sequence[Pair], components: Sequence[str]) -> Rows:
    """Rows in groups with no question and no answer twice; what fills no group is left out."""
    groups: list[list[int]] = []
    forms = [(comparison_form(pair.question), comparison_form(pair.answer)) for pair in pairs]
    for row, (question, answer) in enumerate(forms):
        free = (group for group in groups if len(group) < GROUP and _fits(forms, group, question, answer))
        group = next(free, None)
        if group is None:
            groups.append([row])
        else:
            group.append(row)
    chosen = [row for group in groups if len(group) == GROUP for row in group][:_MOST]
    return Rows([pairs[row] for row in chosen], [components[row] for row in chosen])


def _fits(forms: Sequence[tuple[str, str]], group: Sequence[int], question: str, answer: str) -> bool:
    return all(forms[row][0] != question and forms[row][1] != answer for row in group)
