"""Matching among many pairs: exact similarities for the nearest ones alone, which approximate search finds.

    index/questions.usearch answers.usearch    graphs over the sentence vectors (HNSW: Malkov and Yashunin, 2016), int8
          questions.npy answers.npy            the vectors in half precision, memory-mapped
          keys.npy                             (pairs,): the number in the graphs of each pair

What too few pairs can't tell, how rare n-grams are in answers and how much answers count, comes from a random sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from daedap.i18n import translate
from daedap.retrieval.lexical import PAIR_SIDES, CharTfidf, Hits, LexicalIndex, surrounded
from daedap.retrieval.matcher import AnswerMatcher, Match, MatchWeights, Signals
from daedap.retrieval.query import Encoder, Query
from daedap.types import Float32Array, Pair

Half = NDArray[np.float16]
Rows = NDArray[np.int64]
Found = TypeVar("Found", Match, Signals)
EXACT_UP_TO = 30_000
"""Pairs up to which every similarity is computed: in float32, more would be slower to read than a graph to search."""
_NEIGHBOURS, _BUILD_BREADTH, _SEARCH_BREADTH = 16, 128, 256
"""Of a graph: recall@3 of 0.99 or more (docs/EXPERIMENTS.md, "A million pairs")."""
_SHORTLIST = 16
"""Pairs that each of three searches contributes: by characters, and by meaning among questions and among answers."""
_SAMPLE = 5_000
_AT_ONCE = 16_384
"""Texts between two steps of the progress bar."""


@dataclass(frozen=True)
class VectorGraph:
    """Vectors of length 1, found by approximate nearest-neighbour search."""

    index: Any
    """usearch.index.Index"""

    @classmethod
    def build(cls, vectors: Half) -> VectorGraph:
        """Of (rows, width). One thread, so that the same vectors give the same graph."""
        from usearch.index import Index  # not needed for most files

        index = Index(
            ndim=vectors.shape[1],
            metric="cos",
            dtype="i8",
            connectivity=_NEIGHBOURS,
            expansion_add=_BUILD_BREADTH,
            expansion_search=_SEARCH_BREADTH,
        )
        graph = cls(index)
        graph._add(vectors)
        return graph

    def extended(self, vectors: Half) -> VectorGraph:
        """A copy with more vectors, numbered on from those that are there."""
        graph = VectorGraph(self.index.copy())
        graph._add(vectors)
        return graph

    def _add(self, vectors: Half) -> None:
        first = len(self.index)
        for start in range(0, len(vectors), _AT_ONCE):
            part = vectors[start : start + _AT_ONCE].astype(np.float32)
            self.index.add(np.arange(first + start, first + start + len(part)), part, threads=1)

    def nearest(self, vector: Float32Array, k: int) -> Rows:
        """(k,): numbers of the nearest of (width,), best first."""
        return np.asarray(self.index.search(vector, k).keys, np.int64)

    @classmethod
    def open(cls, file: Path) -> VectorGraph:
        """Memory-mapped. Raises ValueError when it is damaged."""
        from usearch.index import Index

        try:
            index: Any = Index.restore(str(file), view=True)
        except RuntimeError as error:
            raise ValueError(f"{file.name}: {error}") from error
        if index is None:
            raise ValueError(f"{file.name} is no graph")
        index.expansion_search = _SEARCH_BREADTH
        return cls(index)


@dataclass(frozen=True)
class LargeMatcher(AnswerMatcher):
    """Like AnswerMatcher, for more pairs. `questions` and `answers` are in half precision."""

    graphs: tuple[VectorGraph, VectorGraph]
    """Over questions and answers."""
    keys: Rows
    """(pairs,): the number in the graphs of each pair."""

    @classmethod
    def build(cls, index: LexicalIndex, encoder: Encoder) -> LargeMatcher:
        """Encode the pairs of an index, and connect them."""
        questions, answers = _encode_pairs(encoder, index.pairs)
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(VectorGraph.build, (questions, answers))
        keys = np.arange(len(index.pairs))
        weights = MatchWeights.default(built_in=encoder.built_in)
        return cls(index, encoder, questions, answers, weights, (one, other), keys)  # type: ignore[arg-type]

    def extended(self, index: LexicalIndex, before: Sequence[Pair] = (), after: Sequence[Pair] = ()) -> LargeMatcher:
        """With new pairs before and after its own; `index` holds all of them in that order."""
        if not before and not after:
            return self
        new = _encode_pairs(self.encoder, [*before, *after])
        one, other = (graph.extended(vectors) for graph, vectors in zip(self.graphs, new, strict=True))
        numbers = len(self.graphs[0].index) + np.arange(len(new[0]))
        first = len(before)
        questions, answers = surrounded(self.questions, new[0], first), surrounded(self.answers, new[1], first)
        keys = surrounded(self.keys, numbers, first)
        return LargeMatcher(index, self.encoder, questions, answers, self.weights, (one, other), keys)

    def match(self, queries: Sequence[Query], k: int = 4) -> list[Match]:
        """As of AnswerMatcher, among the nearest pairs."""
        return [self._among_nearest(query, lambda near, query: near.match([query], k)[0]) for query in queries]

    def signals(self, queries: Sequence[Query], k: int = 4) -> list[Signals]:
        """As of AnswerMatcher, among the nearest pairs."""
        return [self._among_nearest(query, lambda near, query: near.signals([query], k)[0]) for query in queries]

    def _among_nearest(self, query: Query, find: Callable[[AnswerMatcher, Query], Found]) -> Found:
        """Rows stand in ascending order meanwhile, so that of equal pairs the newest stays the first."""
        by_characters = self.index.search([query.text], _SHORTLIST).rows[0]
        by_question, by_answer = (self.nearest(side, query.vector, _SHORTLIST) for side in (0, 1))
        rows: Rows = np.unique(np.concatenate([by_characters, by_question, by_answer]))
        found = find(self._part(rows, self.index.ngrams, self._sample), query)
        return found._replace(rows=rows[found.rows])

    def nearest(self, side: int, vector: Float32Array, k: int) -> Rows:
        """(k,): rows whose question (side 0) or answer (side 1) is nearest to (width,), best first; fewer if all are.

        Numbers of pairs that the index does not hold are left out: the graphs may hold held-out pairs as well.
        """
        asked = 2 * k
        while True:
            rows = self._rows[self.graphs[side].nearest(vector, asked)]
            known = rows[rows >= 0][:k]
            if len(known) == k or asked >= len(self._rows):
                return known
            asked *= 2

    def search(self, vectors: Float32Array, k: int) -> Hits:
        """As of AnswerMatcher, among the questions that the graph finds."""
        rows = np.stack([self.nearest(0, vector, k) for vector in vectors])
        return Hits(rows, np.einsum("qkw,qw->qk", self.questions[rows], vectors).clip(0, 1))

    @cached_property
    def _rows(self) -> Rows:
        """(numbers of the graphs,): the row of each, -1 where the index does not hold it."""
        rows = np.full(len(self.graphs[0].index), -1)
        rows[self.keys] = np.arange(len(self.keys))
        return rows

    def _part(
        self, rows: Rows, ngrams: CharTfidf | None = None, reference: AnswerMatcher | None = None
    ) -> AnswerMatcher:
        index = LexicalIndex.build([self.index.pairs[row] for row in rows], ngrams)
        questions, answers = (vectors[rows].astype(np.float32) for vectors in (self.questions, self.answers))
        return AnswerMatcher(index, self.encoder, questions, answers, self.weights, reference=reference)

    @cached_property
    def _sample(self) -> AnswerMatcher:
        rows = np.sort(np.random.RandomState(0).permutation(len(self.index.pairs))[:_SAMPLE])
        return self._part(rows)

    @cached_property
    def _answer_share(self) -> float:
        """As of the sample."""
        return self._sample._answer_share

    @cached_property
    def _answer_tfidf(self) -> CharTfidf:
        return self._sample._answer_tfidf

    def save(self, folder: Path) -> None:
        """Write graphs, vectors and keys."""
        for side, graph, vectors in zip(PAIR_SIDES, self.graphs, (self.questions, self.answers), strict=True):
            graph.index.save(str(folder / f"{side}.usearch"))
            np.save(folder / f"{side}.npy", vectors.astype(np.float16, copy=False), allow_pickle=False)
        np.save(folder / "keys.npy", self.keys, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, index: LexicalIndex, encoder: Encoder) -> LargeMatcher:
        """Map the files of an index's pairs; they may hold more pairs behind them."""
        pairs = len(index.pairs)
        questions, answers = (np.load(folder / f"{side}.npy", mmap_mode="r")[:pairs] for side in PAIR_SIDES)
        one, other = (VectorGraph.open(folder / f"{side}.usearch") for side in PAIR_SIDES)
        keys = np.load(folder / "keys.npy", allow_pickle=False)[:pairs]
        if not len(keys) == len(questions) == len(answers) == pairs:
            raise ValueError(f"{pairs} pairs, {len(keys)} keys")
        weights = MatchWeights.default(built_in=encoder.built_in)
        return cls(index, encoder, questions, answers, weights, (one, other), keys)


def is_large(folder: Path) -> bool:
    """Whether a LargeMatcher was saved here."""
    return (folder / "keys.npy").exists()


def _encode_pairs(encoder: Encoder, pairs: Sequence[Pair]) -> tuple[Half, Half]:
    """(pairs, width) of questions and of answers, in half precision; equal texts are encoded once."""
    texts = list(dict.fromkeys([*(pair.question for pair in pairs), *(pair.answer for pair in pairs)]))
    starts = range(0, len(texts), _AT_ONCE)
    bar = tqdm(starts, desc=translate("sentence vectors"), disable=None if len(starts) > 1 else True)
    vectors = np.concatenate([encoder.encode(texts[start : start + _AT_ONCE]).astype(np.float16) for start in bar])
    number = {text: number for number, text in enumerate(texts)}
    return vectors[[number[pair.question] for pair in pairs]], vectors[[number[pair.answer] for pair in pairs]]
