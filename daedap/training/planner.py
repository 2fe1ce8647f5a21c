"""The plan: how long a training takes on this machine, and what to give up first when that is too long."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from daedap.i18n import translate
from daedap.model.device import Machine, best_of_n
from daedap.model.loss import AnswerLoss, Batch, collate
from daedap.model.prompt import Example, round_up
from daedap.model.trainable import SPLITTABLE, frozen_lower, unwrap_peft

if TYPE_CHECKING:
    from peft import PeftModel

_ROWS, _SEVERAL = 32, 4
_SHARES = (1, 2 / 3, 1 / 2, 1 / 3, 1 / 6)
_FRACTIONS = (1.0, 0.5, 0.25, 0.1)
_LOST_BY_LAYERS = ((1 / 6, 1 / 3, 1 / 2, 1), (0.455, 0.311, 0.225, 0.0))
_LOST_BY_EPOCHS = ((1, 3, 5), (0.377, 0.068, 0.0))
_LOST_BY_ROWS = ((0.1, 0.25, 0.5, 1), (0.805, 0.614, 0.390, 0.0))
"""Share of the layers, epochs, share of the rows: nats per token on the dev rows that they cost, each by itself, when
daedap-mini learns ChatbotData (docs/EXPERIMENTS.md)."""
_RANKED = 50
_REMEMBERS, _EACH, _MORE, _MANY = 5.0, 0.0029, 0.0006, 27_000
"""Seconds that the index, the encoder and the engine take, those for each row and for each of more rows than so many,
from which on the encoder takes no more steps; as on two cores."""
_SCORES = 20.0
"""Seconds that the scores take however few rows there are."""


class Costs(NamedTuple):
    """Seconds for each row on this machine."""

    step: float
    """Of a step of training, whatever is trained: the head, and what is done once."""
    trained: float
    """… and for each trained block."""
    frozen: float
    """Of each frozen block, once."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be learned, and how long it takes."""

    rows: int
    epochs: int
    layers: int
    blocks: int
    fraction: float = 1.0
    """Of the rows."""
    seconds: float = 0.0
    """What the training is expected to take."""
    scoring: float = 0.0
    """What comes after the training: the index, what goes together, the scores."""
    budget: float | None = None
    """Allowed, in seconds, for everything from the file to the scores."""
    wished: float = 0.0
    """What all rows, epochs and layers that were asked for would take."""

    @property
    def trained_layers(self) -> int | None:
        """None: all, and what lies below them too."""
        return None if self.layers == self.blocks else self.layers

    def seconds_left(self, spent: float) -> float:
        """For the steps themselves, when so many seconds of the budget are spent; endless without one."""
        return math.inf if self.budget is None else max(1.0, self.budget - spent - self.scoring)

    def lines(self) -> list[str]:
        """For a terminal."""
        told = (
            "{learned:,} of {rows:,} rows × {epochs} epochs, top {layers} of {blocks} layers: "
            "about {training} to learn, {scores} for the rest."
        )
        learned = round(self.fraction * self.rows)
        lines = [
            translate(told, **asdict(self), learned=learned, training=_time(self.seconds), scores=_time(self.scoring))
        ]
        if self.budget is not None and self.wished + self.scoring > self.budget:
            told = "Everything would take {wished}; in {budget}, this is what costs least."
            lines.append(translate(told, wished=_time(self.wished + self.scoring), budget=_time(self.budget)))
        if self.budget is not None and self.seconds + self.scoring > self.budget:
            lines.append(translate("That is still more than there is time for: training ends when the time is over."))
        return lines


def _time(seconds: float) -> str:
    return translate("{minutes:.1f} min", minutes=seconds / 60)


def measure_costs(
    model: PreTrainedModel | PeftModel, examples: Sequence[Example], machine: Machine, *, whole: bool = False
) -> Costs:
    """Try a few steps on rows of ordinary length with several blocks trained and with one; no weight is changed.

    Several are all of them, or a few where the others are frozen: more would only take memory. `whole`: all blocks will
    be trained, whatever it takes, so that one kind of step is enough.
    """
    batch = collate(_ordinary(examples), machine.device)
    blocks, rows = unwrap_peft(model).config.get_text_config().num_hidden_layers, len(batch.inputs)
    if whole or blocks == 1 or unwrap_peft(model).config.model_type not in SPLITTABLE:
        each = best_of_n(trial_step(AnswerLoss(model), batch, machine)) / rows / blocks
        return Costs(0.0, each, each / 3)  # two thirds of a step go backward
    several = blocks if isinstance(model, PreTrainedModel) else min(blocks, _SEVERAL)
    frozen = best_of_n(_forward(frozen_lower(unwrap_peft(model), blocks - 1), batch, machine)) / rows / (blocks - 1)
    one, more = (best_of_n(_top(model, batch, blocks - depth, machine)) / rows for depth in (1, several))
    trained = max(0.0, more - one) / (several - 1)
    return Costs(max(0.0, one - trained), trained, frozen)


