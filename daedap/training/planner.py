"""Training plans, without torch: what is fitted on so many rows, how long it takes, and what to reduce to fit a budget.

profiling.py measures what a plan is made from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from daedap.i18n import translate

ENOUGH_DEV_ROWS = 100
"""Dev rows from which on a run fits rerank weights of its own, and may let its language model propose answers. As many
are used for both: more change nothing (docs/EXPERIMENTS.md)."""
_BI_ENCODER_ROWS = 5_000
"""Training rows from which on a bi-encoder is fitted; for fewer, sentence vectors rank as well without any training."""
_MAX_GROWTH = 1.1
"""A parent's index is extended, not fitted again, up to this many times the rows that it was fitted on."""
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
"""Cost of the bot's answer to a question, in forward passes of a row: samples, and scores of the candidates without
the question."""
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
        times = {"training": _minutes(self.seconds), "scores": _minutes(self.scoring)}
        lines = [translate(template, **asdict(self), used=round(self.fraction * self.rows), **times)]
        if self.budget is None:
            return lines
        if (requested := self.requested + self.scoring) > self.budget:
            template = "All rows, epochs and layers would take {requested}; within {budget}, this plan loses least."
            lines.append(translate(template, requested=_minutes(requested), budget=_minutes(self.budget)))
        if self.seconds + self.scoring > self.budget:
            lines.append(translate("That is more than the budget: training ends when the time is over."))
        return lines


def read_plan(recorded: Mapping[str, Any]) -> Plan:
    """The plan that a run was started with, from its state."""
    return Plan(**{"requested" if name == "wished" else name: value for name, value in recorded.items()})


def _minutes(seconds: float) -> str:
    return translate("{minutes:.1f} min", minutes=seconds / 60)


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
    choices = product(depths, lengths, _ROW_FRACTIONS)
    plans = [replace(request, layers=depth, epochs=length, fraction=share) for depth, length, share in choices]
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
    by_layers = np.interp(plan.layers / plan.blocks, *_LOSS_BY_LAYERS)
    return float(by_layers + np.interp(plan.epochs, *_LOSS_BY_EPOCHS) + np.interp(plan.fraction, *_LOSS_BY_ROWS))


def needs_bi_encoder(*, train: int, dev: int) -> bool:
    """Whether one is worth its time: only answers that the language model proposes or that are ranked depend on it."""
    return train >= _BI_ENCODER_ROWS and dev >= ENOUGH_DEV_ROWS


def extends_index(*, train: int, fitted: int) -> bool:
    """Whether so few of `train` rows are new that the parent's index, fitted on `fitted` rows, need not be refitted."""
    return train <= _MAX_GROWTH * fitted
