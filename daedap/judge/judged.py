"""What a run keeps of its test, and the rows on which two runs can be compared fairly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from daedap.data.similar import near_duplicates
from daedap.data.split import context
from daedap.data.store import read_side
from daedap.errors import RunError
from daedap.judge.evaluation import Row
from daedap.korean import comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from daedap.runs import Run


@dataclass(frozen=True)
class Judged:
    """A run that has been scored on its test rows."""

    run: Run
    rows: Mapping[str, Row]
    """By id."""
    asked: Mapping[str, str]
    """Id → the test question after its conversation."""
    learned: frozenset[str]
    """Comparison forms of the questions it was trained on, each after its conversation."""
    candidates: int
    """How many answers each ranking chose from."""


@dataclass(frozen=True)
class Common:
    """Test rows of two runs."""

    rows: Sequence[tuple[Row, Row]]
    """Those that both were tested on, in the order of their ids, as each run kept them."""
    groups: NDArray[np.int64]
    """(rows,): numbers of components, joined where either run joins them."""
    leaked: int
    """Rows left out because one of the runs has learned the question, or nearly the same one, and the other has not."""
    alone: int
    """Rows left out because one of the runs alone was tested on them."""
    same_test: bool
    """Both were tested on the very same rows, so that each chose among the same wrong answers."""


def read_judged(run: Run) -> Judged:
    """Read what a run keeps. Raises RunError when it was never scored, or its rows can't be read."""
    if run.command != "train":
        raise RunError(
            "{run}: a base; only what daedap train has made is compared.",
            "Use it: daedap train FILE --base {folder}",
            run=run.folder,
            folder=run.folder / "model",
        )
    test = read_side(run.folder, "test")
    if not test:
        raise RunError(
            "{run}: trained without test rows, so that there is nothing to compare.",
            "Train again with --test-size 0.1.",
            run=run.folder,
        )
    rows, candidates = kept_rows(run)
    learned = frozenset(comparison_form(context(pair)) for pair in read_side(run.folder, "train"))
    return Judged(run, {row.id: row for row in rows}, {pair.id: context(pair) for pair in test}, learned, candidates)


def kept_rows(run: Run) -> tuple[list[Row], int]:
    """The rows of a run's evaluation, and how many answers each ranking chose from. Raises RunError."""
    folder = run.folder / "evaluation"
    if not folder.is_dir():
        raise RunError(
            "{run}: not scored yet; it was trained with --no-evaluate.",
            "Score it: daedap evaluate --run {run}",
            run=run.folder,
        )
    try:
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
            return [Row.from_json(json.loads(line)) for line in lines], int(scores["candidates"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "{folder}: the scores can't be read ({error}).",
            "Restore the folder from a backup or train again.",
            folder=folder,
            error=error,
        ) from error


def common(first: Judged, second: Judged) -> Common:
    """The rows to compare two runs on. Raises RunError when there are none."""
    leaked = _leaked(first, second)
    both = sorted(first.rows.keys() & second.rows.keys() - leaked)
    if not both:
        raise RunError(
            "{first} and {second} have no test rows in common ({leaked:,} left out because one run has learned them).",
            "Train both from the same file, or look at both on a third one: daedap evaluate --run RUN --data FILE",
            first=first.run.folder,
            second=second.run.folder,
            leaked=len(leaked),
        )
    rows = [(first.rows[name], second.rows[name]) for name in both]
    everything = first.rows.keys() | second.rows.keys()
    return Common(
        rows=rows,
        groups=_joined([mine.component for mine, _ in rows], [other.component for _, other in rows]),
        leaked=len(leaked),
        alone=len(everything) - len(both) - len(leaked),
        same_test=first.rows.keys() == second.rows.keys(),
    )


def _leaked(first: Judged, second: Judged) -> set[str]:
    """Ids of the test rows whose question, or a near-duplicate of it, one run has learned and the other has not."""
    if first.learned == second.learned:
        return set()
    forms = {name: comparison_form(text) for name, text in {**first.asked, **second.asked}.items()}
    near = _near(first.learned | second.learned, forms.values())
    known = {form: {bool(found & run.learned) for run in (first, second)} for form, found in near.items()}
    return {name for name, form in forms.items() if len(known[form]) > 1}


def _near(learned: Iterable[str], tested: Iterable[str]) -> dict[str, set[str]]:
    """Each tested comparison form → the learned ones that it equals or nearly equals."""
    known = list(learned)
    texts = [*known, *dict.fromkeys(tested)]
    found = ((row, near) for row, near in near_duplicates(texts) if row >= len(known))
    return {texts[row]: {known[other] for other in near if other < len(known)} for row, near in found}


def _joined(mine: Sequence[int | str], others: Sequence[int | str]) -> NDArray[np.int64]:
    """(rows,): rows that share a component in either naming, directly or through others, get one number."""
    _, first = np.unique([str(name) for name in mine], return_inverse=True)
    _, second = np.unique([str(name) for name in others], return_inverse=True)
    size = int(first.max() + second.max() + 2)
    links = coo_array((np.ones(len(first)), (first, second + first.max() + 1)), shape=(size, size))
    _, numbers = connected_components(links, directed=False)
    groups: NDArray[np.int64] = numbers[first].astype(np.int64)
    return groups
