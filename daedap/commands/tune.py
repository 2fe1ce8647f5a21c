"""`daedap tune`: a search for better settings within a time budget, then a run with the best ones."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import daedap.runs as store
from daedap.commands.train import STARTER_EPOCHS, RunOptions, train
from daedap.config import ModelOptions, TrainOptions
from daedap.data.reader import ReadOptions
from daedap.data.split import SplitOptions, write_split
from daedap.files import storage, write_text
from daedap.i18n import tell, translate
from daedap.retrieval.small_talk import STARTER
from daedap.runs import Run
from daedap.tuning.objective import Times, divide, mark
from daedap.tuning.result import Against, Found, Tuned, against, page
from daedap.tuning.search import Stage, Task, TuneOptions, open_for, run_search, set_up
from daedap.tuning.space import SearchSpace
from daedap.tuning.study import need_optuna

if TYPE_CHECKING:
    from optuna import Study

    from daedap.training.planner import Plan

_HOUR = 3600.0
_STALE = 60.0
"""Seconds after which a scratch folder that nobody holds is thrown away."""


@dataclass(frozen=True)
class _Ended:
    """A search that is over, and what it was about."""

    task: Task
    stage: Stage
    study: Study
    times: Times
    found: Found
    space: SearchSpace


def tune(
    file: Path | None = None,
    *,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    split_options: Annotated[SplitOptions, Parameter(name="*")] = SplitOptions(),
    model_options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
    train_options: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),
    how: Annotated[TuneOptions, Parameter(name="*")] = TuneOptions(),
) -> Tuned:
    """Search for better settings within a budget (an hour, unless told), then train a run with the best ones.

    Options that are told keep their values; the others are searched. The same command goes on with the same study.
    Raises DataError, BaseError, SettingsError, RunError and StorageError.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export. Without it, the built-in starter pairs.
    """
    need_optuna()
    started = time.perf_counter()
    until = started + (train_options.budget.total_seconds() if train_options.budget else _HOUR)
    epochs = train_options.num_train_epochs or (STARTER_EPOCHS if file is None else train_options.epochs)
    usual, told = (
        replace(train_options, budget=None, num_train_epochs=epochs),
        train_options.num_train_epochs is not None,
    )
    task = Task(file or STARTER, read_options, split_options, model_options, usual, told, how, until)
    with _scratch(how.runs) as run:
        tuned = _tuned(task, run)
    return replace(tuned, seconds=time.perf_counter() - started)


def _tuned(task: Task, scratch: Run) -> Tuned:
    stage, how = set_up(task, scratch), task.how
    times = divide(stage.ground.plan, task.left)
    with open_for(task, stage, times) as study:
        file = how.runs / "studies" / study.study_name / "tune.html"
        begun = _interrupted(how.runs, study.study_name) if how.finish else None
        ended = _Ended(task, stage, study, times, *run_search(task, stage, study, times, more=begun is None))
        write_text(file, page(ended.found, None, None))
        run, whole = _finish(ended, begun) if how.finish else (None, None)
    write_text(file, page(ended.found, whole, run.number if run else None))
    return Tuned(ended.found, file, 0.0, whole, run)


def _finish(ended: _Ended, begun: Run | None) -> tuple[Run, Against | None]:
    """Train the run, and compare it with a whole training with the defaults where there is time for that."""
    task, stage = ended.task, ended.stage
    if begun:
        tell([translate("Going on with run {number}, which this study had begun.", number=begun.number)])
        return train(place=RunOptions(runs=task.how.runs, resume=str(begun.folder))), None
    model_options, train_options = ended.space.settings(ended.found.chosen.settings)
    plan = stage.ground.expected_plan(model_options, train_options, stage.parts.rows("train"))
    others = _whole_defaults(ended, plan)
    train_options = replace(train_options, num_train_epochs=_epochs_left(train_options, plan, task.left))
    place = RunOptions(runs=task.how.runs, study=f"{ended.study.study_name}:{ended.found.chosen.number}")
    run = _made_before(place, train_options) or train(
        task.file,
        read_options=task.read_options,
        split_options=task.split_options,
        model_options=model_options,
        train_options=train_options,
        place=place,
    )
    return run, against(_bits(run, stage), others, stage.comparing) if others else None


def _whole_defaults(ended: _Ended, plan: Plan) -> list[float] | None:
    """Bits of a whole training with the defaults on the comparing half; None where there is no time for one."""
    task, stage, study = ended.task, ended.stage, ended.study
    if ended.found.chosen.default or not ended.times.proof:
        return None
    if "whole" not in study.user_attrs:
        if task.left < stage.ground.plan.seconds + plan.seconds + plan.scoring:
            return None
        tell([translate("A whole training with the defaults, to compare with.")])
        write_split(stage.ground.run.folder, stage.parts)
        model_options, train_options = ended.space.settings(ended.space.defaults)
        speaker = stage.ground.train(model_options, train_options, lambda epoch, speaker: None)
        study.set_user_attr("whole", mark(speaker.log2_probability, stage.comparing).bits.round(3).tolist())
    return list(study.user_attrs["whole"])


def _bits(run: Run, stage: Stage) -> list[float]:
    from daedap.model.saved import open_trained  # torch takes seconds to import

    bits: list[float] = mark(open_trained(run).log2_probability, stage.comparing).bits.tolist()
    return bits


def _epochs_left(train_options: TrainOptions, plan: Plan, left: float) -> int:
    """As many as asked for, or as there is time for; rows that were made from others take time, too."""
    more = 1 + train_options.augment_share * len(train_options.augment)
    epochs = int(train_options.epochs * (left - plan.scoring) / (more * plan.seconds))
    if epochs >= train_options.epochs:
        return train_options.epochs
    tell(
        [
            translate(
                "In the time that is left: {epochs} of {asked} epochs.",
                epochs=max(1, epochs),
                asked=train_options.epochs,
            )
        ]
    )
    return max(1, epochs)


def _made_before(place: RunOptions, train_options: TrainOptions) -> Run | None:
    """The complete run of an earlier sitting with the same settings."""
    complete = (run for run in store.every(place.runs) if run.complete and run.settings.get("study") == place.study)
    return next((run for run in complete if run.settings["recipe"]["num_train_epochs"] >= train_options.epochs), None)


def _interrupted(runs: Path, study: str) -> Run | None:
    """The run that an earlier sitting of this study had begun."""
    mine = (run for run in store.unfinished(runs) if str(run.settings.get("study")).rpartition(":")[0] == study)
    return next((run for run in mine if not run.busy), None)


@contextmanager
def _scratch(runs: Path) -> Iterator[Run]:
    """A folder for what trials write, beside the runs; gone afterwards, as are those of processes that were killed."""
    new = not runs.exists()
    with storage(runs):
        runs.mkdir(parents=True, exist_ok=True)
        for left in runs.glob(".tune-*"):
            if time.time() - left.stat().st_mtime > _STALE and not Run(left).busy:
                shutil.rmtree(left, ignore_errors=True)
        run = Run(Path(tempfile.mkdtemp(prefix=".tune-", dir=runs)))
    try:
        with run.locked():
            yield run
    finally:
        shutil.rmtree(run.folder, ignore_errors=True)
        if new:
            with suppress(OSError):  # something was made there meanwhile
                runs.rmdir()