def _top(model: PreTrainedModel | PeftModel, batch: Batch, lowest: int, machine: Machine) -> Callable[[], None]:
    """A step of the blocks from `lowest` on, over what those below say; of the whole model where that is block 0."""
    if not lowest:
        return trial_step(AnswerLoss(model), batch, machine)
    with torch.no_grad():
        states = frozen_lower(unwrap_peft(model), lowest)(batch.inputs)
    above = Batch(states, batch.row, batch.position, batch.label)
    return trial_step(AnswerLoss(model, first_block=lowest), above, machine)


def choose_plan(costs: Costs, wish: Plan, *, layers: int | None, epochs: int | None) -> Plan:
    """The best plan that fits into the wish's budget; the cheapest when none does; the wish itself without a budget.

    `layers` and `epochs`, where the user has told them, are not changed. What is given up is what costs the least, as
    it was measured.
    """
    wished = _seconds(costs, wish)
    wish = replace(wish, seconds=wished, wished=wished)
    if wish.budget is None:
        return wish
    depths = [layers] if layers else sorted({math.ceil(wish.blocks * share) for share in _SHARES})
    lengths = [epochs] if epochs else range(1, wish.epochs + 1)
    plans = [
        replace(wish, layers=depth, epochs=length, fraction=fraction)
        for depth, length, fraction in product(depths, lengths, _FRACTIONS)
    ]
    timed = [replace(plan, seconds=_seconds(costs, plan)) for plan in plans]
    fitting = [plan for plan in timed if plan.seconds + wish.scoring <= wish.budget]
    return min(fitting, key=_loss) if fitting else min(timed, key=lambda plan: plan.seconds)


def scoring_seconds(costs: Costs, blocks: int, rows: int) -> float:
    """Of two models: each answer after its question and after another one, and 20 candidates of the ranked rows."""
    read = 2 * (2 * rows + 20 * min(rows, _RANKED))
    return _SCORES + read * blocks * costs.frozen if rows else 0.0


def indexing_seconds(rows: int) -> float:
    """What the bot needs to know besides the model, of so many training rows."""
    return _REMEMBERS + _EACH * min(rows, _MANY) + _MORE * max(0, rows - _MANY)


def _seconds(costs: Costs, plan: Plan) -> float:
    """Steps of all epochs, and the frozen blocks once."""
    step = costs.step + plan.layers * costs.trained
    return plan.fraction * plan.rows * (plan.epochs * step + (plan.blocks - plan.layers) * costs.frozen)


def _loss(plan: Plan) -> float:
    """Nats per token that a plan costs against the best one."""
    depth = plan.layers / plan.blocks
    return float(
        np.interp(depth, *_LOST_BY_LAYERS)
        + np.interp(plan.epochs, *_LOST_BY_EPOCHS)
        + np.interp(plan.fraction, *_LOST_BY_ROWS)
    )


def _ordinary(examples: Sequence[Example]) -> list[Example]:
    """Rows of mean length, as batches fill them up."""
    rows = sorted(examples, key=lambda example: len(example.ids))
    lengths = [round_up(len(row.ids)) for row in rows]
    middle = bisect_left(lengths, sum(lengths) / len(lengths))
    first = max(0, min(middle - _ROWS // 2, len(rows) - _ROWS))
    return rows[first : first + _ROWS]


def trial_step(loss: AnswerLoss, batch: Batch, machine: Machine) -> Callable[[], None]:
    """A whole step of training, optimizer included, with a learning rate of 0: no weight is changed."""
    weights = [weight for weight in loss.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, fused=True)

    def work() -> None:
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
            loss(batch).mean().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return work


def _forward(lower: nn.Module, batch: Batch, machine: Machine) -> Callable[[], None]:
    @torch.inference_mode()
    def work() -> None:
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
            lower(batch.inputs)

    return work
