"""`daedap train`: a file of pairs → the next run."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import daedap.runs as run_store
from daedap.config import ModelOptions, ReadOptions, RunOptions, SplitOptions, TrainOptions
from daedap.data.reader import STARTER
from daedap.errors import SettingsError
from daedap.pipeline import complete_run, train_from_config
from daedap.retrieval.lessons import stored_lessons
from daedap.runs import Run, TrainConfig
from daedap.training.split_rows import parent_file, parent_options
from daedap.types import Lesson

STARTER_EPOCHS, _STARTER_BUDGET = 1, timedelta(seconds=75)
"""Epochs and time budget of a training on the built-in pairs, whose answers are mostly retrieved: the first bot is to
be ready soon."""


def train(
    file: Path | None = None,
    *,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    split_options: Annotated[SplitOptions, Parameter(name="*")] = SplitOptions(),
    model_options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
    train_options: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),
    run_options: Annotated[RunOptions, Parameter(name="*")] = RunOptions(),
) -> Run:
    """Make the next run from a file of questions and answers.

    Raises DataError, BaseError, SettingsError, RunError and StorageError.

    Parameters
    ----------
    file
        CSV, TSV, JSON, JSONL, YAML, Parquet, .xlsx, text with "Q." and "A.", or a KakaoTalk export. Without it, the
        built-in starter pairs; with --from, its file.
    """
    if os.environ.get("RANK", "0") != "0":
        from daedap.training.finetune import run_worker  # torch takes seconds to import

        run_worker(model_options.device)  # training alone, in the other processes of torchrun and accelerate launch
    runs, parent_name = run_options.runs, run_options.from_
    if run_options.resume:
        chosen = (read_options, split_options, model_options, train_options)
        refuse_with_resume(file, parent_name and f"--from {parent_name}", *chosen)
        return _resume(run_store.interrupted(run_options.resume, runs))
    parent = run_store.find(parent_name, runs) if parent_name else None
    if parent:
        model_options, split_options = parent_options(parent, model_options, split_options)
        if file is None:
            file, read_options = parent_file(parent, read_options)
    if file in (None, STARTER):
        file, train_options = STARTER, starter_options(train_options)
    _require_tracker(train_options)
    config = TrainConfig(
        file=str(file),
        read=read_options,
        split=split_options,
        model=model_options,
        train=train_options,
        parent=_parent_name(parent, runs) if parent else None,
        evaluate=run_options.evaluate,
        launch=_launch_id(),
    )
    if earlier := _earlier_attempt(config, runs):
        return _resume(earlier)
    return train_from_config(config, runs, _lessons(runs) if run_options.lessons else ())


def starter_options(options: TrainOptions) -> TrainOptions:
    """The options for the built-in pairs: one epoch unless `num_train_epochs` is given.

    Where neither epochs nor a budget are given, the budget is 75 seconds.
    """
    if options.num_train_epochs:
        return options
    return replace(options, num_train_epochs=STARTER_EPOCHS, budget=options.budget or _STARTER_BUDGET)


def refuse_with_resume(*given: Any) -> None:
    """Raise SettingsError when a file or an option stands beside `--resume`: it would be ignored.

    `given`: files, and groups of options (dataclasses).
    """
    for one in filter(None, given):
        for name in _changed(one) if is_dataclass(one) else [str(one)]:
            raise SettingsError(
                "--resume continues with the run's own file and settings, not with {given}.",
                "Leave {given} out, or leave --resume out to start the next run.",
                given=name,
            )


def _changed(options: Any) -> list[str]:
    """The options of a group that have not their default."""
    changed = (option.name for option in fields(options) if getattr(options, option.name) != option.default)
    return [f"--{name.replace('_', '-')}" for name in changed]


def _lessons(runs: Path) -> list[Lesson]:
    """The lessons in force. Raises SettingsError when there are none."""
    if not (lessons := stored_lessons(runs)):
        raise SettingsError(
            "--lessons: nothing was taught yet.", "Teach with daedap teach QUESTION ANSWER, or leave --lessons out."
        )
    return lessons


def _resume(run: Run) -> Run:
    with run.locked():
        return complete_run(run)


def _parent_name(parent: Run, runs: Path) -> str:
    """The parent's folder name where it lies in the same folder of runs, else its absolute path."""
    beside = parent.folder.resolve().parent == runs.resolve()
    return parent.folder.name if beside else str(parent.folder.resolve())


def _launch_id() -> str | None:
    """An id shared by all attempts of a training that torchrun restarts when a process dies; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def _earlier_attempt(config: TrainConfig, runs: Path) -> Run | None:
    """The unfinished run of an earlier attempt with the same launch id and options."""
    if config.launch is None:
        return None
    document = json.loads(json.dumps(config.to_json()))
    return next((run for run in run_store.unfinished(runs) if run.document("config.json") == document), None)


def _require_tracker(train_options: TrainOptions) -> None:
    """Raise SettingsError when the tracker is not installed: accelerate would only warn, and log nowhere."""
    name = train_options.report_to
    if name != "none" and not ((spec := find_spec(name)) and spec.origin):  # a folder of that name has no origin
        raise SettingsError(
            "--report-to {name}: the package {name} is not installed.",
            "Install it: pip install {name}",
            name=name,
        )
