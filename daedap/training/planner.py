"""Training plans: the time that a training takes on this machine, and what to reduce to fit it into a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from daedap.i18n import translate
from daedap.model.device import Machine, best_of_n
from daedap.model.loss import AnswerLoss, Batch, collate, cross_entropy_in_chunks
from daedap.model.prompt import Example, round_up
from daedap.model.trainable import SPLITTABLE, frozen_lower, unwrap_peft
from daedap.retrieval.fitting import ENOUGH_DEV_ROWS, needs_bi_encoder

if TYPE_CHECKING:
    from peft import PeftModel

_TRIAL_ROWS, _TRIAL_BLOCKS = 32, 4
_LAYER_FRACTIONS = (1, 2 / 3, 1 / 2, 1 / 3, 1 / 6)
_ROW_FRACTIONS = (1.0, 0.5, 0.25, 0.1)
_LOSS_BY_LAYERS = ((1 / 6, 1 / 3, 1 / 2, 1), (0.455, 0.311, 0.225, 0.0))
_LOSS_BY_EPOCHS = ((1, 3, 5), (0.377, 0.068, 0.0))
_LOSS_BY_ROWS = ((0.1, 0.25, 0.5, 1), (0.805, 0.614, 0.390, 0.0))
"""Fraction of the layers, epochs, fraction of the rows → the increase in dev loss, nats per token, each measured by
itself with daedap-mini on ChatbotData (docs/EXPERIMENTS.md)."""
_LIKELIHOOD_ROWS, _RANKED_ROWS, _CANDIDATES = 96, 32, 20
"""Test rows that the evaluation after training scores, those among them whose candidates are ranked and that are
answered (evaluation/evaluate_run.py), and the candidates of each."""
_RANKER_PAIRS = 2000
"""Pairs that the language model scores to fit the rerank weights (retrieval/rerank.py)."""
_CANDIDATE_SHARE = 0.6
"""Share of a row's tokens that a candidate adds: questions are encoded once for all their candidates."""
_BOT_ROWS = 20
"""Forward passes of a row that cost as much as the bot's part of a question: samples, and its candidates without it."""
_ENCODER_ROWS = 27_000
"""Training rows from which on fitting a bi-encoder takes no more steps."""
_INDEX_SECONDS, _SECONDS_PER_ROW, _SECONDS_PER_ENCODER_ROW = 3.5, 0.003, 0.003
_EXTENDED_SECONDS, _SECONDS_PER_KNOWN_ROW = 8.0, 0.0008
_EVALUATION_SECONDS, _SECONDS_PER_ANSWER = 2.0, 0.4
"""What does not depend on the model, in seconds on two cores (bench/plan_accuracy.py). Engine and index: fixed, per
row, and per row that a bi-encoder is fitted on; where a parent's index is extended, fixed and per row. Evaluation:
fixed, and per question that the bot answers with the language model's help."""


class Costs(NamedTuple):
    """Seconds per row on this machine."""

    step: float
    """A training step without blocks: head and fixed costs."""
    trained: float
    """A training step, per trained block."""
    frozen: float
    """One forward pass, per frozen block."""
    head: float = 0.0
    """The softmax over the whole vocabulary at a row's labels, in a forward pass; part of the others where 0."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rows, epochs and layers of a training, and its expected time."""

    rows: int
    epochs: int
    layers: int
    blocks: int
    fraction: float = 1.0
    """Share of the rows that is used."""
    seconds: float = 0.0
    """Expected time of training."""
    scoring: float = 0.0
    """Expected time of all that follows: index, encoder, engine, evaluation."""
    budget: float | None = None
    """Seconds from reading the file to the end of the evaluation; None: unlimited."""
    requested: float = 0.0
    """Expected time of training with all rows, epochs and layers that were requested."""

    @property
    def trained_layers(self) -> int | None:
        """The argument `layers` of with_lora and train_in_full: None for all blocks and the embeddings."""
        return None if self.layers == self.blocks else self.layers

    def seconds_left(self, spent: float) -> float:
        """Seconds left for training when `spent` seconds of the budget are over; infinite without a budget."""
        return math.inf if self.budget is None else max(1.0, self.budget - spent - self.scoring)

    def lines(self) -> list[str]:
        """A description for the terminal."""
        template = (
            "{used:,} of {rows:,} rows × {epochs} epochs, top {layers} of {blocks} layers: "
            "about {training} for training, {scores} for the rest."
        )
        used = round(self.fraction * self.rows)
        lines = [
            translate(
                template,
                **asdict(self),
                used=used,
                training=_minutes(self.seconds),
                scores=_minutes(self.scoring),
            )
        ]
        if self.budget is not None and (requested := self.requested + self.scoring) > self.budget:
            template = "All rows, epochs and layers would take {requested}; within {budget}, this plan loses least."
            lines.append(translate(template, requested=_minutes(requested), budget=_minutes(self.budget)))
        if self.budget is not None and self.seconds + self.scoring > self.budget:
            lines.append(translate("That is more than the budget: training ends when the time is over."))
        return lines


