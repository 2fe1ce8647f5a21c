"""Run folders: numbered, never overwritten, complete once their manifest is there.

    runs/0007/config.json     what the user chose; never changed; with it the run can be resumed
              state.json      where it stands: plan, machine, seconds of the stages that are done
              data/ log.jsonl checkpoints/ model/ or adapter/ training.json engine/ index/ evaluation/
              manifest.json   written last

Every file and folder is made under a temporary name and renamed, so a file with its final name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from daedap.config import ModelOptions, ReadOptions, SplitOptions, TrainOptions, read_train_options
from daedap.errors import BaseError, DataError, RunError, SettingsError, StorageError
from daedap.files import add_line, digest, new_folder, storage_errors, sweep, write_json

Json = dict[str, Any]
DATABASE = "daedap.db"
"""The database in the folder of the runs: lessons, conversations, votes; `DAEDAP_DB` may name another by URL."""
FORMAT = 2
"""Version of the layout of a run's folder, in its config and manifest. 1 had settings.json, and no version."""
MUTABLE_FILES = frozenset({"log.jsonl", "verified.json"})
"""Files of a complete run that may change: its log, and on which processors its engine was verified."""

_STALE = 60.0
"""Seconds after which a scratch folder that no process holds is deleted."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the user chose for a training: the document `config.json`."""

    file: str
    read: ReadOptions = field(default_factory=ReadOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    parent: str | None = None
    """The run that it continues: its folder's name beside this run's, or its absolute path."""
    evaluate: bool = True
    study: str | None = None
    """The study that found these options, and the trial: `name:14`."""
    launch: str | None = None
    """Identifies all attempts of one `torchrun`."""

    def to_json(self) -> Json:
        """A JSON object; the budget in seconds."""
        budget = self.train.budget
        train = {**asdict(self.train), "budget": budget and budget.total_seconds()}
        return {"format": FORMAT, "command": "train", **asdict(self), "train": train}

    @classmethod
    def from_json(cls, document: Json) -> TrainConfig:
        """The inverse of `to_json`. Raises TypeError and KeyError for other documents."""
        values = {name: document[name] for name in cls.__dataclass_fields__}
        for name, options in (("read", ReadOptions), ("split", SplitOptions), ("model", ModelOptions)):
            values[name] = options(**values[name])
        return cls(**{**values, "train": read_train_options(values["train"])})


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder. It is complete when its manifest exists."""

    folder: Path

    @property
    def number(self) -> int:
        """The run's number; its folder's name."""
        return int(self.folder.name) if self.folder.name.isdecimal() else 0

    @property
    def complete(self) -> bool:
        """Whether training went to its end."""
        return (self.folder / "manifest.json").exists()

    @property
    def manifest(self) -> Json:
        """What the run is and where it came from. Raises RunError when unfinished or broken."""
        return self.document("manifest.json")

    @property
    def config(self) -> TrainConfig:
        """What the user chose for this training. Raises RunError when it is missing or broken."""
        document = self.document("config.json")
        try:
            return TrainConfig.from_json(document)
        except (TypeError, KeyError, SettingsError) as error:
            raise self._unreadable("config.json", error) from error

    @property
    def state(self) -> Json:
        """Where the run stands: plan, machine and seconds of the stages; empty before its first stage has ended."""
        return self.document("state.json") if (self.folder / "state.json").exists() else {}

    def update_state(self, **values: object) -> None:
        """Record values in `state.json`."""
        write_json(self.folder / "state.json", {**self.state, **values})

    @property
    def command(self) -> str:
        """Which command began it: train or pretrain."""
        return str(self.document("config.json")["command"])

    @property
    def parent(self) -> Run | None:
        """The run that this one continues; its folder may be gone."""
        name = self.config.parent
        return Run(self.folder.parent / name) if name else None

    @property
    def new_rows(self) -> int:
        """Number of training rows that the parent has not learned; they come first."""
        count: int = self.document("data/source.json")["new"]["train"]
        return count

    @property
    def trained(self) -> Json:
        """The result of the training: base, rows, limits, losses, machine; part of the manifest later."""
        return self.document("training.json")

    def to_json(self) -> Json:
        """The manifest and where it lies."""
        return {"folder": str(self.folder), **self.manifest}

    def lines(self) -> list[str]:
        """The most important scores, for a terminal; none without an evaluation."""
        summary = self.folder / "evaluation" / "summary.txt"
        return summary.read_text(encoding="utf-8").splitlines() if summary.exists() else []

    @property
    def headline(self) -> Json:
        """Metric → score on all test rows: the bot's, and the model's where the bot has none.

        From the saved evaluation, which `daedap evaluate` may have replaced by a larger one since the end of the
        training; from the manifest if there is none.
        """
        if not (self.folder / "evaluation" / "scores.json").exists():
            at_training_end: Json = self.manifest.get("headline", {})
            return at_training_end
        scores = self.document("evaluation/scores.json").get("scores", {})
        of_all = {**scores.get("model", {}).get("all", {}), **scores.get("bot", {}).get("all", {})}
        return {metric: score["value"] for metric, score in of_all.items() if score["value"] is not None}

    def document(self, name: str) -> Json:
        """A JSON document of the run, by its path in the folder. Raises RunError when it is missing or broken."""
        try:
            value: Json = json.loads((self.folder / name).read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError(f"{type(value).__name__}, not an object")
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except (ValueError, OSError) as error:
            raise self._unreadable(name, error) from error
        return value

    def _missing(self, name: str) -> RunError:
        if name != "config.json":
            what = "{folder}: the run has no {name}: it was interrupted or damaged."
            remedy = "Go on with it: daedap {begun} --resume {folder}"
            return RunError(what, remedy, folder=self.folder, name=name, begun=self.command)
        what = "{folder}: not a run, or one that ended before it began: it has no {name}."
        if (self.folder / "settings.json").exists():
            what = "{folder}: this run was made by an earlier version of daedap."
        return RunError(what, "Train again: daedap train FILE", folder=self.folder, name=name)

    def _unreadable(self, name: str, error: Exception) -> RunError:
        return RunError(
            "{folder}: {name} can't be read ({error}).",
            "Restore the folder from a backup or train again.",
            folder=self.folder,
            name=name,
            error=error,
        )

    def check_files(self) -> None:
        """Raise RunError when a file that the manifest names is missing or has another size.

        `evaluation/` is not listed there: it may have been replaced. A run of another format raises RunError, too.
        """
        manifest = self.manifest
        if manifest.get("format") != FORMAT:
            raise RunError(
                "{folder}: this run has the format {found}, and this daedap reads the format {known}.",
                "Train again, or install the version that made it: daedap {version}",
                folder=self.folder,
                found=manifest.get("format", 1),
                known=FORMAT,
                version=manifest.get("daedap", "?"),
            )
        for name, size in manifest["files"].items():
            path = self.folder / name
            actual = path.stat().st_size if path.exists() else 0
            if actual != size:
                raise RunError(
                    "{path}: {found:,} bytes instead of {size:,}: the run is damaged.",
                    "Restore the file from a backup or train again.",
                    path=path,
                    found=actual,
                    size=size,
                )

    def note(self, event: str, **fields: object) -> None:
        """Append one line to the run's log."""
        add_line(self.folder / "log.jsonl", {"event": event, **fields}, lasting=False)

    @contextmanager
    def discard_if_not_started(self) -> Iterator[None]:
        """A new run that is refused, or finds no space, before its first checkpoint leaves nothing behind."""
        try:
            yield
        except (BaseError, DataError, SettingsError, StorageError):  # RunError: somebody else has it
            if not any((self.folder / "checkpoints").glob("step-*")):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        except KeyboardInterrupt:
            if not (self.folder / "config.json").exists():  # nothing to resume from
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def busy(self) -> bool:
        """Whether a process is training it right now."""
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run while it is trained; the OS releases the lock when the process dies.

        First deletes temporary files that a killed process left.
        """
        try:
            lock = FileLock(self.folder / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                "{folder}: another process is training this run.",
                "Wait until it ends, or end it first.",
                folder=self.folder,
            ) from error
        with lock:
            sweep(self.folder)
            yield


def create(runs: Path) -> Run:
    """Make the next numbered folder; several processes may ask at once."""
    with storage_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
        while True:
            number = 1 + max((run.number for run in list_runs(runs)), default=0)
            with suppress(FileExistsError):  # somebody else was faster: take the next number
                (runs / f"{number:04d}").mkdir()
                return Run(runs / f"{number:04d}")


@contextmanager
def scratch_folder(runs: Path, prefix: str) -> Iterator[Path]:
    """A folder beside the runs, where there is room for models; deleted at the end, as are those of killed processes.

    A folder of the runs that was made for it goes too.
    """
    new = not runs.exists()
    with storage_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
        for left in runs.glob(f"{prefix}*"):
            if time.time() - left.stat().st_mtime > _STALE and not Run(left).busy:
                shutil.rmtree(left, ignore_errors=True)
        run = Run(Path(tempfile.mkdtemp(prefix=prefix, dir=runs)))
        try:
            with run.locked():
                yield run.folder
        finally:
            shutil.rmtree(run.folder, ignore_errors=True)
            if new:
                with suppress(OSError):  # not empty: another process has made a run
                    runs.rmdir()


def list_runs(runs: Path) -> list[Run]:
    """All runs by number, unfinished ones too."""
    if not runs.is_dir():
        return []
    folders = sorted(path for path in runs.iterdir() if path.is_dir() and path.name.isdecimal())
    return sorted((Run(folder) for folder in folders), key=lambda run: run.number)


def unfinished(runs: Path) -> list[Run]:
    """Runs that were interrupted and can be resumed, by number."""
    return [run for run in list_runs(runs) if not run.complete and (run.folder / "config.json").exists()]


def find(name: str, runs: Path) -> Run:
    """A complete, undamaged run by number (`3`), folder, `latest` or `best`. Raises RunError."""
    run = _named(name, runs)
    run.check_files()
    return run


def interrupted(name: str, runs: Path, command: str = "train") -> Run:
    """An unfinished run by number or folder, or the latest unfinished one. Raises RunError."""
    if name == "latest":
        waiting = unfinished(runs)
        if not waiting:
            raise RunError(
                "{runs}: no interrupted run.", "Start one: daedap {command} FILE", runs=runs, command=command
            )
        return waiting[-1]
    run = _named(name, runs)
    if run.command != command:
        raise RunError(
            "{folder} was begun by daedap {begun}.",
            "Go on with it: daedap {begun} --resume {folder}",
            folder=run.folder,
            begun=run.command,
        )
    if run.complete:
        raise RunError(
            "{folder}: the run is complete; there is nothing to resume.",
            "Start the next one: daedap {command} FILE",
            folder=run.folder,
            command=command,
        )
    return run


def _named(name: str, runs: Path) -> Run:
    if name in ("latest", "best"):
        complete = [run for run in list_runs(runs) if run.complete]
        if not complete:
            raise RunError("{runs}: no complete run yet.", "Make one: daedap train FILE", runs=runs)
        return complete[-1] if name == "latest" else max(complete, key=_ranking_key)
    if Path(name).suffix == ".zip" and Path(name).is_file():
        return Run(unpacked(Path(name)))
    folder = runs / f"{int(name):04d}" if name.isdecimal() else Path(name)
    if not folder.is_dir():
        known = ", ".join(str(run.number) for run in list_runs(runs) if run.complete) or "-"
        raise RunError(
            "{folder}: no such run.",
            "Runs in {runs}: {known}. See them with: daedap runs",
            folder=folder,
            runs=runs,
            known=known,
        )
    return Run(folder)


def _ranking_key(run: Run) -> tuple[float, int]:
    """Hits@1/20 of the bot; the later of equals; never a damaged one."""
    try:
        return run.headline.get("hits_at_1") or 0.0, run.number
    except RunError:
        return -1.0, run.number


def unpacked(archive: Path) -> Path:
    """The folder of a bundle's .zip, unpacked once into a cache by its content. Raises RunError.

    `DAEDAP_CACHE` names the cache; by default it is `.cache/daedap` in the user's home.
    """
    cache = Path(os.environ.get("DAEDAP_CACHE") or Path.home() / ".cache" / "daedap")
    folder = cache / "bundles" / digest(archive)[:32]
    try:
        with storage_errors(cache):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _unpack(archive, folder)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise RunError(
            "{file}: not a bundle that can be read ({error}).",
            "Export it again: daedap export RUN --to bundle {file}",
            file=archive,
            error=error,
        ) from error
    except StorageError as error:
        raise RunError(
            "{file}: can't be unpacked into {folder}.",
            "Let DAEDAP_CACHE name a folder that can be written, or unpack it yourself and name the folder.",
            file=archive,
            folder=cache,
        ) from error
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file, new_folder(folder) as new:
        if "manifest.json" not in file.namelist():
            raise ValueError("no manifest.json")
        file.extractall(new)  # leaves out drives, leading slashes and ".." of names, and makes no links


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of a run that must not change after its end, by relative path."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path.stat().st_size
        for name, path in paths.items()
        if name.parts[0] != "evaluation" and name.name not in MUTABLE_FILES and not name.name.endswith(".lock")
    }
