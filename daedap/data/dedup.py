"""Near-duplicate questions: equal comparison form, or cosine of character bigrams at least 0.7.

Bigram counts without idf weights: whether two questions are near-duplicates does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from daedap.korean.text import comparison_form

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

THRESHOLD = 0.7
_CANDIDATES_PER_CHUNK = 4_000_000
"""Candidate pairs computed at a time; about 200 MB of memory."""


def near_duplicates(questions: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """For each question, in order: its row, and the earlier rows it is a near-duplicate of.

    Exact. Time is about linear in the pairs that share a rare bigram, memory is linear in the questions. Of earlier
    rows with the same comparison form only the first is returned.
    """
    forms = [comparison_form(question) for question in questions]
    first: dict[str, int] = {}
    for row, form in enumerate(forms):
        first.setdefault(form, row)
    distinct = np.fromiter(first.values(), dtype=np.int64)
    similar = _similar(list(first))
    for row, form in enumerate(forms):
        if first[form] != row:
            yield row, [first[form]]
        else:
            yield row, distinct[next(similar)].tolist()


def _similar(forms: list[str]) -> Iterator[NDArray[np.int64]]:
    """For each form, the indices of earlier forms with a cosine of at least THRESHOLD."""
    if not forms:
        return
    vectors = _bigrams(forms)
    rare = _rare_part(vectors)
    for start, stop in _chunks(rare):
        shared = (rare[start:stop] @ rare[:stop].T).tocoo()
        rows, columns = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        earlier = columns < rows
        rows, columns = rows[earlier], columns[earlier]
        near = _cosines(vectors, rows, columns) >= THRESHOLD
        rows, columns = rows[near], columns[near]
        yield from np.split(columns, np.searchsorted(rows, np.arange(start + 1, stop)))


def _chunks(rare: csr_matrix) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most about _CANDIDATES_PER_CHUNK candidate pairs; a single row may have more."""
    counts = np.bincount(rare.indices, minlength=rare.shape[1])
    candidates = np.concatenate([[0], np.cumsum(counts[rare.indices])])[rare.indptr]
    start = 0
    while start < rare.shape[0]:
        stop = int(np.searchsorted(candidates, candidates[start] + _CANDIDATES_PER_CHUNK, side="right")) - 1
        stop = min(max(stop, start + 1), rare.shape[0])
        yield start, stop
        start = stop


def _bigrams(forms: list[str]) -> csr_matrix:
    """L2-normalized bigram counts (forms, hash buckets), columns sorted from the rarest bigram to the most frequent."""
    from sklearn.feature_extraction.text import HashingVectorizer  # 0.5 s to import

    hashing = HashingVectorizer(analyzer="char", ngram_range=(2, 2), alternate_sign=False, n_features=2**20)
    vectors: csr_matrix = hashing.transform(forms)
    rank = np.empty(vectors.shape[1], dtype=vectors.indices.dtype)
    rank[np.argsort(np.bincount(vectors.indices, minlength=len(rank)), kind="stable")] = np.arange(len(rank))
    vectors.indices = rank[vectors.indices]
    vectors.has_sorted_indices = False
    vectors.sort_indices()
    return vectors


def _rare_part(vectors: csr_matrix) -> csr_matrix:
    """Vectors without their most frequent bigrams, as far as those alone could not reach THRESHOLD.

    Two vectors with a cosine of at least THRESHOLD still share a column (prefix filtering: Bayardo et al., WWW 2007).
    """
    squares = vectors.data**2
    before = np.concatenate([[0.0], np.cumsum(squares)])
    starts = np.repeat(before[vectors.indptr[:-1]], np.diff(vectors.indptr))
    left = 1.0 - (before[:-1] - starts)
    rare: csr_matrix = vectors.copy()
    rare.data = np.where(left >= THRESHOLD**2 - 1e-9, rare.data, 0.0)
    rare.eliminate_zeros()
    return rare


def _cosines(vectors: csr_matrix, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    chunks = [np.zeros(0)]
    for start in range(0, len(rows), _CANDIDATES_PER_CHUNK // 20):
        chunk = slice(start, start + _CANDIDATES_PER_CHUNK // 20)
        chunks.append(np.asarray(vectors[rows[chunk]].multiply(vectors[columns[chunk]]).sum(axis=1)).ravel())
    return np.concatenate(chunks) + 1e-9  # tolerance: rounding makes 0.7 come out as 0.6999…
