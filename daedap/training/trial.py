"""One trial of a search: settings → a model, trained as `daedap train` would train it, on the rows of a scratch run."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from daedap.config import ModelOptions, TrainOptions
from daedap.files import write_json
from daedap.model.base import Base
from daedap.model.device import Machine, choose_device, choose_precision, describe_machine
from daedap.model.language_model import TorchModel
from daedap.runs import Run
from daedap.training.finetune import begin, choose_base, default_rate, method_of, plan_for, render
from daedap.training.planner import Plan
from daedap.types import Pair

_log = logging.getLogger("daedap")
DevEval = Callable[[int, TorchModel], None]
"""Told each epoch as it ends, with the model as it is then; what it raises ends the trial."""


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a process have in common: they start from the same weights and learn on the same machine."""

    run: Run
    """A scratch folder beside the runs, so that trials find the activation cache of all runs; its data is learned."""
    base: Base
    machine: Machine
    plan: Plan
    """What the whole training takes with the settings that the search starts from."""
    method: str
    """lora or full."""
    learning_rate: float
    """The one that the search starts from."""
    slowdown: float = 1.0
    """How much longer real steps take than those few that a plan is made from."""

    def calibrated(self, model_options: ModelOptions, train_options: TrainOptions, rows: int) -> TrialContext:
        """The same, after it has been seen how long the scratch run's few rows take."""
        plan, started = self.plan, time.perf_counter()
        self.train(model_options, replace(train_options, num_train_epochs=1), lambda epoch, speaker: None)
        slowdown = max(1.0, (time.perf_counter() - started) * plan.rows * plan.epochs / (rows * plan.seconds))
        return replace(self, slowdown=slowdown, plan=replace(plan, seconds=slowdown * plan.seconds))

    def expected_plan(self, model_options: ModelOptions, train_options: TrainOptions, train: Sequence[Pair]) -> Plan:
        """How long the whole training takes with these settings, and what comes after it."""
        plan = _expected(self.run, self._untouched(), model_options, train_options, train, self.machine)
        return replace(plan, seconds=self.slowdown * plan.seconds)

    def train(self, model_options: ModelOptions, train_options: TrainOptions, watch: DevEval) -> TorchModel:
        """A model trained on the scratch run's rows, with the weights that `daedap train` would keep.

        Raises SettingsError when the loss is no longer a number, and whatever `watch` raises.
        """
        base = self._untouched()
        plan = replace(
            self.plan, layers=model_options.layers or self.plan.layers, epochs=train_options.epochs, fraction=1.0
        )
        settings = {"learner": asdict(model_options), "recipe": {**asdict(train_options), "budget": None}}
        machine = replace(self.machine, compiled=False)  # compiling takes as long as a trial
        write_json(self.run.folder / "settings.json", {**settings, "plan": asdict(plan), "machine": asdict(machine)})
        with _silence():
            begun = begin(self.run, base)
        model, prompt, fitting = begun.fitting.task.model, begun.prompt, begun.fitting
        speaker = TorchModel(model, prompt, prompt.max_length, machine.device, machine.precision)  # type: ignore[arg-type]
        fitting.resumable, fitting.watch = False, lambda epoch: watch(epoch, speaker)
        fitting.run()
        return speaker

    def _untouched(self) -> Base:
        """The base in memory, copied: loading and testing it again takes seconds."""
        return replace(self.base, model=copy.deepcopy(self.base.model))


def prepare_trials(
    run: Run, model_options: ModelOptions, train_options: TrainOptions, train: Sequence[Pair]
) -> TrialContext:
    """Load the base, probe the machine, and try a few steps. The run holds settings (`evaluate`) and the test rows."""
    base = choose_base(model_options, train_options, train)
    device, width = choose_device(model_options.device), base.model.config.get_text_config().hidden_size
    machine = describe_machine(device, choose_precision(model_options.precision, width, device))
    tried = replace(base, model=copy.deepcopy(base.model))
    plan = _expected(run, tried, model_options, train_options, train, machine)
    rate = train_options.learning_rate or default_rate(model_options, base)
    return TrialContext(run, base, machine, plan, method_of(model_options, base), rate)


def _expected(
    run: Run,
    base: Base,
    model_options: ModelOptions,
    train_options: TrainOptions,
    train: Sequence[Pair],
    machine: Machine,
) -> Plan:
    examples = render(base.prompt(model_options.max_length), train, [], [])
    return plan_for(run, base, model_options, replace(train_options, budget=None), examples, machine)


@contextmanager
def _silence() -> Iterator[None]:
    """A trial's plan is no news: only warnings pass."""
    level = _log.level
    _log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _log.setLevel(level)
