"""A run's pairs on disk: `data/train.jsonl`, `dev.jsonl`, `test.jsonl`, each row with its id and its component.

Training rows that `--fraction` left aside are in `unused.jsonl`, for a run that goes on from this one.

Training, dev and test rows, parted so that no near-duplicate of a held-out question is ever trained on.

A component is a set of questions chained together by near-duplicates, and falls to one side as a whole. Its side is a
hash of its first question, and rows are taken in file order, so a row keeps its side whatever is appended to the file.
The price: a new row that would join components of different sides is left out (about 2 in 1,000 on real data).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from daedap.data.dedup import near_duplicates
from daedap.errors import DataError, RunError, SettingsError
from daedap.files import write_lines
from daedap.korean.text import comparison_form
from daedap.types import Message, Pair

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
    sides: list[SplitName] = []
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


T = TypeVar("T")
SplitName = Literal["train", "dev", "test", "left_out", "unused"]
Method = Literal["components", "random"]


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How rows are parted. Sizes are shares (0.1) or numbers of rows (1000), as in scikit-learn."""

    split: Method = "components"
    """components keeps near-duplicates together; random is the usual practice, and the run says how much leaks."""
    dev_size: float = 0.05
    """Rows that decide when to stop: a share, or about so many rows."""
    test_size: float = 0.1
    """Rows that are never learned, for the scores: a share, or about so many rows."""
    fraction: float = 1.0
    """Learn only this share of the training rows; a smaller share is part of a larger one."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise SettingsError("--fraction {value}: must be above 0 and at most 1.", "Try 0.2.", value=self.fraction)
        for name, value in (("dev-size", self.dev_size), ("test-size", self.test_size)):
            if not value >= 0:  # nor NaN
                raise SettingsError("--{name} {value}: must not be negative.", "Try 0.1.", name=name, value=value)


@dataclass(frozen=True, slots=True)
class Leak:
    """How much of the test rows can be copied from the training rows (shares, 0 to 1)."""

    questions: float
    """Test questions with a near-duplicate in train."""
    answers: float
    """Test answers that are also the answer of a training row."""


@dataclass(frozen=True)
class Split:
    """Every pair with its side and its component, in file order."""

    pairs: Sequence[Pair]
    sides: Sequence[SplitName]
    components: Sequence[int]
    """Row of the component's first question."""
    leak: Leak

    def rows(self, side: SplitName) -> list[Pair]:
        """The pairs of one side, in file order."""
        return [pair for pair, its_side in zip(self.pairs, self.sides, strict=True) if its_side == side]

    def components_of(self, side: SplitName) -> list[str]:
        """The component of each row of one side, named by the id of its first pair."""
        chosen = zip(self.components, self.sides, strict=True)
        return [self.pairs[component].id for component, its_side in chosen if its_side == side]


def split(pairs: Sequence[Pair], split_options: SplitOptions, *, seed: int = 0) -> Split:
    """Part the pairs. Raises SettingsError when nothing would be left to train on."""
    dev, test = (share(size, len(pairs)) for size in (split_options.dev_size, split_options.test_size))
    if dev + test >= 1:
        raise SettingsError(
            "--dev-size {dev} and --test-size {test} together take all {rows} rows.",
            "Lower one of them.",
            rows=len(pairs),
            dev=split_options.dev_size,
            test=split_options.test_size,
        )
    if split_options.split == "random":
        sides = _thinned(pairs, _at_random(len(pairs), dev, test, seed), split_options.fraction)
        leak = Leak(questions=_questions_leaked(pairs, sides), answers=_answers_leaked(pairs, sides))
        return Split(pairs, sides, range(len(pairs)), leak)
    sides, components = _by_components(pairs, dev, test)
    sides = _thinned(pairs, sides, split_options.fraction)
    return Split(pairs, sides, components, Leak(questions=0.0, answers=_answers_leaked(pairs, sides)))


def grow(before: Split, pairs: Sequence[Pair], split_options: SplitOptions, *, seed: int = 0) -> Split:
    """Part more pairs, which follow those of an earlier split: each of these keeps its side, and what learned learns.

    The sizes must be shares, for as many rows would mean another share of more.
    """
    everything, learned = [*before.pairs, *pairs], {pair.id for pair in before.rows("train")}
    before = replace(before, sides=["train" if side == "unused" else side for side in before.sides])
    dev, test = split_options.dev_size, split_options.test_size
    if split_options.split == "random":
        sides, components = [*before.sides, *_at_random(len(pairs), dev, test, seed)], list(range(len(everything)))
    else:
        sides, components = _by_components(everything, dev, test, before)
    thinned = _thinned(everything, sides, split_options.fraction, learned)
    leaked = _questions_leaked(everything, thinned) if split_options.split == "random" else 0.0
    return Split(everything, thinned, components, Leak(questions=leaked, answers=_answers_leaked(everything, thinned)))