def read_plan(recorded: Mapping[str, Any]) -> Plan:
    """The plan that a run was started with, from its state."""
    return Plan(**{"requested" if name == "wished" else name: value for name, value in recorded.items()})


def _minutes(seconds: float) -> str:
    return translate("{minutes:.1f} min", minutes=seconds / 60)


def measure_costs(
    model: PreTrainedModel | PeftModel,
    examples: Sequence[Example],
    machine: Machine,
    *,
    all_layers_trained: bool = False,
) -> Costs:
    """Time training steps on rows of average length, with several trained blocks and with one; no weight is changed.

    Several: all blocks in full fine-tuning, else at most four, to save memory. `all_layers_trained`: whatever is
    measured, so that one kind of step is enough.
    """
    batch = collate(_average_rows(examples), machine.device)
    times = 1 if len(examples) <= 2 * _TRIAL_ROWS else 5  # measuring must not take longer than a short training
    blocks, rows = unwrap_peft(model).config.get_text_config().num_hidden_layers, len(batch.inputs)
    if all_layers_trained or blocks == 1 or unwrap_peft(model).config.model_type not in SPLITTABLE:
        each = best_of_n(trial_step(AnswerLoss(model), batch, machine), times) / rows / blocks
        return Costs(0.0, each, each / 3)  # the backward pass takes two thirds
    several = blocks if isinstance(model, PreTrainedModel) else min(blocks, _TRIAL_BLOCKS)
    frozen = best_of_n(_forward(frozen_lower(unwrap_peft(model), blocks - 1), batch, machine)) / rows / (blocks - 1)
    one, more = (best_of_n(_upper_step(model, batch, blocks - depth, machine)) / rows for depth in (1, several))
    trained = max(0.0, more - one) / (several - 1)
    head = best_of_n(_head(unwrap_peft(model), batch, machine)) / rows
    return Costs(max(0.0, one - trained), trained, frozen, head)


def _upper_step(model: PreTrainedModel | PeftModel, batch: Batch, lowest: int, machine: Machine) -> Callable[[], None]:
    """A training step of the blocks from `lowest` on, given the hidden states below; of the whole model for block 0."""
    if not lowest:
        return trial_step(AnswerLoss(model), batch, machine)
    with torch.no_grad():
        states = frozen_lower(unwrap_peft(model), lowest)(batch.inputs)
    upper = Batch(states, batch.row, batch.position, batch.label)
    return trial_step(AnswerLoss(model, first_block=lowest), upper, machine)


def choose_plan(costs: Costs, request: Plan, *, layers: int | None, epochs: int | None) -> Plan:
    """The plan with the lowest expected dev loss within the budget, else the fastest one; `request` without a budget.

    `layers` and `epochs` set by the user are kept.
    """
    requested = _seconds(costs, request)
    request = replace(request, seconds=requested, requested=requested)
    if request.budget is None:
        return request
    depths = [layers] if layers else sorted({math.ceil(request.blocks * share) for share in _LAYER_FRACTIONS})
    lengths = [epochs] if epochs else range(1, request.epochs + 1)
    plans = [
        replace(request, layers=depth, epochs=length, fraction=fraction)
        for depth, length, fraction in product(depths, lengths, _ROW_FRACTIONS)
    ]
    timed = [replace(plan, seconds=_seconds(costs, plan)) for plan in plans]
    within = [plan for plan in timed if plan.seconds + request.scoring <= request.budget]
    return min(within, key=_expected_loss) if within else min(timed, key=lambda plan: plan.seconds)


