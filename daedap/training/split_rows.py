"""`daedap train --from RUN`: what a run takes over from the one it goes on from.

From a file's rows to the sides that a run learns from, stops by and is scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from daedap.config import ModelOptions
from daedap.data.doctor import Loaded
from daedap.data.reader import ReadOptions
from daedap.data.split import (
    Split,
    SplitName,
    SplitOptions,
    as_fraction,
    extend_split,
    read_rows,
    read_split,
    require_training_rows,
    split,
)
from daedap.errors import DataError, RunError, SettingsError
from daedap.files import digest
from daedap.i18n import tell, translate
from daedap.runs import Json, Run
from daedap.types import Pair

_USED: tuple[SplitName, ...] = ("train", "dev", "test")
_FREE = ("dropout", "precision", "device", "cache_gb", "fraction")
"""Options that may differ from the parent's."""


def parent_options(
    parent: Run, model_options: ModelOptions, split_options: SplitOptions
) -> tuple[ModelOptions, SplitOptions]:
    """The parent's way of learning and of parting rows. Raises SettingsError when another is asked for."""
    if parent.command != "train":
        raise RunError(
            "--from {folder}: this is a base, not a run.",
            "Train on it: daedap train FILE --base {model}",
            folder=parent.folder,
            model=parent.folder / "model",
        )
    settings, data = parent.settings, parent.document("data/source.json")
    theirs = ModelOptions(**{**settings["learner"], "layers": settings["plan"]["layers"]})
    sizes = {name: as_fraction(settings["splitting"][name], data["usable"]) for name in ("dev_size", "test_size")}
    parted = SplitOptions(**{**settings["splitting"], **sizes})
    return _taken_over(parent, model_options, theirs), _taken_over(parent, split_options, parted)


def parent_file(parent: Run, read_options: ReadOptions) -> tuple[Path, ReadOptions]:
    """The parent's file, read as it was read then unless it is to be read otherwise."""
    settings = parent.settings
    return Path(settings["file"]), ReadOptions(**settings["layout"]) if read_options == ReadOptions() else read_options


def _taken_over(parent: Run, asked: Any, theirs: Any) -> Any:
    """The parent's options with the asked ones that are free; an option that was left out is not asked for."""
    for option in fields(asked):
        wish, was = getattr(asked, option.name), getattr(theirs, option.name)
        if option.name not in _FREE and wish not in (option.default, was):
            raise SettingsError(
                "--{option} {wish}: run {parent} was made with {was}, and what goes on from it keeps that.",
                "Leave --{option} out, or train without --from.",
                option=option.name.replace("_", "-"),
                wish=wish,
                parent=parent.folder.name,
                was=was,
            )
    return replace(theirs, **{name: getattr(asked, name) for name in _FREE if hasattr(asked, name)})


def continue_split(
    parent: Run, file: Path, pairs: Sequence[Pair], split_options: SplitOptions, seed: int
) -> tuple[Split, frozenset[str]]:
    """The parent's rows, each on its side, with those of the file's pairs that it does not know.

    Also the ids of all rows that it had on no side it used. Raises DataError when none of them is to be learned.
    """
    before = read_split(parent.folder)
    known = {pair.id for pair in before.pairs}
    parts = extend_split(before, [pair for pair in pairs if pair.id not in known], split_options, seed=seed)
    used = known - {pair.id for pair in before.rows("unused")}
    new = {name: {pair.id for pair in parts.rows(name)} - used for name in _USED}
    if not new["train"]:
        raise DataError(
            "{file}: nothing to learn that run {parent} has not learned.",
            "Add rows; of {held_out} new one(s) that are kept apart for the scores, nothing is learned.",
            file=file,
            parent=parent.folder.name,
            held_out=len(new["dev"] | new["test"]),
        )
    return parts, frozenset().union(*new.values())


def with_parents_lookup(pairs: Sequence[Pair], parent: Run | None) -> list[Pair]:
    """The pairs that are only looked up, then those of the parent that the file does not hold."""
    known = {pair.id for pair in pairs}
    before = read_rows(parent.folder, "lookup") if parent else []
    return [*pairs, *(pair for pair in before if pair.id not in known)]


@dataclass(frozen=True)
class SplitRows:
    """Rows on their sides."""

    parts: Split
    new: frozenset[str] = frozenset()
    """Ids of those that the parent has not used."""

    def count_new(self) -> Json:
        """So many rows of each side are new."""
        return {name: sum(pair.id in self.new for pair in self.parts.rows(name)) for name in _USED}


def part(file: Path, pairs: Sequence[Pair], split_options: SplitOptions, seed: int, parent: Run | None) -> SplitRows:
    """Part a file's rows, or add those that are new to the parent's. Raises DataError when there is none to learn."""
    nothing = frozenset[str]()
    parts, new = (
        continue_split(parent, file, pairs, split_options, seed)
        if parent
        else (split(pairs, split_options, seed=seed), nothing)
    )
    require_training_rows(parts, file)
    if "dev" not in parts.assignments:
        tell([translate("No dev rows: training can't stop early, and the last weights are kept.")])
    return SplitRows(parts, new)


def describe_source(file: Path, loaded: Loaded, split_options: SplitOptions, parted: SplitRows) -> Json:
    """What a run keeps of where its rows come from; told at once."""
    parts, new = parted.parts, parted.count_new()
    counts = {side: parts.assignments.count(side) for side in ("train", "dev", "test", "left_out", "unused")}
    leak = asdict(parts.leak)
    told = (
        "{train:,} rows to learn, {dev:,} to decide when to stop, {test:,} for the scores; "
        "{questions:.1%} of the test questions and {answers:.1%} of the test answers are known from training."
    )
    tell([translate(told, **counts, **leak)])
    if parted.new:
        tell(
            [
                translate(
                    "Of these are new: {train:,} to learn, {dev:,} to decide when to stop, {test:,} for the scores.",
                    **new,
                )
            ]
        )
    return {
        "file": str(file),
        "sha256": digest(file),
        "format": loaded.report.source.format,
        "encoding": loaded.report.source.encoding,
        "rows": loaded.report.rows,
        "usable": loaded.report.usable,
        **counts,
        **({"new": new} if parted.new else {}),
        "components": len(set(parts.components)),
        "split": split_options.split,
        "leak": leak,
    }
