"""Trials of a hyperparameter search: options to a model, trained like a run of `daedap train`, in a scratch run."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from daedap.config import ModelOptions, TrainOptions
from daedap.data.split import RunRows
from daedap.model.base import Base
from daedap.model.device import Machine, choose_machine
from daedap.model.language_model import TorchModel
from daedap.training.finetune import (
    TrainingInputs,
    choose_base,
    default_rate,
    make_plan,
    method_of,
    setup_training,
    tokenize,
)
from daedap.training.planner import Plan, indexing_seconds
from daedap.types import Pair

_log = logging.getLogger("daedap")
EpochCallback = Callable[[int, TorchModel], None]
"""Called after each epoch with its number and the current model; an exception ends the trial."""


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a search share: base, machine, and the time that training takes."""

    folder: Path
    """A scratch folder with the rows of the trials, beside the other runs so that they share the activation cache."""
    base: Base
    machine: Machine
    plan: Plan
    """The plan of a training on all rows with the initial options."""
    method: str
    """lora or full."""
    learning_rate: float
    """The learning rate of the initial options."""
    slowdown: float = 1.0
    """Measured time of a training divided by its planned time, at least 1."""

    def calibrated(self, model_options: ModelOptions, train_options: TrainOptions, rows: int) -> TrialContext:
        """Train one epoch on the `rows` rows in `folder` and return a context with the measured `slowdown`."""
        plan, started = self.plan, time.perf_counter()
        self.train(model_options, replace(train_options, num_train_epochs=1), lambda epoch, model: None)
        slowdown = max(1.0, (time.perf_counter() - started) * plan.rows * plan.epochs / (rows * plan.seconds))
        return replace(self, slowdown=slowdown, plan=replace(plan, seconds=slowdown * plan.seconds))

    def expected_plan(self, model_options: ModelOptions, train_options: TrainOptions, train: Sequence[Pair]) -> Plan:
        """The plan of a training on `train` with these options and no budget."""
        inputs = _inputs(self.base, model_options, train_options, train, [])
        plan = _plan(self.folder, inputs, self.machine)
        return replace(plan, seconds=self.slowdown * plan.seconds)

    def train(
        self, model_options: ModelOptions, train_options: TrainOptions, on_epoch_end: EpochCallback
    ) -> TorchModel:
        """A model trained on the rows in the scratch folder, with the weights that `daedap train` would keep.

        Raises SettingsError when the loss is NaN, and whatever `on_epoch_end` raises.
        """
        rows = RunRows(self.folder)
        inputs = _inputs(self.base, model_options, train_options, rows["train"], rows["dev"])
        plan = replace(
            self.plan, layers=model_options.layers or self.plan.layers, epochs=train_options.epochs, fraction=1.0
        )
        machine = replace(self.machine, compiled=False)  # torch.compile takes as long as a trial
        with _warnings_only():
            setup = setup_training(inputs, machine, plan, self.folder)
        model, prompt, trainer = setup.trainer.task.model, setup.prompt, setup.trainer
        torch_model = TorchModel(model, prompt, prompt.max_length, machine.device, machine.precision)  # type: ignore[arg-type]
        trainer.resumable, trainer.on_epoch_end = False, lambda epoch: on_epoch_end(epoch, torch_model)
        trainer.run()
        return torch_model


def prepare_trials(
    folder: Path, model_options: ModelOptions, train_options: TrainOptions, train: Sequence[Pair]
) -> TrialContext:
    """Load the base, choose device and precision, and time a few steps. `folder` holds the rows."""
    base = choose_base(model_options, train_options, train)
    width = base.model.config.get_text_config().hidden_size
    machine = choose_machine(model_options.device, model_options.precision, width)
    inputs = _inputs(base, model_options, train_options, train, [])
    plan, rate = _plan(folder, inputs, machine), inputs.train_options.learning_rate
    return TrialContext(folder, base, machine, plan, method_of(model_options, base), rate or 0.0)


def _inputs(
    base: Base, model_options: ModelOptions, train_options: TrainOptions, train: Sequence[Pair], dev: Sequence[Pair]
) -> TrainingInputs:
    """The inputs of a training, which changes its base: a copy, as loading it again takes seconds."""
    examples = tokenize(base.prompt(model_options.max_length), train, dev, [])
    rate = train_options.learning_rate or default_rate(model_options, base)
    options = replace(train_options, budget=None, learning_rate=rate)
    base = replace(base, model=copy.deepcopy(base.model))
    return TrainingInputs(base=base, model_options=model_options, train_options=options, examples=examples)


def _plan(folder: Path, inputs: TrainingInputs, machine: Machine) -> Plan:
    rows = RunRows(folder)
    indexing = indexing_seconds(len(inputs.examples.train), dev_rows=len(rows["dev"]))
    return make_plan(inputs, machine, scored=len(rows["test"]), indexing=indexing)


@contextmanager
def _warnings_only() -> Iterator[None]:
    """Suppress the log messages of setting up a training."""
    level = _log.level
    _log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _log.setLevel(level)