def drawn(rows: Sequence[T], count: int, seed: int) -> list[T]:
    """So many of the rows (all, where there are fewer), in their order; the same ones for the same seed."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[row] for row in sorted(chosen)]


def context(pair: Pair) -> str:
    """What a pair asks: the question after its conversation, so that a bare "네" is not one question everywhere."""
    return "\n".join([*(turn.content for turn in pair.history), pair.question])


def need_rows(parts: Split, file: Path) -> None:
    """Raise DataError when none of the file's rows is left to train on."""
    if "train" not in parts.sides:
        raise DataError(
            "{file}: {rows} usable row(s), none of which is left to train on.",
            "Add rows, or keep none apart: --dev-size 0 --test-size 0",
            file=file,
            rows=len(parts.pairs),
        )


def share(size: float, rows: int) -> float:
    """A share, or a number of rows as a share of them."""
    return size if 0 <= size < 1 else size / max(rows, 1)


def _thinned(
    pairs: Sequence[Pair], sides: list[SplitName], fraction: float, learned: Container[str] = ()
) -> list[SplitName]:
    """Keep a share of the training rows, and those learned before: the smallest ids, so that shares are nested."""
    ids = sorted(pair.id for pair, side in zip(pairs, sides, strict=True) if side == "train")
    last = ids[max(round(fraction * len(ids)), 1) - 1] if ids else ""
    return [
        "unused" if side == "train" and pair.id > last and pair.id not in learned else side
        for pair, side in zip(pairs, sides, strict=True)
    ]


def _by_components(
    pairs: Sequence[Pair], dev: float, test: float, before: Split | None = None
) -> tuple[list[SplitName], list[int]]:
    """Sides and components; the first pairs are those of `before`, where there is one, and stay where they are."""
    components = _Components(len(pairs))
    sides: list[SplitName] = []
    known = len(before.pairs) if before else 0
    threads: dict[str, int] = {}
    first = _first_rows(pairs)
    for row, near in near_duplicates([context(pair) for pair in pairs]):
        pair = pairs[row]
        if before and row < known:
            sides.append(before.sides[row])
            components.join(row, {before.components[row]})
            if pair.conversation_id:
                threads.setdefault(pair.conversation_id, row)
            continue
        linked = [*near, threads[pair.conversation_id]] if pair.conversation_id in threads else near
        roots = {components.root(other) for other in linked if sides[other] != "left_out"}
        met = {sides[root] for root in roots}
        again = first[row] != row and sides[first[row]] == "left_out"  # it would join the same components
        if again or len(met) > 1:
            sides.append("left_out")
            continue
        sides.append(met.pop() if met else _side_of(pair, dev, test))
        components.join(row, roots)
        if pair.conversation_id:
            threads.setdefault(pair.conversation_id, row)
    return sides, [components.root(row) for row in range(len(pairs))]


def _first_rows(pairs: Sequence[Pair]) -> list[int]:
    """For each row, the first one that asks the very same."""
    first: dict[str, int] = {}
    return [first.setdefault(comparison_form(context(pair)), row) for row, pair in enumerate(pairs)]


def _side_of(pair: Pair, dev: float, test: float) -> SplitName:
    """A function of the question alone, uniform over questions."""
    digest = hashlib.blake2b(comparison_form(context(pair)).encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64
    return "test" if point < test else "dev" if point < test + dev else "train"


def _at_random(rows: int, dev: float, test: float, seed: int) -> list[SplitName]:
    """The usual practice, kept for comparison: it leaks, and `leak` says how much."""
    order = random.Random(seed).sample(range(rows), rows)
    n_test, n_dev = round(test * rows), round(dev * rows)
    sides: list[SplitName] = ["train"] * rows
    for place, row in enumerate(order[: n_test + n_dev]):
        sides[row] = "test" if place < n_test else "dev"
    return sides


def _questions_leaked(pairs: Sequence[Pair], sides: Sequence[SplitName]) -> float:
    first = _first_rows(pairs)
    learned = {first[row] for row, side in enumerate(sides) if side == "train"}
    leaked = set(learned)
    for row, others in near_duplicates([context(pair) for pair in pairs]):
        for other in others:  # a first row, as `first[row]` is
            if first[row] in learned:
                leaked.add(other)
            if other in learned:
                leaked.add(first[row])
    return sum(side == "test" and first[row] in leaked for row, side in enumerate(sides)) / max(sides.count("test"), 1)


def _answers_leaked(pairs: Sequence[Pair], sides: Sequence[SplitName]) -> float:
    known = {comparison_form(pair.answer) for pair, side in zip(pairs, sides, strict=True) if side == "train"}
    test = [pair for pair, side in zip(pairs, sides, strict=True) if side == "test"]
    return sum(comparison_form(pair.answer) in known for pair in test) / max(len(test), 1)


class _Components:
    """Disjoint sets whose root is always their first row."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, row: int, roots: set[int]) -> None:
        first = min(roots, default=row)
        for other in roots | {row}:
            self._parent[other] = first
