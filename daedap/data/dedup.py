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
_LARGE = 256
"""Rows of a group from which on only one near-duplicate in it is looked for; rows of a chunk where there are such."""


def near_duplicates(
    questions: Sequence[str], groups: NDArray[np.int64] | None = None
) -> Iterator[tuple[int, list[int]]]:
    """For each question, in order: its row, and the earlier rows it is a near-duplicate of.

    Exact. Time is about linear in the pairs that share a rare bigram, memory is linear in the questions. Of earlier
    rows with the same comparison form only the first is returned.

    `groups` gives a number for each row, where one near row of a group is enough: of a large group only one is
    returned, which makes many near-duplicates of each other linear instead of quadratic. The numbers of rows that were
    returned already may change meanwhile.
    """
    forms = [comparison_form(question) for question in questions]
    first: dict[str, int] = {}
    for row, form in enumerate(forms):
        first.setdefault(form, row)
    if not first:
        return
    distinct = np.fromiter(first.values(), dtype=np.int64)
    vectors = _bigrams(list(first))
    similar = _similar(vectors, distinct, groups)
    for row, form in enumerate(forms):
        yield row, distinct[next(similar)].tolist() if first[form] == row else [first[form]]


def _similar(
    vectors: csr_matrix, distinct: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> Iterator[NDArray[np.int64]]:
    """For each vector, the indices of earlier ones with a cosine of at least THRESHOLD; of a large group at most one.

    `distinct` holds the row of each vector in `groups`.
    """
    rare = _rare_part(vectors)
    start = 0
    while start < len(distinct):
        large, members, step = [], np.zeros(start, np.int64), 64 * _LARGE
        if groups is not None:
            members = groups[distinct[:start]]
            numbers, sizes = np.unique(members, return_counts=True)
            large = numbers[sizes >= _LARGE].tolist()
            step = _LARGE if large else 4 * _LARGE
        rest = np.flatnonzero(~np.isin(members, large))
        stop = _chunk_end(rare, start, min(start + step, len(distinct)), rest)
        chunk = np.arange(start, stop)
        near = [_near(vectors, rare, chunk, np.concatenate([rest, chunk]))]
        near += [_first_near(vectors, rare, chunk, np.flatnonzero(members == number)) for number in large]
        rows, columns = (np.concatenate(part) for part in zip(*near, strict=True))
        order = np.argsort(rows, kind="stable")
        yield from np.split(columns[order], np.searchsorted(rows[order], chunk[1:]))
        start = stop


def _near(
    vectors: csr_matrix, rare: csr_matrix, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of one of `rows` and an earlier one of `columns` that are near-duplicates, sorted by rows."""
    shared = (rare[rows] @ rare[columns].T).tocoo()
    pairs = np.stack([rows[shared.row], columns[shared.col]])
    pairs = pairs[:, pairs[1] < pairs[0]]
    row, column = pairs[:, _cosines(vectors, *pairs) >= THRESHOLD]
    return row, column


def _first_near(
    vectors: csr_matrix, rare: csr_matrix, rows: NDArray[np.int64], group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Like `_near`, but one of `group` for each row: those without one yet are compared with ever more of it."""
    found = [(rows[:0], group[:0])]
    size = 16
    while len(rows) and len(group):
        near, columns = _near(vectors, rare, rows, group[:size])
        near, places = np.unique(near, return_index=True)
        found.append((near, columns[places]))
        rows = np.setdiff1d(rows, near, assume_unique=True)
        group, size = group[size:], 4 * size
    near, columns = (np.concatenate(part) for part in zip(*found, strict=True))
    return near, columns


def _chunk_end(rare: csr_matrix, start: int, stop: int, others: NDArray[np.int64]) -> int:
    """End of a chunk of rows, at most `stop`, so that its candidates are about _CANDIDATES_PER_CHUNK."""
    chunk = rare[start:stop]
    counts = np.bincount(np.concatenate([rare[others].indices, chunk.indices]), minlength=rare.shape[1])
    candidates = np.concatenate([[0], np.cumsum(counts[chunk.indices])])[chunk.indptr]
    return start + max(1, int(np.searchsorted(candidates, _CANDIDATES_PER_CHUNK, side="right")) - 1)


def _bigrams(forms: list[str]) -> csr_matrix:
    """L2-normalized bigram counts (forms, bigrams), columns sorted from the rarest bigram to the most frequent."""
    from sklearn.feature_extraction.text import HashingVectorizer  # 0.5 s to import

    hashing = HashingVectorizer(analyzer="char", ngram_range=(2, 2), alternate_sign=False, n_features=2**20)
    vectors: csr_matrix = hashing.transform(forms)
    counts = np.bincount(vectors.indices, minlength=vectors.shape[1])
    order = np.argsort(counts, kind="stable")[np.count_nonzero(counts == 0) :]
    rank = np.zeros(len(counts), dtype=vectors.indices.dtype)
    rank[order] = np.arange(len(order))
    vectors = type(vectors)((vectors.data, rank[vectors.indices], vectors.indptr), shape=(len(forms), len(order)))
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
