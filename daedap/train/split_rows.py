"""`daedap train --from RUN`: what a run takes over from the one it goes on from.

From a file's rows to the sides that a run learns from, stops by and is scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from daedap.config import Learner
from daedap.data.doctor import Loaded
from daedap.data.reader import Layout
from daedap.data.split import SIDES, Split, Splitting, grow, need_rows, read_sides, share, split
from daedap.errors import DataError, RunError, SettingsError
from daedap.files import digest
from daedap.i18n import say, tell
from daedap.runs import Json, Run
from daedap.types import Pair

_FREE = ("dropout", "precision", "device", "cache_gb", "fraction")
"""Options that may differ from the parent's."""


def inherited(parent: Run, learner: Learner, splitting: Splitting) -> tuple[Learner, Splitting]:
    """The parent's way of learning and of parting rows. Raises SettingsError when another is asked for."""
    if parent.command != "train":
        raise RunError(
            "--from {folder}: this is a base, not a run.",
            "Train on it: daedap train FILE --base {model}",
            folder=parent.folder,
            model=parent.folder / "model",
        )
    settings, data = parent.settings, parent.document("data/source.json")
    theirs = Learner(**{**settings["learner"], "layers": settings["plan"]["layers"]})
    sizes = {name: share(settings["splitting"][name], data["usable"]) for name in ("dev_size", "test_size")}
    parted = Splitting(**{**settings["splitting"], **sizes})
    return _taken_over(parent, learner, theirs), _taken_over(parent, splitting, parted)


def inherited_file(parent: Run, layout: Layout) -> tuple[Path, Layout]:
    """The parent's file, read as it was read then unless it is to be read otherwise."""
    settings = parent.settings
    return Path(settings["file"]), Layout(**settings["layout"]) if layout == Layout() else layout


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


def grown(
    parent: Run, file: Path, pairs: Sequence[Pair], splitting: Splitting, seed: int
) -> tuple[Split, frozenset[str]]:
    """The parent's rows, each on its side, with those of the file's pairs that it does not know.

    Also the ids of all rows that it had on no side it used. Raises DataError when none of them is to be learned.
    """
    before = read_sides(parent.folder)
    known = {pair.id for pair in before.pairs}
    parts = grow(before, [pair for pair in pairs if pair.id not in known], splitting, seed=seed)
    used = known - {pair.id for pair in before.rows("unused")}
    new = {side: {pair.id for pair in parts.rows(side)} - used for side in SIDES}
    if not new["train"]:
        raise DataError(
            "{file}: nothing to learn that run {parent} has not learned.",
            "Add rows; of {held_out} new one(s) that are kept apart for the scores, nothing is learned.",
            file=file,
            parent=parent.folder.name,
            held_out=len(new["dev"] | new["test"]),
        )
    return parts, frozenset().union(*new.values())


@dataclass(frozen=True)
class Parted:
    """Rows on their sides."""

    parts: Split
    new: frozenset[str] = frozenset()
    """Ids of those that the parent has not used."""

    def count_new(self) -> Json:
        """So many rows of each side are new."""
        return {side: sum(pair.id in self.new for pair in self.parts.rows(side)) for side in SIDES}


def part(file: Path, pairs: Sequence[Pair], splitting: Splitting, seed: int, parent: Run | None) -> Parted:
    """Part a file's rows, or add those that are new to the parent's. Raises DataError when there is none to learn."""
    nothing = frozenset[str]()
    parts, new = (
        grown(parent, file, pairs, splitting, seed) if parent else (split(pairs, splitting, seed=seed), nothing)
    )
    need_rows(parts, file)
    if "dev" not in parts.sides:
        tell([say("No dev rows: training can't stop early, and the last weights are kept.")])
    return Parted(parts, new)


def source_of(file: Path, loaded: Loaded, splitting: Splitting, parted: Parted) -> Json:
    """What a run keeps of where its rows come from; told at once."""
    parts, new = parted.parts, parted.count_new()
    counts = {side: parts.sides.count(side) for side in ("train", "dev", "test", "left_out", "unused")}
    leak = asdict(parts.leak)
    told = (
        "{train:,} rows to learn, {dev:,} to decide when to stop, {test:,} for the scores; "
        "{questions:.1%} of the test questions and {answers:.1%} of the test answers are known from training."
    )
    tell([say(told, **counts, **leak)])
    if parted.new:
        tell(
            [
                say(
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
        "split": splitting.split,
        "leak": leak,
    }
