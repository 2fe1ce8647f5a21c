"""From a file's rows to the sides that a run learns from, stops by and is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from daedap.commands.grow import grown
from daedap.commands.shared import tell
from daedap.data.check import Loaded
from daedap.data.split import Split, Splitting, need_rows, split
from daedap.data.store import SIDES
from daedap.files import digest
from daedap.language import say
from daedap.pair import Pair
from daedap.runs import Json, Run


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