def scoring_seconds(costs: Costs, blocks: int, rows: int, *, models: int = 2) -> float:
    """Expected seconds of the evaluation of this many test rows, and of fitting the rerank weights.

    `models`: language models that are scored: the run's and its base, without the base where its scores are known.
    Each scores an answer given its question and given another one, and the candidates of the ranked rows.
    """
    if not rows:
        return 0.0
    scored, ranked = min(rows, _LIKELIHOOD_ROWS), min(rows, _RANKED_ROWS)
    row, candidate = (share * blocks * costs.frozen + costs.head for share in (1.0, _CANDIDATE_SHARE))
    by_models = models * (2 * scored * row + _CANDIDATES * ranked * candidate)
    if rows < ENOUGH_DEV_ROWS:  # presumably too few dev rows, too: the language model is not used for answers
        return _EVALUATION_SECONDS + by_models
    by_bot = ranked * (_SECONDS_PER_ANSWER + _BOT_ROWS * row)
    return _EVALUATION_SECONDS + by_models + by_bot + _RANKER_PAIRS * candidate


def indexing_seconds(rows: int, *, dev_rows: int, extended: bool = False) -> float:
    """Expected seconds of engine and index for this many training rows; `extended`: a parent's index is extended."""
    if extended:
        return _EXTENDED_SECONDS + _SECONDS_PER_KNOWN_ROW * rows
    seconds = _INDEX_SECONDS + _SECONDS_PER_ROW * rows
    if needs_bi_encoder(train=rows, dev=dev_rows):
        seconds += _SECONDS_PER_ENCODER_ROW * min(rows, _ENCODER_ROWS)
    return seconds


def _seconds(costs: Costs, plan: Plan) -> float:
    """Expected time of training: the steps of all epochs, and the frozen blocks once."""
    step = costs.step + plan.layers * costs.trained
    return plan.fraction * plan.rows * (plan.epochs * step + (plan.blocks - plan.layers) * costs.frozen)


def _expected_loss(plan: Plan) -> float:
    """Expected increase in dev loss over the full plan, nats per token."""
    depth = plan.layers / plan.blocks
    return float(
        np.interp(depth, *_LOSS_BY_LAYERS)
        + np.interp(plan.epochs, *_LOSS_BY_EPOCHS)
        + np.interp(plan.fraction, *_LOSS_BY_ROWS)
    )


def _average_rows(examples: Sequence[Example]) -> list[Example]:
    """Up to 32 rows of average padded length."""
    rows = sorted(examples, key=lambda example: len(example.ids))
    lengths = [round_up(len(row.ids)) for row in rows]
    middle = bisect_left(lengths, sum(lengths) / len(lengths))
    first = max(0, min(middle - _TRIAL_ROWS // 2, len(rows) - _TRIAL_ROWS))
    return rows[first : first + _TRIAL_ROWS]


def trial_step(loss: AnswerLoss, batch: Batch, machine: Machine) -> Callable[[], None]:
    """A function that runs a training step, optimizer included, with a learning rate of 0."""
    weights = [weight for weight in loss.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, fused=True)

    def work() -> None:
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
            loss(batch).mean().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return work


def _head(model: PreTrainedModel, batch: Batch, machine: Machine) -> Callable[[], None]:
    """The loss of a batch by the head alone."""
    head = cast("nn.Linear", model.get_output_embeddings())
    states = torch.zeros(len(batch.label), head.in_features, device=machine.device)

    @torch.inference_mode()
    def work() -> None:
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
            cross_entropy_in_chunks(head, states, torch.arange(len(states), device=machine.device), batch.label)

    return work


def _forward(lower: nn.Module, batch: Batch, machine: Machine) -> Callable[[], None]:
    @torch.inference_mode()
    def work() -> None:
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
            lower(batch.inputs)

    return work
