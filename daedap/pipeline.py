"""The training pipeline, from input file to completed run. Every stage reads and writes the run's folder:

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
import random
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
from daedap.data.doctor import load
from daedap.data.split import RunRows, write_lookup, write_split
from daedap.errors import StorageError
from daedap.evaluation.evaluate_run import evaluate_after_training
from daedap.files import write_json, write_lines
from daedap.i18n import tell, translate
from daedap.korean.perturb import add_typo
from daedap.korean.text import comparison_form
from daedap.retrieval.bot import Bot
from daedap.retrieval.build import build_index
from daedap.retrieval.lessons import latest_lessons
from daedap.runs import Json, Run, TrainConfig
from daedap.training.split_rows import describe_source, length_limit, split_rows, with_parents_lookup
from daedap.types import Lesson, Pair

if TYPE_CHECKING:
    from daedap.model.base import Base

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
    length = config.model.max_length
    fits = base.prompt(length).fits if base else length_limit(FRESH, length).fits
    loaded = load(Path(config.file), config.read, fits=fits, keep_too_long=parent is None)
    tell(loaded.report.lines())
    if not loaded.report.usable:  # what is too long can't be scored either
        message = (
            "No row fits into --max-length {length}: the language model trains on truncated rows; "
            "retrieval uses the full text."
        )
        tell([translate(message, length=length)])
        config = replace(config, split=replace(config.split, dev_size=0, test_size=0))
    taught = [Pair(lesson.question, lesson.answer) for lesson in latest_lessons(lessons)]
    learned, too_long = [pair for pair in taught if fits(pair)], [pair for pair in taught if not fits(pair)]
    rows = split_rows(Path(config.file), loaded.pairs, config.split, config.train.seed, parent, learned)
    source = describe_source(Path(config.file), loaded, config.split, rows)
    run = run_store.create(runs)
    with run.discard_if_not_started(), run.locked():
        write_split(run.folder, rows.split, first=rows.new_ids)
        write_lookup(run.folder, [*too_long, *with_parents_lookup(loaded.lookup, parent)])
        if lessons:
            write_lines(run.folder / "data" / "lessons.jsonl", [asdict(lesson) for lesson in latest_lessons(lessons)])
        write_json(run.folder / "data" / "source.json", source)
        write_json(run.folder / "data" / "findings.json", loaded.report.to_json())
        write_json(run.folder / "config.json", config.to_json())
        run.update_state(seconds={"prepare": round(time.perf_counter() - started, 1)})
        return complete_run(run, base)


def complete_run(run: Run, base: Base | None = None) -> Run:
    """The stages after `prepare` that are not done yet. `base`: the run's base if it is loaded already.

    Raises BaseError, SettingsError, RunError and StorageError. A failed evaluation or check of the lessons is logged.
    """
    from daedap.model.convert import write_engine  # torch takes seconds to import
    from daedap.model.engine import ENGINE
    from daedap.model.language_model import CachedScorer, open_trained
    from daedap.training.finetune import finetune

    rows = RunRows(run.folder)
    if not (run.folder / "training.json").exists():
        finetune(run, rows, base)
    model = open_trained(run)
    if not (run.folder / ENGINE).exists():
        with _timed(run, "engine"):
            write_engine(run, rows, model)
    scorer = CachedScorer(model)
    if not ((run.folder / "index").exists() and "encoder_rows" in run.state):
        with _timed(run, "index"):
            build_index(run, rows, scorer)
    if run.config.evaluate and not (run.folder / "evaluation").exists():
        message = (
            "Evaluation failed ({error}); the run is complete but has no scores. "
            "Try again: daedap evaluate --run {number}"
        )
        with _timed(run, "evaluate"), _may_fail(run, "scores_failed", message):
            evaluate_after_training(run, scorer)
    message = "The lessons could not be checked ({error}); the run is complete."
    with _may_fail(run, "lessons_failed", message):
        check_lessons(run)
    write_json(run.folder / "manifest.json", _manifest(run))
    tell([translate("Run {number} is complete: {folder}", number=run.number, folder=run.folder)])
    return run


def check_lessons(run: Run) -> None:
    """Ask the new bot, without its lessons, their questions verbatim and with a typo; record the result in the state.

    Verbatim questions only show that the index holds them: they are training rows. Typos are the same every time.
    """
    file = run.folder / "data" / "lessons.jsonl"
    if not file.exists():
        return
    lessons = [Lesson(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    bot = Bot.from_run(run, held_out=True)
    typos = [replace(lesson, question=add_typo(lesson.question, random.Random(lesson.question))) for lesson in lessons]
    known = {comparison_form(lesson.question) for lesson in lessons}
    typos = [lesson for lesson in typos if comparison_form(lesson.question) not in known]
    missing, wrong = (_answered_otherwise(bot, asked) for asked in (lessons, typos))
    message = (
        "{found:,} of {count:,} lessons are found in the new index; asked with a typo, {right:,} of {asked:,} are "
        "answered correctly. All lessons stay in force."
    )
    found, right = len(lessons) - len(missing), len(typos) - len(wrong)
    tell([translate(message, found=found, count=len(lessons), right=right, asked=len(typos))])
    tell([translate("Answered incorrectly: {question}", question=lesson.question) for lesson in [*missing, *wrong]])
    checked = {
        "count": len(lessons),
        "ids": [lesson.id for lesson in lessons],
        "missing": [lesson.id for lesson in missing],
        "typos": {"count": len(typos), "wrong": [lesson.id for lesson in wrong]},
    }
    run.update_state(lessons=checked)


def _answered_otherwise(bot: Bot, lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons whose question gets another answer than theirs."""
    replies = bot.reply_many([lesson.question for lesson in lessons])
    return [lesson for lesson, reply in zip(lessons, replies, strict=True) if reply.text != lesson.answer]


