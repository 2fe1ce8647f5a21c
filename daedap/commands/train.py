"""`daedap train`: a file of pairs → the next run."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from cyclopts import Parameter

import daedap.runs as store
from daedap.answer.manners import STARTER, built_in
from daedap.answer.memory import learn_memory
from daedap.commands.evaluate import judge_run
from daedap.commands.shared import head, refuse_with_resume, tell
from daedap.data.augment import augment
from daedap.data.check import Fits, Loaded, load
from daedap.data.source import Layout
from daedap.data.split import Split, Splitting, split
from daedap.data.store import SIDES, read_side, write_sides
from daedap.errors import DataError, SettingsError
from daedap.files import digest, new_folder, write_json
from daedap.language import say
from daedap.lm.recipe import FRESH, Learner, Recipe
from daedap.pair import Pair
from daedap.runs import FOLDER, Json, Run

if TYPE_CHECKING:
    from daedap.lm.base import Base

STARTER_EPOCHS = 1
"""So that a first bot is there in a minute or so: what it says is mostly looked up (docs/EXPERIMENTS.md)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs are kept."""

    runs: Path = FOLDER
    """Folder of the runs."""
    resume: str | None = None
    """Go on with an interrupted run: its number or folder; without a value, the latest one."""
    evaluate: bool = True
    """Score the finished run on its test rows."""
    study: Annotated[str | None, Parameter(parse=False)] = None
    """The study that found its settings, and the trial: `name:14`."""


_SLIPS = 0.5
"""Questions with a typing slip that the encoder learns, for each row: 2 points of Hits@1/20 under such slips."""


def train(
    file: Path | None = None,
    *,
    layout: Annotated[Layout, Parameter(name="*")] = Layout(),
    splitting: Annotated[Splitting, Parameter(name="*")] = Splitting(),
    learner: Annotated[Learner, Parameter(name="*")] = Learner(),
    recipe: Annotated[Recipe, Parameter(name="*")] = Recipe(),
    place: Annotated[Place, Parameter(name="*")] = Place(),
) -> Run:
    """Make the next run from a file of questions and answers.

    Raises DataError, BaseError, SettingsError, RunError and StorageError.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export. Without it, the built-in starter pairs.
    """
    if os.environ.get("RANK", "0") != "0":
        _help(learner)
    if place.resume:
        refuse_with_resume(file)
        run = store.interrupted(place.resume, place.runs)
        with run.locked():
            return _finish(run)
    started = time.perf_counter()
    if file is None:
        file, recipe = STARTER, replace(recipe, num_train_epochs=recipe.num_train_epochs or STARTER_EPOCHS)
    _need_tracker(recipe)
    settings: Json = {
        "command": "train",
        "file": str(file),
        "layout": asdict(layout),
        "splitting": asdict(splitting),
        "learner": asdict(learner),
        "recipe": {**asdict(recipe), "budget": recipe.budget and recipe.budget.total_seconds()},
        "evaluate": place.evaluate,
        "study": place.study,
        "launch": _launch(),
    }
    if begun := _begun_before(settings, place.runs):
        with begun.locked():
            return _finish(begun)
    base = _load_base(learner)
    loaded = load(file, layout, fits=_fits(learner, base))
    tell(loaded.report.lines())
    parts = split(loaded.pairs, splitting, seed=recipe.seed)
    _need_rows(file, parts)
    source = _source(file, loaded, splitting, parts)
    run = store.create(place.runs)
    with run.kept_if_begun(), run.locked():
        write_sides(run.folder, parts)
        write_json(run.folder / "data" / "source.json", source)
        write_json(run.folder / "data" / "findings.json", loaded.report.to_json())
        settings["prepare_seconds"] = round(time.perf_counter() - started, 1)
        write_json(run.folder / "settings.json", settings)
        return _finish(run, base)


def _help(learner: Learner) -> NoReturn:
    """What `torchrun` and `accelerate launch` start beside the first process learns with it, and does nothing else."""
    from daedap.lm.learn import help_to_learn  # torch takes seconds to import

    help_to_learn(learner.device)


def _launch() -> str | None:
    """What all attempts of a training have in common that torchrun restarts when a process dies; None without it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def _begun_before(settings: Json, runs: Path) -> Run | None:
    """The unfinished run of an earlier attempt at this very training."""
    told = json.loads(json.dumps(settings))
    begun = (run for run in store.every(runs) if not run.complete and (run.folder / "settings.json").exists())
    same = (run for run in begun if all(run.settings.get(name) == value for name, value in told.items()))
    return next(same, None) if settings["launch"] else None


