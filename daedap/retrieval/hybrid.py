"""What a bot knows: pairs, found by letters and by meaning; and how much each view of an answer counts.

Folder: an index (index.py), a space (space.py) that may hold more pairs than it, and `weights.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daedap.korean.text import comparison_form
from daedap.retrieval.encoder import Encoder, Space
from daedap.retrieval.lexical import CELLS, DAMAGE, Index, NearestQuestion, damaged, largest
from daedap.retrieval.rerank import ENOUGH, Ranker, Weights, fit_weights
from daedap.types import Evidence, Pair

if TYPE_CHECKING:
    from daedap.model.language_model import Talker  # torch takes seconds to import

FloatArray = NDArray[np.float32]
_WHOLE, _LETTERS = 100_000, 500
"""Pairs up to which all are compared by meaning; of more, only so many that share the most letters."""
_STRANGE = 2.0
"""Per cent of the dev questions, the least like anything known, that a bot may say it did not understand."""


class Near(NamedTuple):
    """Known pairs near a question, best first."""

    rows: NDArray[np.int64]
    similarities: FloatArray
    """Mean of the cosines by letters and by meaning, 0 to 1."""


@dataclass(frozen=True)
class Memory:
    """Known pairs; those of the index may be followed by others in the space."""

    index: Index
    space: Space
    weights: Weights

    def near(self, questions: Sequence[str], k: int) -> list[Near]:
        """The `k` nearest known questions of each question."""
        step = max(1, CELLS // len(self.index.pairs))
        found = []
        for start in range(0, len(questions), step):
            some = questions[start : start + step]
            letters, meant = self.index.similarities(some), self.space.encoder.questions(some)
            found += [self._nearest(*both, k) for both in zip(letters, meant, strict=True)]
        return [self._earliest_first(*each) for each in zip(questions, found, strict=True)]

    def _nearest(self, letters: FloatArray, meant: FloatArray, k: int) -> Near:
        rows, asked = np.arange(len(letters)), self.space.asked
        if len(rows) > _WHOLE:
            rows = largest(letters[None], _LETTERS)[0]
            letters, asked = letters[rows], asked[rows]
        both: FloatArray = (letters + asked @ meant).clip(0) / np.float32(2)
        best = largest(both[None], min(k, len(rows)))[0]
        return Near(rows[best], both[best].clip(0, 1))

    def _earliest_first(self, question: str, near: Near) -> Near:
        """Of rows with this very question the earliest, which is the newest, though rounding may set them apart."""
        form = comparison_form(question)
        same = [row for row in near.rows if comparison_form(self.index.pairs[row].question) == form]
        others = [row for row in near.rows if row not in same]
        return Near(np.array([*sorted(same), *others]), near.similarities) if len(same) > 1 else near

    def evidence(self, near: Near, place: int = 0) -> Evidence:
        """The known pair at a place of what was found."""
        pair = self.index.pairs[near.rows[place]]
        return Evidence(pair.question, pair.answer, float(near.similarities[place]))

    def ranker(self, talker: Talker) -> Ranker:
        """How well answers fit, with what a model says to them."""
        return Ranker(self._answered, self.space, talker, self.weights)

    @cached_property
    def _answered(self) -> NearestQuestion:
        return NearestQuestion(self.index)

    def save(self, folder: Path) -> None:
        """Write everything."""
        self.index.save(folder)
        self.space.save(folder)
        self.weights.save(folder / "weights.json")

    @classmethod
    def open(cls, folder: Path, more: Sequence[Pair] = ()) -> Memory:
        """Read it, with `more` pairs: those that the space was saved with. Raises RunError when it is damaged."""
        index = Index.open(folder).extended(more)
        try:
            return cls(index, Space.open(folder).first(len(index.pairs)), Weights.open(folder / "weights.json"))
        except DAMAGE as error:
            raise damaged(folder, str(error)) from error


def grow_memory(before: Memory, new: Sequence[Pair]) -> Memory:
    """Put new pairs in front of known ones: what was learned stays, so that this takes a second."""
    space = Space.of(before.space.encoder, new).followed_by(before.space)
    return Memory(Index.build([*new, *before.index.pairs]), space, before.weights)


def learn_memory(train: Sequence[Pair], dev: Sequence[Pair], encoder: Encoder, talker: Talker) -> Memory:
    """Index the training rows, put them where an encoder puts them, and weigh the views on dev rows."""
    memory = Memory(Index.build(train), Space.of(encoder, train), Weights())
    weights = fit_weights(memory.ranker(talker), dev, [pair.answer for pair in train])
    if len(dev) >= ENOUGH:
        likest = [near.similarities[0] for near in memory.near([pair.question for pair in dev], 1)]
        weights = weights.with_strange(float(np.percentile(likest, _STRANGE)))
    return replace(memory, weights=weights)
