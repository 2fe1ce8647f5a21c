"""How much of a whole training a trial is, so that enough of them fit into the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daedap.lm.plan import Plan  # torch takes seconds to import

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
