"""The rows of a run: train, dev and test without near-duplicate leakage, augmented copies, storage in `data/`.

A component is a set of questions connected by near-duplicates (see dedup.py); all its rows go to the same split. The
split is a hash of the component's first question and rows are assigned in file order, so a row keeps its split when
rows are appended to the file. The cost: a new row that would connect components of different splits is left out (about
2 in 1,000 on ChatbotData).

On disk: `data/train.jsonl`, `dev.jsonl`, `test.jsonl`, one row a line with its id and its component; training rows
that `--fraction` excludes are in `unused.jsonl`, for a run that continues from this one. Rows that are too long for the
model are in `lookup.jsonl`: the bot finds them, but nothing is trained or scored on them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from daedap.config import Perturbation, SplitOptions
from daedap.data.dedup import near_duplicates
from daedap.errors import DataError, RunError, SettingsError
from daedap.files import write_lines
from daedap.korean.perturb import perturb_each
from daedap.korean.text import comparison_form
from daedap.types import Pair

T = TypeVar("T")
SplitName = Literal["train", "dev", "test", "left_out", "unused"]
StoredSplit = Literal["train", "dev", "test", "unused", "lookup"]
HELD_OUT: tuple[StoredSplit, ...] = ("dev", "test")
SPLITS: tuple[StoredSplit, ...] = ("train", *HELD_OUT)
_ASSIGNED: tuple[Literal["train", "dev", "test", "unused"], ...] = ("train", "dev", "test", "unused")


@dataclass(frozen=True, slots=True)
class Leakage:
    """Share of the test rows (0 to 1) that repeats training rows."""

    questions: float
    """Test questions with a near-duplicate among the training questions."""
    answers: float
    """Test answers that are also the answer of a training row."""


@dataclass(frozen=True)
class Split:
    """Every pair with its split and its component, in file order."""

    pairs: Sequence[Pair]
    assignments: Sequence[SplitName]
    """The split of each pair."""
    components: Sequence[int]
    """For each pair, the row of its component's first question."""
    leak: Leakage

    def rows(self, name: SplitName) -> list[Pair]:
        """The pairs of one split, in file order."""
        return [pair for pair, assigned in zip(self.pairs, self.assignments, strict=True) if assigned == name]

    def components_of(self, name: SplitName) -> list[str]:
        """The component of each pair of one split, named by the id of the component's first pair."""
        rows = zip(self.components, self.assignments, strict=True)
        return [self.pairs[component].id for component, assigned in rows if assigned == name]


def split(pairs: Sequence[Pair], split_options: SplitOptions, *, seed: int = 0) -> Split:
    """Assign every pair to a split. Raises SettingsError when no row would be left to train on."""
    dev, test = (as_fraction(size, len(pairs)) for size in (split_options.dev_size, split_options.test_size))
    if dev + test >= 1:
        raise SettingsError(
            "--dev-size {dev} and --test-size {test} together take all {rows} rows.",
            "Lower one of them.",
            rows=len(pairs),
            dev=split_options.dev_size,
            test=split_options.test_size,
        )
    nothing = Split([], [], [], Leakage(0.0, 0.0))
    return extend_split(nothing, pairs, replace(split_options, dev_size=dev, test_size=test), seed=seed)


def extend_split(previous: Split, pairs: Sequence[Pair], split_options: SplitOptions, *, seed: int = 0) -> Split:
    """Append pairs to an earlier split: earlier pairs keep their split, and trained ones stay trained.

    The sizes must be fractions: a number of rows would be another fraction of more rows.
    """
    all_pairs, trained = [*previous.pairs, *pairs], {pair.id for pair in previous.rows("train")}
    unsampled: list[SplitName] = ["train" if name == "unused" else name for name in previous.assignments]
    previous = replace(previous, assignments=unsampled)
    dev, test, is_random = split_options.dev_size, split_options.test_size, split_options.split == "random"
    if is_random:
        assignments = [*unsampled, *_split_randomly(len(pairs), dev, test, seed)]
        components = list(range(len(all_pairs)))
    else:
        assignments, components = _split_by_components(all_pairs, dev, test, previous)
    assignments = _apply_fraction(all_pairs, assignments, split_options.fraction, trained)
    leaked = _leaked_questions(all_pairs, assignments) if is_random else 0.0
    return Split(all_pairs, assignments, components, Leakage(leaked, _leaked_answers(all_pairs, assignments)))


