"""`daedap tune`: a search for better settings within a time budget, then a run with the best ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import daedap.runs as run_store
from daedap.commands.train import STARTER_EPOCHS, train
from daedap.config import ModelOptions, ReadOptions, RunOptions, SplitOptions, TrainOptions, TuneOptions
from daedap.data.reader import STARTER
from daedap.data.split import write_split
from daedap.files import write_text
from daedap.i18n import tell, translate
from daedap.pipeline import train_from_config
from daedap.runs import Run, TrainConfig, scratch_folder
from daedap.tuning.objective import measure_objective
from daedap.tuning.result import SearchResult, TuneResult, VersusDefaults, study_page, versus_defaults
from daedap.tuning.search import (
    SearchSetup,
    SearchTask,
    TimeBudget,
    divide_budget,
    open_task_study,
    prepare_search,
    run_search,
)
from daedap.tuning.study import SearchSpace, require_optuna

if TYPE_CHECKING:
    from optuna import Study

    from daedap.training.planner import Plan

_DEFAULT_BUDGET = 3600.0


@dataclass(frozen=True)
class _FinishedSearch:
    """A search that is over, and what it was run with."""

    task: SearchTask
    setup: SearchSetup
    study: Study
    budget: TimeBudget
    result: SearchResult
    space: SearchSpace


def tune(
    file: Path | None = None,
    *,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    split_options: Annotated[SplitOptions, Parameter(name="*")] = SplitOptions(),
    model_options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
    train_options: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),
    tune_options: Annotated[TuneOptions, Parameter(name="*")] = TuneOptions(),
) -> TuneResult:
    """Search for better settings within a budget (default: an hour), then train a run with the best ones.

    Options that are set to another value than their default are not searched. The same command continues the same
    study. Raises DataError, BaseError, SettingsError, RunError and StorageError.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export. Without it, the built-in starter pairs.
    """
    require_optuna()
    started = time.perf_counter()
    budget = train_options.budget.total_seconds() if train_options.budget else _DEFAULT_BUDGET
    epochs = train_options.num_train_epochs or (STARTER_EPOCHS if file is None else train_options.epochs)
    task = SearchTask(
        file=file or STARTER,
        read_options=read_options,
        split_options=split_options,
        model_options=model_options,
        train_options=replace(train_options, budget=None, num_train_epochs=epochs),
        epochs_set=train_options.num_train_epochs is not None,
        tune_options=tune_options,
        deadline=started + budget,
    )
    with scratch_folder(tune_options.runs, ".tune-") as folder:
        tuned = _search_and_train(task, folder)
    return replace(tuned, seconds=time.perf_counter() - started)


def _search_and_train(task: SearchTask, scratch: Path) -> TuneResult:
    setup, options = prepare_search(task, scratch), task.tune_options
    budget = divide_budget(setup.context.plan, task.seconds_left)
    with open_task_study(task, setup, budget) as study:
        file = options.runs / "studies" / study.study_name / "tune.html"
        unfinished = _interrupted(options.runs, study.study_name) if options.finish else None
        result, space = run_search(task, setup, study, budget, more=unfinished is None)
        write_text(file, study_page(result, None, None))
        search = _FinishedSearch(task, setup, study, budget, result, space)
        run, whole = _final_run(search, unfinished) if options.finish else (None, None)
    write_text(file, study_page(result, whole, run.number if run else None))
    return TuneResult(result, file, 0.0, whole, run)


def _final_run(search: _FinishedSearch, unfinished: Run | None) -> tuple[Run, VersusDefaults | None]:
    """Train the run, and compare it with a full training with the defaults if there is time for one."""
    task, setup, runs = search.task, search.setup, search.task.tune_options.runs
    if unfinished:
        tell([translate("Resuming run {number} of this study.", number=unfinished.number)])
        return train(run_options=RunOptions(runs=runs, resume=str(unfinished.folder))), None
    model_options, train_options = search.space.to_options(search.result.chosen.settings)
    plan = setup.context.expected_plan(model_options, train_options, setup.split.rows("train"))
    default_bits = _full_default_training(search, plan)
    train_options = replace(train_options, num_train_epochs=_epochs_left(train_options, plan, task.seconds_left))
    config = TrainConfig(
        file=str(task.file),
        read=task.read_options,
        split=task.split_options,
        model=model_options,
        train=train_options,
        study=f"{search.study.study_name}:{search.result.chosen.number}",
    )
    run = _existing_run(config, runs) or train_from_config(config, runs)
    if not default_bits:
        return run, None
    from daedap.model.language_model import open_trained  # torch takes seconds to import

    bits = measure_objective(open_trained(run).log2_probability, setup.comparison).bits.tolist()
    return run, versus_defaults(bits, default_bits, setup.comparison)


def _full_default_training(search: _FinishedSearch, plan: Plan) -> list[float] | None:
    """Bits of the comparison rows after a full training with the defaults; None if there is no time for one."""
    setup, study = search.setup, search.study
    if search.result.chosen.default or not search.budget.default_training:
        return None
    if "whole" not in study.user_attrs:
        if search.task.seconds_left < setup.context.plan.seconds + plan.seconds + plan.scoring:
            return None
        tell([translate("A full training with the defaults, for comparison.")])
        write_split(setup.context.folder, setup.split)
        model_options, train_options = search.space.to_options(search.space.defaults)
        model = setup.context.train(model_options, train_options, lambda epoch, model: None)
        terms = measure_objective(model.log2_probability, setup.comparison)
        study.set_user_attr("whole", terms.bits.round(3).tolist())
    return list(study.user_attrs["whole"])


def _epochs_left(train_options: TrainOptions, plan: Plan, left: float) -> int:
    """The number of epochs that fits into `left` seconds, augmented rows included, and at most the number asked for."""
    augmented = 1 + train_options.augment_share * len(train_options.augment)
    epochs = int(train_options.epochs * (left - plan.scoring) / (augmented * plan.seconds))
    if epochs >= train_options.epochs:
        return train_options.epochs
    template = "In the time left: {epochs} of {wanted} epochs."
    tell([translate(template, epochs=max(1, epochs), wanted=train_options.epochs)])
    return max(1, epochs)


def _existing_run(config: TrainConfig, runs: Path) -> Run | None:
    """The complete run of an earlier call with the same study, trial, and at least as many epochs."""
    complete = (run for run in run_store.list_runs(runs) if run.complete and run.config.study == config.study)
    return next((run for run in complete if run.config.train.epochs >= config.train.epochs), None)


def _interrupted(runs: Path, study: str) -> Run | None:
    """The unfinished run of an earlier call with the same study."""
    of_study = (run for run in run_store.unfinished(runs) if (run.config.study or "").rpartition(":")[0] == study)
    return next((run for run in of_study if not run.busy), None)