def _need_tracker(recipe: Recipe) -> None:
    """Without the package, accelerate would only warn, and the curves be nowhere."""
    found = None if recipe.report_to == "none" else find_spec(recipe.report_to)
    if recipe.report_to != "none" and not (found and found.origin):  # a folder of that name has no origin
        raise SettingsError(
            "--report-to {name}: the package {name} is not installed.",
            "Install it: pip install {name}",
            name=recipe.report_to,
        )


def _load_base(learner: Learner) -> Base | None:
    """The named base; None when a fresh model will be made, which needs the training rows first."""
    if learner.base == FRESH:
        return None
    from daedap.lm.base import load_base  # torch takes seconds to import

    base = load_base(learner.base)
    tell([say("Base {name}, licence: {licence}", name=learner.base, licence=base.licence)])
    return base


def _fits(learner: Learner, base: Base | None) -> Fits:
    """Whether question, answer and end token fit: by the base's own tokenizer, or as if a character were a token."""
    if base:
        return base.prompt(learner.max_length).fits
    return lambda pair: len(pair.question) + len(pair.answer) + 8 <= learner.max_length


def _need_rows(file: Path, parts: Split) -> None:
    if not parts.rows("train"):
        raise DataError(
            "{file}: {rows} usable row(s), none of which is left to train on.",
            "Add rows, or keep none apart: --dev-size 0 --test-size 0",
            file=file,
            rows=len(parts.pairs),
        )
    if not parts.rows("dev"):
        tell([say("No dev rows: training can't stop early, and the last weights are kept.")])


def _source(file: Path, loaded: Loaded, splitting: Splitting, parts: Split) -> Json:
    counts = {side: parts.sides.count(side) for side in ("train", "dev", "test", "left_out", "unused")}
    leak = asdict(parts.leak)
    told = (
        "{train:,} rows to learn, {dev:,} to decide when to stop, {test:,} for the scores; "
        "{questions:.1%} of the test questions and {answers:.1%} of the test answers are known from training."
    )
    tell([say(told, **counts, **leak)])
    return {
        "file": str(file),
        "sha256": digest(file),
        "format": loaded.report.source.format,
        "encoding": loaded.report.source.encoding,
        "rows": loaded.report.rows,
        "usable": loaded.report.usable,
        **counts,
        "components": len(set(parts.components)),
        "split": splitting.split,
        "leak": leak,
    }


def _finish(run: Run, base: Base | None = None) -> Run:
    """Train, convert, index, score; the manifest comes last."""
    from daedap.lm.convert import write_engine  # torch takes seconds to import
    from daedap.lm.learn import learn

    seconds = {"prepare": run.settings["prepare_seconds"]}
    learn(run, base)
    seconds["train"] = run.learned["training"]["seconds"]
    started = time.perf_counter()
    write_engine(run)
    _remember(run)
    headline = judge_run(run) if run.settings["evaluate"] else {}
    seconds["evaluate"] = round(time.perf_counter() - started, 1)
    write_json(run.folder / "manifest.json", _manifest(run, seconds, headline))
    tell([say("Run {number} is complete: {folder}", number=run.number, folder=run.folder)])
    return run


def _remember(run: Run) -> None:
    """What the bot knows. The held-out rows are encoded by what was learned without them, for the bot that talks."""
    from daedap.lm.engine import open_engine

    train, dev, test = (read_side(run.folder, side) for side in SIDES)
    tell([say("learning which answers go with which questions")])
    seed, held_out = run.settings["recipe"]["seed"], [*dev, *test]
    slips = augment(train, ("typo",), _SLIPS, seed, held_out=held_out)
    more = [*_built_in_beside(train, held_out), *slips]
    memory = learn_memory(train, dev, more, open_engine(run), seed)
    with new_folder(run.folder / "index") as folder:
        memory.save(folder)
        memory.space.extended([*dev, *test]).save(folder)


def _built_in_beside(train: Sequence[Pair], held_out: Sequence[Pair]) -> list[Pair]:
    """Built-in pairs to learn from: no more than the file has rows, none where some of them are what is scored on."""
    pairs = {pair.id: pair for pair in built_in()}
    if any(pair.id in pairs for pair in held_out):
        return []
    known = {pair.id for pair in train}
    return [pairs[id_] for id_ in sorted(pairs.keys() - known)][: len(train)]


def _manifest(run: Run, seconds: Json, headline: Json) -> Json:
    return {
        **head(run),
        "parent": None,
        "data": json.loads((run.folder / "data" / "source.json").read_text(encoding="utf-8")),
        **run.learned,
        "seconds": seconds,
        "headline": headline,
        "files": store.sizes(run.folder),
    }
