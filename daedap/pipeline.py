"""A training from its file to its manifest. Every stage reads and writes the run's folder:

    prepare    the file          → data/ config.json            read, check, split
    train      data/             → model/ or adapter/           tokenize, plan, fit; then training.json
    engine     model/            → engine/                      convert and verify
    index      data/ model/      → index/                       what the bot retrieves from
    evaluate   engine/ index/    → evaluation/                  scores with baselines
               all of it         → manifest.json                the run is complete

An interrupted run resumes at the first stage whose output is missing.
"""

from __future__ import annotations

import json
import logging
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import daedap.runs as run_store
from daedap.config import FRESH
from daedap.data.doctor import Fits, load
from daedap.data.split import RunRows, write_lookup, write_split
from daedap.errors import StorageError
from daedap.evaluation.evaluate_run import evaluate_after_training
from daedap.files import write_json, write_lines
from daedap.i18n import tell, translate
from daedap.retrieval.bot import Bot
from daedap.retrieval.build import build_index
from daedap.retrieval.lessons import latest_lessons
from daedap.runs import Json, Run, TrainConfig
from daedap.training.split_rows import describe_source, split_rows, with_parents_lookup
from daedap.types import Lesson, Pair

if TYPE_CHECKING:
    from daedap.model.base import Base
    from daedap.model.decoding import LanguageModel

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "scikit-learn", "numpy", "kiwipiepy")
_log = logging.getLogger("daedap")


def train_from_config(config: TrainConfig, runs: Path, lessons: Sequence[Lesson] = ()) -> Run:
    """Make the next run in the folder `runs`. Raises DataError, BaseError, SettingsError, RunError and StorageError.

    `lessons`: lessons to add to the training rows, the latest first.
    """
    started = time.perf_counter()
    parent = Run(runs / config.parent) if config.parent else None
    base = _load_base(config, parent)
    config = _with_encoder(config, runs)
    fits = _fits(config, base)
    loaded = load(Path(config.file), config.read, fits=fits, keep_too_long=parent is None)
    tell(loaded.report.lines())
    if not loaded.report.usable:  # what is too long can't be scored either
        message = "No row fits into --max-length {length}: the model learns how each begins; all are looked up whole."
        tell([translate(message, length=config.model.max_length)])
        config = replace(config, split=replace(config.split, dev_size=0, test_size=0))
    taught = [Pair(lesson.question, lesson.answer) for lesson in latest_lessons(lessons)]
    learned = list(filter(fits, taught))
    parts = split_rows(Path(config.file), loaded.pairs, config.split, config.train.seed, parent, learned)
    source = describe_source(Path(config.file), loaded, config.split, parts)
    run = run_store.create(runs)
    with run.discard_if_not_started(), run.locked():
        write_split(run.folder, parts.parts, first=parts.new)
        too_long = [pair for pair in taught if pair not in learned]
        write_lookup(run.folder, [*too_long, *with_parents_lookup(loaded.lookup, parent)])
        if lessons:
            write_lines(run.folder / "data" / "lessons.jsonl", [asdict(lesson) for lesson in latest_lessons(lessons)])
        write_json(run.folder / "data" / "source.json", source)
        write_json(run.folder / "data" / "findings.json", loaded.report.to_json())
        write_json(run.folder / "config.json", config.to_json())
        run.update_state(seconds={"prepare": round(time.perf_counter() - started, 1)})
        return complete_run(run, base)


def complete_run(run: Run, base: Base | None = None) -> Run:
    """The stages after `prepare` that are not done yet. `base`: the run's base if it is loaded already."""
    from daedap.model.convert import write_engine  # torch takes seconds to import
    from daedap.model.engine import ENGINE
    from daedap.model.language_model import CachedScorer
    from daedap.model.saved import open_trained
    from daedap.training.finetune import finetune

    rows = RunRows(run.folder)
    if not (run.folder / "training.json").exists():
        with _timed(run, "plan"):
            finetune(run, rows, base)
        _separate_plan_and_training_time(run)
    model = open_trained(run)
    if not (run.folder / ENGINE).exists():
        with _timed(run, "engine"):
            write_engine(run, rows, model)
    scorer = CachedScorer(model)
    if not ((run.folder / "index").exists() and "encoder_rows" in run.state):
        with _timed(run, "index"):
            build_index(run, rows, scorer)
    if run.config.evaluate and not (run.folder / "evaluation").exists():
        with _timed(run, "evaluate"):
            _evaluate(run, scorer)
    _check_lessons(run)
    write_json(run.folder / "manifest.json", _manifest(run))
    tell([translate("Run {number} is complete: {folder}", number=run.number, folder=run.folder)])
    return run


