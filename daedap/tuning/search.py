"""What is searched for: the rows, the space around what was told, the study; and the search itself."""

from __future__ import annotations

import hashlib
import json
import re
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import daedap.tuning.study as studies
from daedap.config import FRESH, ModelOptions, TrainOptions, at_least_one
from daedap.data.doctor import load
from daedap.data.reader import ReadOptions
from daedap.data.split import Split, SplitOptions, require_training_rows, sample_rows, split, write_split
from daedap.errors import SettingsError
from daedap.files import digest, write_json
from daedap.runs import FOLDER, Json, Run
from daedap.tuning.objective import AIM, GROUP, WEIGHT, Rows, Scale, Times, choose_scale, halve
from daedap.tuning.result import Found, found_by
from daedap.tuning.space import SearchSpace, space_around
from daedap.tuning.study import open_study

if TYPE_CHECKING:
    from optuna import Study

    from daedap.training.planner import Plan
    from daedap.training.trial import TrialContext

_OF_THE_MACHINE = frozenset({"base", "device", "precision", "cache_gb", "budget", "report_to", "torch_compile"})
"""Options that may differ between those who work on one study, and a base's name, which its digest stands for."""

_TO_MEASURE = 2.0
"""Seconds of training to find out how long a trial takes."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How a search is carried on, and where it is kept."""

    trials: int | None = None
    """End after so many trials of the study. [default: as many as there is time for]"""
    study: str | None = None
    """Name of the study; the same one goes on. [default: from the file, the base and the options]"""
    storage: str | None = None
    """Database of studies that many machines share, like postgresql://user@host/name. [default: a file in runs]"""
    finish: bool = True
    """Train the run with the best settings in the end; machines that only help give --no-finish."""
    runs: Path = FOLDER
    """Folder of the runs; studies stand in its folder studies."""

    def __post_init__(self) -> None:
        at_least_one(self, "trials")
        if self.study and not re.fullmatch(r"[\w.-]*\w", self.study):
            raise SettingsError(
                "--study {name}: a name has letters, digits, dots and dashes only.", "Try my-study.", name=self.study
            )


@dataclass(frozen=True)
class Task:
    """What is searched for, from what, and until when."""

    file: Path
    read_options: ReadOptions
    split_options: SplitOptions
    model_options: ModelOptions
    train_options: TrainOptions
    """With its epochs, told or not."""
    epochs_told: bool
    how: TuneOptions
    until: float
    """By the clock that counts from the start of the machine, in seconds."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.perf_counter()


@dataclass(frozen=True)
class Stage:
    """Everything that trials need."""

    parts: Split
    ground: TrialContext
    choosing: Rows
    comparing: Rows


def set_up(task: Task, run: Run) -> Stage:
    """Read and part the rows as `daedap train` does, load the base, find out what a training takes."""
    from daedap.training.trial import prepare_trials  # torch takes seconds to import

    parts = split(load(task.file, task.read_options).pairs, task.split_options, seed=task.train_options.seed)
    require_training_rows(parts, task.file)
    choosing, comparing = halve(parts.rows("dev"), parts.components_of("dev"))
    write_split(run.folder, parts)
    write_json(run.folder / "settings.json", {"command": "tune", "evaluate": True})
    ground = prepare_trials(run, task.model_options, task.train_options, parts.rows("train"))
    few = _share(parts, _few(ground.plan) / ground.plan.rows, task.train_options.seed)
    write_split(run.folder, few)
    read = len(few.rows("train")) + len(few.rows("dev")) / 3
    return Stage(parts, ground.calibrated(task.model_options, task.train_options, round(read)), choosing, comparing)


def _few(plan: Plan) -> float:
    """Rows that a few seconds suffice for."""
    return min(plan.rows, max(64, _TO_MEASURE * plan.rows * plan.epochs / plan.seconds))


def open_for(task: Task, stage: Stage, times: Times) -> AbstractContextManager[Study]:
    """The study, new or old: its name tells the file, the base and the options apart."""
    asked = _asked(task, stage.ground)
    sha = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]", "-", task.file.stem)
    name = task.how.study or f"{stem}-{sha[:8]}"
    judged = len(stage.choosing.pairs) + len(stage.comparing.pairs)
    aim = task.how.trials or AIM
    scale = choose_scale(stage.ground.plan, times.search, aim, judged, epochs_told=task.epochs_told)
    return open_study(task.how.storage, task.how.runs / "studies" / name, name, asked, asdict(scale))


def _asked(task: Task, ground: TrialContext) -> Json:
    """What may not change within a study; machines differ in what is left out."""
    model_options = {name: value for name, value in asdict(task.model_options).items() if name not in _OF_THE_MACHINE}
    train_options = {name: value for name, value in asdict(task.train_options).items() if name not in _OF_THE_MACHINE}
    told = {
        "file": digest(task.file),
        "base": FRESH if task.model_options.base == FRESH else ground.base.digest,
        "layout": asdict(task.read_options),
        "splitting": asdict(task.split_options),
        "learner": model_options,
        "recipe": {**train_options, "epochs_told": task.epochs_told},
        "score": [GROUP, WEIGHT],
    }
    as_kept: Json = json.loads(json.dumps(told))
    return as_kept


def run_search(task: Task, stage: Stage, study: Study, times: Times, *, more: bool = True) -> tuple[Found, SearchSpace]:
    """Search until only the time for what comes afterwards is left; without `more`, only what was found before."""
    scale, ground = Scale(**study.user_attrs["scale"]), stage.ground
    epochs = not task.epochs_told and scale.epochs is None
    space = space_around(
        task.model_options, task.train_options, ground.plan, ground.method, ground.learning_rate, epochs=epochs
    )
    share = _share(stage.parts, scale.fraction, task.train_options.seed)
    write_split(ground.run.folder, share)
    trials = studies.Trials(space, scale.epochs, stage.choosing, stage.comparing, ground.train)
    seed = None if task.how.storage else task.train_options.seed
    seconds = task.left - times.final - times.proof if task.how.finish else task.left
    if more:
        studies.search(study, trials, seconds=seconds, most=task.how.trials, seed=seed)
    return found_by(study, len(share.rows("train")), stage.comparing), space


def _share(parts: Split, fraction: float, seed: int) -> Split:
    """A share of the training rows; a smaller one is part of a larger one."""
    rows = [row for row, side in enumerate(parts.assignments) if side == "train"]
    chosen = set(sample_rows(rows, max(1, round(fraction * len(rows))), seed))
    sides = ["unused" if side == "train" and row not in chosen else side for row, side in enumerate(parts.assignments)]
    return replace(parts, assignments=sides)
