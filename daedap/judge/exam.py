"""What every system under test is asked: the same questions, candidates and slices."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from daedap.judge.candidates import candidate_questions, candidates, other_questions
from daedap.judge.metrics import FloatArray, frequent_answers
from daedap.korean import comparison_form

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from daedap.pair import Pair

LABELS = 10
"""So many of the most frequent labels are scored apart."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured."""

    rows: int = 500
    """At most so many pairs are ranked and replied to; the same ones in every run."""
    likelihoods: int | None = None
    """At most so many pairs count for bits per character and question gain, the first of them those that are ranked;
    None: all."""
    resamples: int = 1000
    seed: int = 0
    """Of the bootstrap alone."""
    samples: int = 20
    timed: int = 20
    """So many questions are asked one by one, for the latency."""
    timed_models: bool = True
    """Of the language models by themselves, too, which takes seconds where a model has no engine."""


@dataclass(frozen=True)
class Exam:
    """What every system is asked."""

    test: tuple[Pair, ...]
    groups: NDArray[np.int64]
    """(pairs,): component numbers."""
    asked: tuple[int, ...]
    """Rows that are ranked and replied to, in the order of their ids."""
    scored: tuple[int, ...]
    """Rows whose answers' likelihood is taken, in the order of the test pairs."""
    candidates: tuple[tuple[str, ...], ...]
    """Of each asked row, its own answer first."""
    candidate_questions: tuple[tuple[str, ...], ...]
    """Of each asked row, its own question first."""
    others: tuple[str | None, ...]
    """Of each row, another question."""
    frequent: frozenset[str]
    slices: Mapping[str, NDArray[np.bool_]]
    """Name → (pairs,)."""
    options: Options

    @property
    def questions(self) -> list[Pair]:
        """The asked pairs."""
        return [self.test[row] for row in self.asked]

    @property
    def misled(self) -> list[int]:
        """The scored rows that have another question."""
        return [row for row in self.scored if self.others[row] is not None]

    @property
    def misled_pairs(self) -> list[Pair]:
        """Their pairs with the other question in the place of their own."""
        return [replace(self.test[row], question=str(self.others[row])) for row in self.misled]

    def marked(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """(pairs,): true in these rows."""
        marked = np.zeros(len(self.test), np.bool_)
        marked[list(rows)] = True
        return marked

    def spread(self, values: FloatArray, empty: float, rows: Sequence[int] | None = None) -> FloatArray:
        """(asked,) → (pairs,), `empty` where nothing was asked; or of other rows than the asked ones."""
        whole = np.full(len(self.test), empty)
        whole[list(self.asked if rows is None else rows)] = values
        return whole


def set_exam(test: Sequence[Pair], components: Sequence[int | str], train: Sequence[Pair], options: Options) -> Exam:
    """Choose the rows, candidates and slices; none of it depends on the order of the rows."""
    _, groups = np.unique([str(component) for component in components], return_inverse=True)
    by_id = sorted(range(len(test)), key=lambda row: test[row].id)
    asked = by_id[: options.rows]
    offered, questions = candidates(test), candidate_questions(test)
    return Exam(
        test=tuple(test),
        groups=groups.astype(np.int64),
        asked=tuple(asked),
        scored=tuple(sorted(by_id[: options.likelihoods])),
        candidates=tuple(offered[row] for row in asked),
        candidate_questions=tuple(questions[row] for row in asked),
        others=tuple(other_questions(test)),
        frequent=frequent_answers([pair.answer for pair in train]),
        slices=_slices(test, train),
        options=options,
    )


def _slices(test: Sequence[Pair], train: Sequence[Pair]) -> dict[str, NDArray[np.bool_]]:
    known = {comparison_form(pair.answer) for pair in train}
    seen = np.array([comparison_form(pair.answer) in known for pair in test])
    slices = {"all": np.ones(len(test), dtype=np.bool_), "seen": seen, "unseen": ~seen}
    labels = Counter(pair.label for pair in test if pair.label)
    for label in sorted(sorted(labels), key=lambda label: -labels[label])[:LABELS]:
        slices[f"label:{label}"] = np.array([pair.label == label for pair in test])
    return {name: inside for name, inside in slices.items() if inside.any()}