def _check_lessons(run: Run) -> None:
    """Check that the new bot reproduces its lessons without looking them up; the result goes to the state."""
    file = run.folder / "data" / "lessons.jsonl"
    lessons = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    if not lessons:
        return
    replies = Bot.of(run, held_out=True).reply_many([lesson["question"] for lesson in lessons])
    wrong = [lesson for lesson, reply in zip(lessons, replies, strict=True) if reply.text != lesson["answer"]]
    message = (
        "{right:,} of {count:,} lessons are answered right by what was learned; the lessons themselves stay in force."
    )
    tell([translate(message, right=len(lessons) - len(wrong), count=len(lessons))])
    tell([translate("Not yet: {question}", question=lesson["question"]) for lesson in wrong])
    ids, failed = [lesson["id"] for lesson in lessons], [lesson["id"] for lesson in wrong]
    run.update_state(lessons={"count": len(lessons), "ids": ids, "wrong": failed})


@contextmanager
def _timed(run: Run, stage: str) -> Iterator[None]:
    """Record the seconds that a stage takes in the run's state."""
    started = time.perf_counter()
    yield
    seconds = {**run.state.get("seconds", {}), stage: round(time.perf_counter() - started, 1)}
    run.update_state(seconds=seconds)


def _separate_plan_and_training_time(run: Run) -> None:
    """What the trainer measured itself is training; base, tokenization, plan and frozen layers are the plan."""
    seconds, training = run.state["seconds"], run.trained["training"]["seconds"]
    run.update_state(seconds={**seconds, "plan": round(max(0.0, seconds["plan"] - training), 1), "train": training})


def _load_base(config: TrainConfig, parent: Run | None) -> Base | None:
    """The parent's base or the named one; None for a fresh model, which needs the training rows first."""
    options = config.model
    if options.base == FRESH and not parent:
        return None
    from daedap.model.base import load_base  # torch takes seconds to import
    from daedap.training.finetune import parent_base

    base = parent_base(parent) if parent else load_base(options.base)
    tell([translate("Base {name}, licence: {licence}", name=options.base, licence=base.licence)])
    if options.max_length > base.max_positions:
        message = "--max-length {length}: this base reads at most {places} tokens; longer rows are only looked up."
        tell([translate(message, length=options.max_length, places=int(base.max_positions))])
    return base


def _with_encoder(config: TrainConfig, runs: Path) -> TrainConfig:
    """Convert the named sentence encoder before anything is learned. A folder is recorded with its absolute path."""
    if (name := config.model.encoder) is None:
        return config
    from daedap.model.encoder_conversion import open_encoder  # torch takes seconds to import

    open_encoder(name, runs / "cache")
    absolute = str(Path(name).resolve()) if Path(name).is_dir() else name
    return replace(config, model=replace(config.model, encoder=absolute))


def _fits(config: TrainConfig, base: Base | None) -> Fits:
    """Whether question, answer and end token fit: by the base's tokenizer, or counting a character as a token."""
    length = config.model.max_length
    if base:
        return base.prompt(length).fits
    return lambda pair: len(pair.question) + len(pair.answer) + 8 <= length


def _evaluate(run: Run, model: LanguageModel) -> None:
    """Any failure but a full disk or memory is logged, and the run is complete without scores."""
    try:
        evaluate_after_training(run, model)
    except (StorageError, MemoryError):
        raise
    except Exception as error:
        message = (
            "The scores failed ({error}), the run is complete without them. Try again: daedap evaluate --run {number}"
        )
        _log.warning(translate(message, error=f"{type(error).__name__}: {error}", number=run.number))
        run.note("scores_failed", traceback=traceback.format_exc())


def _manifest(run: Run) -> Json:
    from daedap.model.device import processor_kind  # torch takes seconds to import
    from daedap.model.engine import ENGINE
    from daedap.model.verify import PYTORCH, verified

    parent = run.config.parent
    return {
        **describe_environment(run),
        "parent": int(parent) if parent and parent.isdecimal() else parent,
        "data": run.document("data/source.json"),
        **({"lessons": run.state["lessons"]} if "lessons" in run.state else {}),
        **run.trained,
        "seconds": {**run.state["seconds"], "train": run.trained["training"]["seconds"]},
        "headline": run.headline if (run.folder / "evaluation").exists() else {},
        "engine": verified(run.folder / ENGINE).get(processor_kind(), {"compute_type": PYTORCH}),
        "files": run_store.sizes(run.folder),
    }


def describe_environment(run: Run) -> Json:
    """The beginning of a manifest: format, number, time, versions and the most memory held."""
    from daedap.model.device import peak_memory  # torch takes seconds to import

    return {
        "format": run_store.FORMAT,
        "number": run.number,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "daedap": version("daedap"),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "peak_memory_bytes": peak_memory(),
    }