def sample_rows(rows: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` random rows in their original order (all, where there are fewer); deterministic in the seed."""
    indices = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[index] for index in sorted(indices)]


def question_in_context(pair: Pair) -> str:
    """The history and the question as one text: a bare "네" is a different question after different messages."""
    return "\n".join([*(message.content for message in pair.history), pair.question])


def require_training_rows(parts: Split, file: Path) -> None:
    """Raise DataError when none of the file's rows is assigned to train."""
    if "train" not in parts.assignments:
        raise DataError(
            "{file}: {rows} usable row(s), none of which is left to train on.",
            "Add rows, or keep none apart: --dev-size 0 --test-size 0",
            file=file,
            rows=len(parts.pairs),
        )


def as_fraction(size: float, rows: int) -> float:
    """A size option as a fraction of `rows`: below 1 it is one already, otherwise it is a number of rows."""
    return size if 0 <= size < 1 else size / max(rows, 1)


def _apply_fraction(
    pairs: Sequence[Pair], assignments: list[SplitName], fraction: float, trained: Container[str]
) -> list[SplitName]:
    """Mark training rows beyond `fraction` as unused, never `trained` ones.

    Rows with the smallest ids stay, so that the rows of a smaller fraction are a subset of a larger one's.
    """
    ids = sorted(pair.id for pair, name in zip(pairs, assignments, strict=True) if name == "train")
    last = ids[max(round(fraction * len(ids)), 1) - 1] if ids else ""
    return [
        "unused" if name == "train" and pair.id > last and pair.id not in trained else name
        for pair, name in zip(pairs, assignments, strict=True)
    ]


def _split_by_components(
    pairs: Sequence[Pair], dev: float, test: float, previous: Split
) -> tuple[list[SplitName], list[int]]:
    """Assignments and components. The first pairs are those of `previous` and keep their assignment."""
    components = _DisjointSets(len(pairs))
    assignments: list[SplitName] = []
    conversations: dict[str, int] = {}  # conversation id → its first row
    first = _first_occurrences(pairs)
    for row, near in near_duplicates([question_in_context(pair) for pair in pairs], components.roots):
        pair = pairs[row]
        if row < len(previous.pairs):
            name, roots = previous.assignments[row], {previous.components[row]}
        else:
            linked = [*near, conversations[pair.conversation_id]] if pair.conversation_id in conversations else near
            roots = {*components.roots[linked].tolist()} - {_DisjointSets.LEFT_OUT}
            names = {assignments[root] for root in roots}
            # A repetition of a question that was left out would connect the same components again.
            if len(names) > 1 or (first[row] != row and assignments[first[row]] == "left_out"):
                name = "left_out"
            else:
                name = names.pop() if names else _hashed_split(pair, dev, test)
        assignments.append(name)
        if name == "left_out":
            components.roots[row] = _DisjointSets.LEFT_OUT
            continue
        components.join(row, roots)
        if pair.conversation_id:
            conversations.setdefault(pair.conversation_id, row)
    return assignments, [
        row if root == _DisjointSets.LEFT_OUT else root for row, root in enumerate(components.roots.tolist())
    ]


def _first_occurrences(pairs: Sequence[Pair]) -> list[int]:
    """For each row, the first row with the same comparison form."""
    first: dict[str, int] = {}
    return [first.setdefault(_context_form(pair), row) for row, pair in enumerate(pairs)]


def _hashed_split(pair: Pair, dev: float, test: float) -> SplitName:
    """The split by a hash of the question alone; hashes are uniform over [0, 1)."""
    digest = hashlib.blake2b(_context_form(pair).encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64
    return "test" if point < test else "dev" if point < test + dev else "train"


def _split_randomly(rows: int, dev: float, test: float, seed: int) -> list[SplitName]:
    """The usual random split, kept for comparison with published numbers: it leaks near-duplicates."""
    order = random.Random(seed).sample(range(rows), rows)
    n_test, n_dev = round(test * rows), round(dev * rows)
    tested, held = {*order[:n_test]}, {*order[: n_test + n_dev]}
    return ["test" if row in tested else "dev" if row in held else "train" for row in range(rows)]


def _leaked_questions(pairs: Sequence[Pair], assignments: Sequence[SplitName]) -> float:
    first = _first_occurrences(pairs)
    trained = {first[row] for row, name in enumerate(assignments) if name == "train"}
    order = sorted({*first}, key=lambda row: row not in trained)
    groups = np.array([row not in trained for row in order], dtype=np.int64)
    near = near_duplicates([question_in_context(pairs[row]) for row in order], groups)
    leaked = {order[place] for place, others in near if any(not groups[other] for other in others)} | trained
    count = sum(name == "test" and first[row] in leaked for row, name in enumerate(assignments))
    return count / max(assignments.count("test"), 1)


def _leaked_answers(pairs: Sequence[Pair], assignments: Sequence[SplitName]) -> float:
    answers = [(comparison_form(pair.answer), name) for pair, name in zip(pairs, assignments, strict=True)]
    known = {answer for answer, name in answers if name == "train"}
    test = [answer in known for answer, name in answers if name == "test"]
    return sum(test) / max(len(test), 1)


class _DisjointSets:
    """Sets of rows, named by their first row; all rows that are left out are one more."""

    LEFT_OUT = -1

    def __init__(self, size: int) -> None:
        self.roots = np.arange(size, dtype=np.int64)

    def join(self, row: int, roots: set[int]) -> None:
        first = min(roots, default=row)
        for other in roots - {first}:
            self.roots[self.roots == other] = first
        self.roots[row] = first


# ---- augmentation ----


def augment(
    pairs: Sequence[Pair], kinds: Sequence[Perturbation], share: float, seed: int, *, held_out: Sequence[Pair] = ()
) -> list[Pair]:
    """Copies of pairs with perturbed questions, `share` per pair and kind, without the pairs themselves.

    A copy is left out when nothing changed, when its question exists with another answer, or when it is a
    near-duplicate of a held-out question. The copies of a pair depend on the pair and the seed, not on row order.
    """
    copies = [copy for kind in kinds for copy in _without_leakage(held_out, [*_copies(pairs, kind, share, seed)])]
    answers = defaultdict(set)
    for pair in (*pairs, *copies):
        answers[_context_form(pair)].add(pair.answer)
    known = {*map(_key, pairs)}
    unambiguous = {_key(copy): copy for copy in copies if len(answers[_context_form(copy)]) == 1}
    return [copy for key, copy in unambiguous.items() if key not in known]


def without_question(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Copies of about `share` of the pairs with an empty question and no history (for P(answer) alone)."""
    sampled = (pair for pair in pairs if random.Random(f"{seed} null {pair.id}").random() < share)
    return [replace(pair, question="", history=()) for pair in sampled]


def _copies(pairs: Sequence[Pair], kind: Perturbation, share: float, seed: int) -> Iterator[Pair]:
    sampled: list[tuple[Pair, random.Random]] = []
    for pair in pairs:
        rng = random.Random(f"{seed} {kind} {pair.id}")
        sampled += [(pair, rng)] * (int(share) + (rng.random() < share % 1))
    questions = perturb_each([pair.question for pair, _ in sampled], kind, [rng for _, rng in sampled])
    for (pair, _), question in zip(sampled, questions, strict=True):
        if question != pair.question:
            yield replace(pair, question=question)


def _without_leakage(held_out: Sequence[Pair], copies: list[Pair]) -> list[Pair]:
    """The copies that are no near-duplicates of a held-out question."""
    forms = list(dict.fromkeys(map(_context_form, (*held_out, *copies))))
    held = len({*map(_context_form, held_out)})
    groups = (np.arange(len(forms)) >= held).astype(np.int64)
    hits = near_duplicates(forms, groups)
    near = {forms[row] for row, others in hits if row < held or any(other < held for other in others)}
    return [copy for copy in copies if _context_form(copy) not in near]


def _context_form(pair: Pair) -> str:
    return comparison_form(question_in_context(pair))


def _key(pair: Pair) -> tuple[str, str]:
    return question_in_context(pair), pair.answer


# ---- storage ----


def write_split(folder: Path, parts: Split, first: Container[str] = ()) -> None:
    """Write each stored split below `folder/data`.

    Pairs whose ids are in `first` come first: of two equally near questions the index returns the earlier one.
    """
    for name in _ASSIGNED:
        rows = list(zip(parts.rows(name), parts.components_of(name), strict=True))
        rows.sort(key=lambda row: row[0].id not in first)
        records = [{"id": pair.id, "component": component, **asdict(pair)} for pair, component in rows]
        write_lines(_file(folder, name), records)


def read_split(folder: Path) -> Split:
    """The split that was written, without left-out rows; its leakage is not stored and reads as 0."""
    rows = [(name, record) for name in _ASSIGNED for record in _records(folder, name)]
    first: dict[object, int] = {}
    components = [first.setdefault(record["component"], row) for row, (_, record) in enumerate(rows)]
    return Split([_pair(record) for _, record in rows], [name for name, _ in rows], components, Leakage(0.0, 0.0))


def write_lookup(folder: Path, pairs: Sequence[Pair]) -> None:
    """Write the rows that are only looked up, if there are any."""
    if pairs:
        records = [{"id": pair.id, "component": pair.id, **asdict(pair)} for pair in pairs]
        write_lines(_file(folder, "lookup"), records)


def read_rows(folder: Path, name: StoredSplit) -> list[Pair]:
    """The pairs of one split of a run; no lookup rows where none were written."""
    if name == "lookup" and not _file(folder, name).exists():
        return []
    return [_pair(record) for record in _records(folder, name)]


class RunRows(dict[StoredSplit, list[Pair]]):
    """A run's rows by split. A file is parsed when its rows are first asked for, and once."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: StoredSplit) -> list[Pair]:
        return self.setdefault(name, read_rows(self._folder, name))

    @property
    def held_out(self) -> list[Pair]:
        """Dev and test rows."""
        return [pair for name in HELD_OUT for pair in self[name]]


def read_components(folder: Path, name: StoredSplit) -> list[str]:
    """The component of each pair of one split of a run."""
    return [str(record["component"]) for record in _records(folder, name)]


def _file(folder: Path, name: StoredSplit) -> Path:
    return folder / "data" / f"{name}.jsonl"


def _records(folder: Path, name: StoredSplit) -> list[dict[str, object]]:
    path = _file(folder, name)
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


def _pair(record: Mapping[str, Any]) -> Pair:
    fields = {name: value for name, value in record.items() if name not in ("id", "component")}
    if "thread" in fields:  # what runs of version 0.1 call conversation_id
        fields["conversation_id"] = fields.pop("thread")
    return Pair.from_json(fields)
