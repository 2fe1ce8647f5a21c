"""A run's pairs on disk: `data/train.jsonl`, `dev.jsonl`, `test.jsonl`, each row with its id and its component.

Training rows that `--fraction` left aside are in `unused.jsonl`, for a run that goes on from this one.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from daedap.data.split import Leak, Side, Split
from daedap.errors import RunError
from daedap.files import write_lines
from daedap.pair import Message, Pair

StoredSide = Literal["train", "dev", "test", "unused"]
HELD_OUT: tuple[StoredSide, ...] = ("dev", "test")
SIDES: tuple[StoredSide, ...] = ("train", *HELD_OUT)
_KEPT: tuple[StoredSide, ...] = (*SIDES, "unused")


def write_sides(folder: Path, parts: Split, first: Container[str] = ()) -> None:
    """Write each side of a split, pairs with these ids first: of two that are equally near, the first one is told."""
    for side in _KEPT:
        rows = list(zip(parts.rows(side), parts.components_of(side), strict=True))
        rows.sort(key=lambda row: row[0].id not in first)
        records = [{"id": pair.id, "component": component, **asdict(pair)} for pair, component in rows]
        write_lines(_file(folder, side), records)


def read_sides(folder: Path) -> Split:
    """The split that was written, but for what it left out; how much it leaks is not read."""
    pairs: list[Pair] = []
    sides: list[Side] = []
    names: list[str] = []
    for side in _KEPT:
        for record in _records(folder, side):
            pairs.append(_pair(record))
            sides.append(side)
            names.append(str(record["component"]))
    first: dict[str, int] = {}
    components = [first.setdefault(name, row) for row, name in enumerate(names)]
    return Split(pairs, sides, components, Leak(0.0, 0.0))


def read_side(folder: Path, side: StoredSide) -> list[Pair]:
    """The pairs of one side."""
    return [_pair(record) for record in _records(folder, side)]


def read_components(folder: Path, side: StoredSide) -> list[str]:
    """The component of each pair of one side."""
    return [str(record["component"]) for record in _records(folder, side)]


def _file(folder: Path, side: StoredSide) -> Path:
    return folder / "data" / f"{side}.jsonl"


def _records(folder: Path, side: StoredSide) -> list[dict[str, object]]:
    path = _file(folder, side)
    try:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise RunError(
            "{file}: the run's rows can't be read ({error}).",
            "Restore the file from a backup or train again.",
            file=path,
            error=error,
        ) from error


def _pair(record: dict[str, object]) -> Pair:
    fields = {name: value for name, value in record.items() if name not in ("id", "component")}
    fields["history"] = tuple(Message(**turn) for turn in fields["history"])  # type: ignore[attr-defined]
    return Pair(**fields)  # type: ignore[arg-type]