@contextmanager
def _timed(run: Run, stage: str) -> Iterator[None]:
    """Record the seconds that a stage takes in the run's state."""
    started = time.perf_counter()
    yield
    seconds = {**run.state.get("seconds", {}), stage: round(time.perf_counter() - started, 1)}
    run.update_state(seconds=seconds)


@contextmanager
def _may_fail(run: Run, event: str, message: str) -> Iterator[None]:
    """Log any failure but a full disk or memory: the run is complete without what this block adds to it."""
    try:
        yield
    except (StorageError, MemoryError):
        raise
    except Exception as error:
        _log.warning(translate(message, error=f"{type(error).__name__}: {error}", number=run.number))
        run.note(event, traceback=traceback.format_exc())


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
        message = (
            "--max-length {length} exceeds the base's context of {places} tokens; "
            "longer rows are used for retrieval only."
        )
        tell([translate(message, length=options.max_length, places=int(base.max_positions))])
    return base


def _with_encoder(config: TrainConfig, runs: Path) -> TrainConfig:
    """Convert the named sentence encoder before anything is trained. A folder is recorded with its absolute path."""
    if (name := config.model.encoder) is None:
        return config
    from daedap.model.encoder_conversion import open_encoder  # torch takes seconds to import

    open_encoder(name, runs / "cache")
    absolute = str(Path(name).resolve()) if Path(name).is_dir() else name
    return replace(config, model=replace(config.model, encoder=absolute))


def _manifest(run: Run) -> Json:
    from daedap.model.device import processor_kind  # torch takes seconds to import
    from daedap.model.engine import ENGINE
    from daedap.model.verify import PYTORCH, read_verifications

    parent = run.config.parent
    return {
        **describe_environment(run),
        "parent": int(parent) if parent and parent.isdecimal() else parent,
        "data": run.document("data/source.json"),
        **({"lessons": run.state["lessons"]} if "lessons" in run.state else {}),
        **run.trained,
        "seconds": {**run.state["seconds"], "train": run.trained["training"]["seconds"]},
        "headline": run.headline if (run.folder / "evaluation").exists() else {},
        "engine": read_verifications(run.folder / ENGINE).get(processor_kind(), {"compute_type": PYTORCH}),
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
