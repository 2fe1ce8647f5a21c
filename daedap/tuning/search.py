"""A search from a file and options: rows, base, time budget and size of a trial, the study, and running it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from daedap.config import FRESH, ModelOptions, ReadOptions, SplitOptions, TrainOptions, TuneOptions
from daedap.data.doctor import load
from daedap.data.split import Split, require_training_rows, sample_rows, split, write_split
from daedap.files import digest
from daedap.runs import Json
from daedap.tuning.objective import GROUP, WEIGHT, DevRows, split_dev
from daedap.tuning.result import SearchResult, search_result
from daedap.tuning.study import SearchSpace, TrialRunner, open_study, run_trials, space_around

if TYPE_CHECKING:
    from optuna import Study

    from daedap.training.planner import Plan
    from daedap.training.trial import TrialContext

_MACHINE_OPTIONS = frozenset({"base", "device", "precision", "cache_gb", "budget", "report_to", "torch_compile"})
"""Options that may differ between the workers of a study; the base is identified by its digest, not its name."""
_CALIBRATION_SECONDS = 2.0
"""Seconds of training to measure how long a trial takes."""
TARGET_TRIALS = 20
"""Trials that should fit into the time without pruning."""
_OVERHEAD = 2.0
"""Seconds of a trial that do not depend on its rows."""
_MIN_SHARE, _MIN_TRIAL_ROWS = 0.2, 2000
"""Share of the rows, or their number, from which on the number of epochs is searched too."""
_FEWEST_ROWS = 64
_FORWARD = 1 / 3
"""Time to score a row ÷ time to train on it."""


@dataclass(frozen=True)
class SearchTask:
    """The file, the options and the deadline of a search."""

    file: Path
    read_options: ReadOptions
    split_options: SplitOptions
    model_options: ModelOptions
    train_options: TrainOptions
    """With the number of epochs filled in."""
    epochs_set: bool
    """The user set the number of epochs."""
    tune_options: TuneOptions
    deadline: float
    """On the clock of `time.perf_counter`."""

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.perf_counter()


@dataclass(frozen=True)
class SearchSetup:
    """Everything that trials need."""

    split: Split
    context: TrialContext
    selection: DevRows
    comparison: DevRows


@dataclass(frozen=True)
class TrialSize:
    """The share of the training rows of a trial, and its number of epochs."""

    fraction: float
    epochs: int | None
    """None: as in the options, or searched."""


@dataclass(frozen=True)
class TimeBudget:
    """Seconds for the parts of a search."""

    search: float
    final_run: float
    default_training: float
    """A full training with the defaults, to compare the final run with; 0: there is no time for it."""


def divide_budget(plan: Plan, budget: float) -> TimeBudget:
    """At most half of the budget for the final run; from four times both trainings on, one for the defaults too."""
    final = min(1.1 * (plan.seconds + plan.scoring), budget / 2)
    defaults = plan.seconds if budget >= 4 * (2 * plan.seconds + plan.scoring) else 0.0
    return TimeBudget(budget - final - defaults, final, defaults)


def choose_trial_size(plan: Plan, seconds: float, trials: int, dev_rows: int, *, epochs_set: bool) -> TrialSize:
    """The largest trial of which `trials` fit into `seconds`; each is scored on `dev_rows`."""
    seconds_per_row = plan.seconds / (plan.rows * plan.epochs)
    steps = (seconds / trials - _OVERHEAD) / seconds_per_row - 2 * dev_rows * _FORWARD
    all_epochs = _rows_per_trial(steps, plan.epochs, dev_rows)
    if epochs_set or all_epochs >= min(_MIN_SHARE * plan.rows, _MIN_TRIAL_ROWS):
        return TrialSize(_fraction(all_epochs, plan), None)
    epochs = min(2, plan.epochs)
    return TrialSize(_fraction(_rows_per_trial(steps, epochs, dev_rows), plan), epochs)


def _rows_per_trial(steps: float, epochs: int, dev_rows: int) -> float:
    """Training rows, if the time is enough for `steps` rows in all; the dev rows are scored after each epoch."""
    return steps / epochs - dev_rows * _FORWARD


def _fraction(rows: float, plan: Plan) -> float:
    return round(min(1.0, max(rows, _FEWEST_ROWS) / plan.rows), 4)


def prepare_search(task: SearchTask, folder: Path) -> SearchSetup:
    """Read and split the file as `daedap train` does, load the base, and measure the speed of a training.

    `folder`: for scratch files. Raises DataError, BaseError and SettingsError.
    """
    from daedap.training.trial import prepare_trials  # torch takes seconds to import

    rows = split(load(task.file, task.read_options).pairs, task.split_options, seed=task.train_options.seed)
    require_training_rows(rows, task.file)
    selection, comparison = split_dev(rows.rows("dev"), rows.components_of("dev"))
    write_split(folder, rows)
    context = prepare_trials(folder, task.model_options, task.train_options, rows.rows("train"))
    plan = context.plan
    calibration_rows = min(plan.rows, max(64, _CALIBRATION_SECONDS * plan.rows * plan.epochs / plan.seconds))
    few = _subset(rows, calibration_rows / plan.rows, task.train_options.seed)
    write_split(folder, few)
    processed = round(len(few.rows("train")) + len(few.rows("dev")) * _FORWARD)
    calibrated = context.calibrated(task.model_options, task.train_options, processed)
    return SearchSetup(rows, calibrated, selection, comparison)


def open_task_study(task: SearchTask, setup: SearchSetup, budget: TimeBudget) -> AbstractContextManager[Study]:
    """The study of this task, new or existing; its default name is a digest of file, base and options."""
    signature = _signature(task, setup.context)
    sha = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]", "-", task.file.stem)
    options = task.tune_options
    name = options.study or f"{stem}-{sha[:8]}"
    dev_rows = len(setup.selection.pairs) + len(setup.comparison.pairs)
    trials = options.trials or TARGET_TRIALS
    size = choose_trial_size(setup.context.plan, budget.search, trials, dev_rows, epochs_set=task.epochs_set)
    return open_study(options.storage, options.runs / "studies" / name, name, signature, asdict(size))


def _signature(task: SearchTask, context: TrialContext) -> Json:
    """What must be the same for all workers of a study."""
    model_options, train_options = (
        {name: value for name, value in asdict(options).items() if name not in _MACHINE_OPTIONS}
        for options in (task.model_options, task.train_options)
    )
    signature = {
        "file": digest(task.file),
        "base": FRESH if task.model_options.base == FRESH else context.base.digest,
        "read": asdict(task.read_options),
        "split": asdict(task.split_options),
        "model": model_options,
        "train": {**train_options, "epochs_set": task.epochs_set},
        "score": [GROUP, WEIGHT],
    }
    as_stored: Json = json.loads(json.dumps(signature))
    return as_stored


def run_search(
    task: SearchTask, setup: SearchSetup, study: Study, budget: TimeBudget, *, more: bool = True
) -> tuple[SearchResult, SearchSpace]:
    """Run trials until only the time for the final run is left; without `more`, only read the study."""
    size, context = TrialSize(**study.user_attrs["scale"]), setup.context
    space = space_around(
        task.model_options,
        task.train_options,
        context.plan,
        context.method,
        context.learning_rate,
        epochs=not task.epochs_set and size.epochs is None,
    )
    rows = _subset(setup.split, size.fraction, task.train_options.seed)
    write_split(context.folder, rows)
    runner = TrialRunner(space, size.epochs, setup.selection, setup.comparison, context.train)
    options = task.tune_options
    reserved = budget.final_run + budget.default_training if options.finish else 0.0
    seed = None if options.storage else task.train_options.seed  # workers of one study must not draw the same trials
    if more:
        run_trials(study, runner, seconds=task.seconds_left - reserved, max_trials=options.trials, seed=seed)
    return search_result(study, len(rows.rows("train")), setup.comparison), space


def _subset(rows: Split, fraction: float, seed: int) -> Split:
    """The split with a share of its training rows; a smaller subset is contained in a larger one."""
    train = [row for row, name in enumerate(rows.assignments) if name == "train"]
    chosen = set(sample_rows(train, max(1, round(fraction * len(train))), seed))
    assignments = [
        "unused" if name == "train" and row not in chosen else name for row, name in enumerate(rows.assignments)
    ]
    return replace(rows, assignments=assignments)
