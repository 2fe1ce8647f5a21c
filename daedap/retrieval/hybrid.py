"""What a bot knows: pairs found by lexical and semantic similarity, and the weights by which answers are chosen.

Folder `index/`: lexical index (lexical.py), bi-encoder and its vectors (encoder.py; may hold more pairs than the
index), sentence vectors (matcher.py), `weights.json` (rerank.py).
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
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.encoder import BiEncoder, PairEmbeddings
from daedap.retrieval.lexical import DAMAGE, LexicalIndex, LexicalKnn, chunks, damaged, largest
from daedap.retrieval.matcher import PAIRS_AT_MOST, AnswerMatcher
from daedap.retrieval.rerank import ENOUGH_DEV_ROWS, Reranker, RerankWeights, fit_weights
from daedap.types import Evidence, Pair

if TYPE_CHECKING:
    from daedap.model.language_model import LanguageModel  # torch takes seconds to import

FloatArray = NDArray[np.float32]
_EXACT_UP_TO, _LEXICAL_SHORTLIST = 100_000, 500
"""Pairs up to which all bi-encoder similarities are computed; above, only those of the lexically nearest pairs."""
_OUT_OF_SCOPE_PERCENT = 2.0
"""Percentile of the dev questions' similarity to the nearest known question that becomes the out-of-scope threshold."""


class Hits(NamedTuple):
    """Known pairs near a question, best first."""

    rows: NDArray[np.int64]
    """(k,)"""
    similarities: FloatArray
    """(k,): mean of lexical and bi-encoder cosine, 0 to 1."""


@dataclass(frozen=True)
class HybridRetriever:
    """Known pairs; the embeddings may hold held-out pairs after those of the index."""

    index: LexicalIndex
    embeddings: PairEmbeddings
    weights: RerankWeights
    matcher: AnswerMatcher | None = None
    """None where there are too many pairs for sentence vectors."""

    @classmethod
    def build(cls, pairs: Sequence[Pair], encoder: BiEncoder) -> HybridRetriever:
        """Index and encode pairs."""
        index = LexicalIndex.build(pairs)
        matcher = AnswerMatcher.build(index, built_in_encoder()) if len(pairs) <= PAIRS_AT_MOST else None
        return cls(index, PairEmbeddings.of(encoder, pairs), RerankWeights(), matcher)

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """The `k` nearest known questions of each question."""
        hits = []
        for rows in chunks(len(questions), len(self.index.pairs)):
            part = questions[rows]
            lexical, vectors = self.index.similarities(part), self.embeddings.encoder.questions(part)
            hits += [self._nearest(*each, k) for each in zip(lexical, vectors, strict=True)]
        return [self._earliest_first(*each) for each in zip(questions, hits, strict=True)]

    def _nearest(self, lexical: FloatArray, vector: FloatArray, k: int) -> Hits:
        """lexical: (pairs,) cosines; vector: (256,)."""
        rows, known = np.arange(len(lexical)), self.embeddings.questions
        if len(rows) > _EXACT_UP_TO:
            rows = largest(lexical[None], _LEXICAL_SHORTLIST)[0]
            lexical, known = lexical[rows], known[rows]
        mean: FloatArray = (lexical + known @ vector).clip(0) / np.float32(2)
        best = largest(mean[None], min(k, len(rows)))[0]
        return Hits(rows[best], mean[best].clip(0, 1))

    def _earliest_first(self, question: str, hits: Hits) -> Hits:
        """Of rows with this very question the first, which is the newest; rounding may have reordered them."""
        form = comparison_form(question)
        same = [row for row in hits.rows if comparison_form(self.index.pairs[row].question) == form]
        others = [row for row in hits.rows if row not in same]
        return Hits(np.array([*sorted(same), *others]), hits.similarities) if len(same) > 1 else hits

    def evidence(self, hits: Hits, place: int = 0) -> Evidence:
        """The known pair at a place among the hits."""
        pair = self.index.pairs[hits.rows[place]]
        return Evidence(pair.question, pair.answer, float(hits.similarities[place]))

    def reranker(self, model: LanguageModel) -> Reranker:
        """Scores candidate answers with the help of a language model."""
        return Reranker(self._lexical_knn, self.embeddings, model, self.weights)

    @cached_property
    def _lexical_knn(self) -> LexicalKnn:
        return LexicalKnn(self.index)

    def with_new(self, pairs: Sequence[Pair]) -> HybridRetriever:
        """With new pairs before the known ones; the bi-encoder and the weights stay as they were fitted."""
        index = LexicalIndex.build([*pairs, *self.index.pairs])
        embeddings = PairEmbeddings.of(self.embeddings.encoder, pairs).followed_by(self.embeddings)
        matcher = self.matcher and self.matcher.extended(index, before=pairs)
        return HybridRetriever(index, embeddings, self.weights, matcher)

    def save(self, folder: Path, held_out: Sequence[Pair] = ()) -> None:
        """Write everything; the vectors of held-out pairs come along, for a bot that is opened with these."""
        self.index.save(folder)
        self.embeddings.extended(held_out).save(folder)
        self.weights.save(folder / "weights.json")
        if self.matcher:
            self.matcher.extended(self.index.extended(held_out), after=held_out).save(folder)

    @classmethod
    def open(cls, folder: Path, held_out: Sequence[Pair] = ()) -> HybridRetriever:
        """Read it, with the held-out pairs that it was saved with or none. Raises RunError when it is damaged."""
        index = LexicalIndex.open(folder).extended(held_out)
        try:
            embeddings = PairEmbeddings.open(folder).first(len(index.pairs))
            weights = RerankWeights.open(folder / "weights.json")
            vectors = (folder / "sentences.npz").exists()
            return cls(
                index, embeddings, weights, AnswerMatcher.open(folder, index, built_in_encoder()) if vectors else None
            )
        except DAMAGE as error:
            raise damaged(folder, str(error)) from error


def fit_retriever(
    train: Sequence[Pair], dev: Sequence[Pair], encoder: BiEncoder, model: LanguageModel, lookup: Sequence[Pair] = ()
) -> HybridRetriever:
    """Index and encode the training rows; fit rerank weights and out-of-scope threshold on the dev rows.

    `lookup`: pairs too long for the language model, which are only found.
    """
    retriever = HybridRetriever.build([*train, *lookup], encoder)
    weights = fit_weights(retriever.reranker(model), dev, [pair.answer for pair in train])
    if len(dev) >= ENOUGH_DEV_ROWS:
        nearest = [hits.similarities[0] for hits in retriever.search([pair.question for pair in dev], 1)]
        weights = weights.with_threshold(float(np.percentile(nearest, _OUT_OF_SCOPE_PERCENT)))
    return replace(retriever, weights=weights)
