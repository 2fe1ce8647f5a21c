"""`daedap train`: a file of pairs → the next run."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from cyclopts import Parameter

import daedap.runs as store
from daedap.commands.shared import head, refuse_with_resume
from daedap.config import FRESH, ModelOptions, ReadOptions, RunOptions, SplitOptions, TrainOptions
from daedap.data.doctor import Fits, load
from daedap.data.split import write_lookup, write_split
from daedap.errors import SettingsError, StorageError
from daedap.evaluation.evaluate_run import evaluate_after_training
from daedap.files import write_json
from daedap.i18n import tell, translate
from daedap.retrieval.build import build_index
from daedap.retrieval.small_talk import STARTER
from daedap.runs import Json, Run
from daedap.training.split_rows import describe_source, parent_file, parent_options, split_rows, with_parents_lookup

if TYPE_CHECKING:
    from daedap.model.base import Base
    from daedap.model.language_model import LanguageModel

_log = logging.getLogger("daedap")
STARTER_EPOCHS = 1
"""Epochs on the built-in pairs: their answers are mostly retrieved, and the first bot is to be ready soon."""


def train(
    file: Path | None = None,
    *,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    split_options: Annotated[SplitOptions, Parameter(name="*")] = SplitOptions(),
    model_options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
    train_options: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),
    place: Annotated[RunOptions, Parameter(name="*")] = RunOptions(),
) -> Run:
    """Make the next run from a file of questions and answers.

    Raises DataError, BaseError, SettingsError, RunError and StorageError.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export. Without it, the built-in starter pairs; with --from, its file.
    """
    if os.environ.get("RANK", "0") != "0":
        _run_as_worker(model_options)
    if place.resume:
        refuse_with_resume(
            file, place.from_ and f"--from {place.from_}", read_options, split_options, model_options, train_options
        )
        run = store.interrupted(place.resume, place.runs)
        with run.locked():
            return _run_stages(run)
    started = time.perf_counter()
    parent = store.find(place.from_, place.runs) if place.from_ else None
    if parent:
        model_options, split_options = parent_options(parent, model_options, split_options)
        if file is None:
            file, read_options = parent_file(parent, read_options)
    if file in (None, STARTER):
        file, train_options = (
            STARTER,
            replace(train_options, num_train_epochs=train_options.num_train_epochs or STARTER_EPOCHS),
        )
    _require_tracker(train_options)
    settings: Json = {
        "command": "train",
        "file": str(file),
        **_options(read_options, split_options, model_options, train_options),
        "from": parent and _parent_name(parent, place.runs),
        "evaluate": place.evaluate,
        "study": place.study,
        "launch": _launch_id(),
    }
    if earlier := _earlier_attempt(settings, place.runs):
        with earlier.locked():
            return _run_stages(earlier)
    base = _load_base(model_options, parent)
    loaded = load(file, read_options, fits=_fits(model_options, base))
    tell(loaded.report.lines())
    split_result = split_rows(file, loaded.pairs, split_options, train_options.seed, parent)
    source = describe_source(file, loaded, split_options, split_result)
    run = store.create(place.runs)
    with run.discard_if_not_started(), run.locked():
        write_split(run.folder, split_result.parts, first=split_result.new)
        write_lookup(run.folder, with_parents_lookup(loaded.lookup, parent))
        write_json(run.folder / "data" / "source.json", source)
        write_json(run.folder / "data" / "findings.json", loaded.report.to_json())
        settings["prepare_seconds"] = round(time.perf_counter() - started, 1)
        write_json(run.folder / "settings.json", settings)
        return _run_stages(run, base)


def _options(
    read_options: ReadOptions, split_options: SplitOptions, model_options: ModelOptions, train_options: TrainOptions
) -> Json:
    """The options as JSON values; the budget in seconds."""
    return {
        "layout": asdict(read_options),
        "splitting": asdict(split_options),
        "learner": asdict(model_options),
        "recipe": {**asdict(train_options), "budget": train_options.budget and train_options.budget.total_seconds()},
    }


def _parent_name(parent: Run, runs: Path) -> str:
    """The parent's folder name where it lies in the same folder of runs, else its absolute path."""
    beside = parent.folder.resolve().parent == runs.resolve()
    return parent.folder.name if beside else str(parent.folder.resolve())


def _run_as_worker(model_options: ModelOptions) -> NoReturn:
    """Training alone, in the processes with a rank above 0 of `torchrun` and `accelerate launch`."""
    from daedap.training.finetune import run_worker  # torch takes seconds to import

    run_worker(model_options.device)


