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
from daedap.retrieval.encoder import BiEncoder, PairEmbeddings
from daedap.retrieval.lexical import CELLS, DAMAGE, LexicalIndex, LexicalKnn, damaged, largest
from daedap.retrieval.rerank import ENOUGH, Reranker, RerankWeights, fit_weights
from daedap.types import Evidence, Pair

if TYPE_CHECKING:
    from daedap.model.language_model import LanguageModel  # torch takes seconds to import

FloatArray = NDArray[np.float32]
_WHOLE, _LETTERS = 100_000, 500
"""Pairs up to which all are compared by meaning; of more, only so many that share the most letters."""
_OUT_OF_SCOPE_PERCENT = 2.0
"""Per cent of the dev questions, the least like anything known, that a bot may say it did not understand."""


class Hits(NamedTuple):
    """Known pairs near a question, best first."""

    rows: NDArray[np.int64]
    similarities: FloatArray
    """Mean of the cosines by letters and by meaning, 0 to 1."""


@dataclass(frozen=True)
class HybridRetriever:
    """Known pairs; those of the index may be followed by others in the space."""

    index: LexicalIndex
    space: PairEmbeddings
    weights: RerankWeights

    def near(self, questions: Sequence[str], k: int) -> list[Hits]:
        """The `k` nearest known questions of each question."""
        step = max(1, CELLS // len(self.index.pairs))
        found = []
        for start in range(0, len(questions), step):
            some = questions[start : start + step]
            letters, meant = self.index.similarities(some), self.space.encoder.questions(some)
            found += [self._nearest(*both, k) for both in zip(letters, meant, strict=True)]
        return [self._earliest_first(*each) for each in zip(questions, found, strict=True)]

    def _nearest(self, letters: FloatArray, meant: FloatArray, k: int) -> Hits:
        rows, asked = np.arange(len(letters)), self.space.asked
        if len(rows) > _WHOLE:
            rows = largest(letters[None], _LETTERS)[0]
            letters, asked = letters[rows], asked[rows]
        both: FloatArray = (letters + asked @ meant).clip(0) / np.float32(2)
        best = largest(both[None], min(k, len(rows)))[0]
        return Hits(rows[best], both[best].clip(0, 1))

    def _earliest_first(self, question: str, near: Hits) -> Hits:
        """Of rows with this very question the earliest, which is the newest, though rounding may set them apart."""
        form = comparison_form(question)
        same = [row for row in near.rows if comparison_form(self.index.pairs[row].question) == form]
        others = [row for row in near.rows if row not in same]
        return Hits(np.array([*sorted(same), *others]), near.similarities) if len(same) > 1 else near

    def evidence(self, near: Hits, place: int = 0) -> Evidence:
        """The known pair at a place of what was found."""
        pair = self.index.pairs[near.rows[place]]
        return Evidence(pair.question, pair.answer, float(near.similarities[place]))

    def ranker(self, talker: LanguageModel) -> Reranker:
        """How well answers fit, with what a model says to them."""
        return Reranker(self._answered, self.space, talker, self.weights)

    @cached_property
    def _answered(self) -> LexicalKnn:
        return LexicalKnn(self.index)

    def save(self, folder: Path) -> None:
        """Write everything."""
        self.index.save(folder)
        self.space.save(folder)
        self.weights.save(folder / "weights.json")

    @classmethod
    def open(cls, folder: Path, more: Sequence[Pair] = ()) -> HybridRetriever:
        """Read it, with `more` pairs: those that the space was saved with. Raises RunError when it is damaged."""
        index = LexicalIndex.open(folder).extended(more)
        try:
            return cls(
                index, PairEmbeddings.open(folder).first(len(index.pairs)), RerankWeights.open(folder / "weights.json")
            )
        except DAMAGE as error:
            raise damaged(folder, str(error)) from error


def extend_retriever(before: HybridRetriever, new: Sequence[Pair]) -> HybridRetriever:
    """Put new pairs in front of known ones: what was learned stays, so that this takes a second."""
    space = PairEmbeddings.of(before.space.encoder, new).followed_by(before.space)
    return HybridRetriever(LexicalIndex.build([*new, *before.index.pairs]), space, before.weights)


def fit_retriever(
    train: Sequence[Pair], dev: Sequence[Pair], encoder: BiEncoder, talker: LanguageModel
) -> HybridRetriever:
    """Index the training rows, put them where an encoder puts them, and weigh the views on dev rows."""
    memory = HybridRetriever(LexicalIndex.build(train), PairEmbeddings.of(encoder, train), RerankWeights())
    weights = fit_weights(memory.ranker(talker), dev, [pair.answer for pair in train])
    if len(dev) >= ENOUGH:
        likest = [near.similarities[0] for near in memory.near([pair.question for pair in dev], 1)]
        weights = weights.with_threshold(float(np.percentile(likest, _OUT_OF_SCOPE_PERCENT)))
    return replace(memory, weights=weights)