def _launch_id() -> str | None:
    """An id shared by all attempts of a training that torchrun restarts when a process dies; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def _earlier_attempt(settings: Json, runs: Path) -> Run | None:
    """The unfinished run of an earlier attempt with the same launch id and settings."""
    message = json.loads(json.dumps(settings))
    same = (
        run for run in store.unfinished(runs) if all(run.settings.get(name) == value for name, value in message.items())
    )
    return next(same, None) if settings["launch"] else None


def _require_tracker(train_options: TrainOptions) -> None:
    """Raise SettingsError when the tracker is not installed: accelerate would only warn, and log nowhere."""
    found = None if train_options.report_to == "none" else find_spec(train_options.report_to)
    if train_options.report_to != "none" and not (found and found.origin):  # a folder of that name has no origin
        raise SettingsError(
            "--report-to {name}: the package {name} is not installed.",
            "Install it: pip install {name}",
            name=train_options.report_to,
        )


def _load_base(model_options: ModelOptions, parent: Run | None) -> Base | None:
    """The parent's base or the named one; None for a fresh model, which needs the training rows first."""
    if model_options.base == FRESH and not parent:
        return None
    from daedap.model.base import load_base  # torch takes seconds to import
    from daedap.training.finetune import parent_base

    base = parent_base(parent) if parent else load_base(model_options.base)
    tell([translate("Base {name}, licence: {licence}", name=model_options.base, licence=base.licence)])
    if model_options.max_length > base.max_positions:
        message = "--max-length {length}: this base reads at most {places} tokens, and longer rows are left out."
        tell([translate(message, length=model_options.max_length, places=int(base.max_positions))])
    return base


def _fits(model_options: ModelOptions, base: Base | None) -> Fits:
    """Whether question, answer and end token fit: by the base's tokenizer, or counting a character as a token."""
    if base:
        return base.prompt(model_options.max_length).fits
    return lambda pair: len(pair.question) + len(pair.answer) + 8 <= model_options.max_length


def _run_stages(run: Run, base: Base | None = None) -> Run:
    """The stages after the split: train, convert, index, evaluate; the manifest is written last."""
    from daedap.model.convert import write_engine
    from daedap.model.language_model import CachedScorer  # torch takes seconds to import
    from daedap.model.saved import open_trained
    from daedap.training.finetune import finetune

    seconds: dict[str, float] = {"prepare": run.settings["prepare_seconds"]}
    with _timed(seconds, "plan"):
        finetune(run, base)
    seconds["train"] = run.learned["training"]["seconds"]
    seconds["plan"] = round(max(0.0, seconds["plan"] - seconds["train"]), 1)
    with _timed(seconds, "engine"):
        learned = open_trained(run)
        write_engine(run, learned)
    model = CachedScorer(learned)
    with _timed(seconds, "index"):
        encoder_rows = build_index(run, model)
    with _timed(seconds, "evaluate"):
        headline = _evaluate(run, model) if run.settings["evaluate"] else {}
    write_json(run.folder / "manifest.json", _manifest(run, encoder_rows, seconds, headline))
    tell([translate("Run {number} is complete: {folder}", number=run.number, folder=run.folder)])
    return run


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Record the seconds that a stage takes."""
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 1)


def _evaluate(run: Run, model: LanguageModel) -> Json:
    """The headline scores. Any failure but a full disk or memory is logged, and the run is complete without scores."""
    try:
        return evaluate_after_training(run, model)
    except (StorageError, MemoryError):
        raise
    except Exception as error:
        message = (
            "The scores failed ({error}), the run is complete without them. Try again: daedap evaluate --run {number}"
        )
        _log.warning(translate(message, error=f"{type(error).__name__}: {error}", number=run.number))
        run.note("scores_failed", traceback=traceback.format_exc())
        return {}


def _manifest(run: Run, encoder_rows: int, seconds: Json, headline: Json) -> Json:
    parent = run.settings["from"]
    return {
        **head(run),
        "parent": int(parent) if parent and parent.isdecimal() else parent,
        "memory": {"encoder_rows": encoder_rows},
        "data": run.document("data/source.json"),
        **run.learned,
        "seconds": seconds,
        "headline": headline,
        "engine": _engine(run),
        "files": store.sizes(run.folder),
    }


def _engine(run: Run) -> Json:
    """The verified engine of this kind of processor, and its agreement with the trained model."""
    from daedap.model.device import processor_kind
    from daedap.model.engine import ENGINE
    from daedap.model.verify import PYTORCH, verified

    found: Json = verified(run.folder / ENGINE).get(processor_kind(), {"compute_type": PYTORCH})
    return found
