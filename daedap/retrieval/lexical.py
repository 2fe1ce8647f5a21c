"""The nearest known questions: TF-IDF over characters and pairs of characters, saved without pickle.

Folder: `matrix.npz` (posting lists), `idf.npy`, `pairs.jsonl`. Measured choices: docs/EXPERIMENTS.md, "Retrieval".

LexicalKnn ranks answers by what was answered to similar questions: without training, the baseline of every ranking.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, lru_cache
from operator import add
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from daedap.errors import RunError
from daedap.korean.text import comparison_form, strip_emoticons
from daedap.types import Evidence, Float32Array, Float64Array, Pair

FEATURES = 2**18
"""Hash buckets: about ten for each pair of characters that a file of 12,000 questions holds."""
MAX_SIMILARITIES = 8_000_000
"""Similarities held at once, 4 bytes each: 32 MB."""
PAIR_SIDES = ("questions", "answers")
"""Names of the two vectors of a pair, in files."""
_COMMON = 8
"""N-grams in more than one of so many pairs are multiplied as dense columns."""
_SPACES = re.compile(r"\s\s+")
_BITS = 2**32 - 1
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


class Hits(NamedTuple):
    """The nearest known pairs of a question, or of each of several, best first; equally near ones in file order."""

    rows: NDArray[np.int64]
    """(k,) or (questions, k)"""
    similarities: Float32Array
    """(k,) or (questions, k): 0 to 1."""


class CharTfidf:
    """Texts as unit vectors: characters and pairs of characters of the comparison form, weighted by rarity.

    The two ends of a text count as characters, because how a Korean question begins and ends says much about it.
    """

    def __init__(self, idf: Float32Array) -> None:
        assert idf.shape == (FEATURES,), f"idf has shape {idf.shape}"
        self.idf = idf

    @classmethod
    def fit(cls, texts: Sequence[str]) -> CharTfidf:
        """Learn how rare each n-gram is: ln((1 + n) / (1 + document frequency)) + 1."""
        counts = _counts(texts)
        frequency = np.bincount(counts.indices, minlength=FEATURES)
        idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
        return cls(idf.astype(np.float32))

    def vectors(self, texts: Sequence[str]) -> sparse.csr_array[np.float32]:
        """(texts, FEATURES), each row of length 1; a text without characters is all zeros."""
        vectors = _counts(texts)
        vectors.data *= self.idf[vectors.indices]
        lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1), dtype=np.float64)).ravel()
        vectors.data /= np.repeat(lengths, np.diff(vectors.indptr)).astype(np.float32)
        return vectors


class LexicalIndex:
    """Training pairs, found by question."""

    def __init__(self, pairs: Sequence[Pair], ngrams: CharTfidf, postings: sparse.csr_array[np.float32]) -> None:
        assert postings.shape == (FEATURES, len(pairs)), f"{len(pairs)} pairs, postings of shape {postings.shape}"
        self.pairs = tuple(pairs)
        self.ngrams = ngrams
        # N-grams down, pairs across: a question reads only the rows of its own n-grams.
        self._postings = postings

    @classmethod
    def build(cls, pairs: Sequence[Pair], ngrams: CharTfidf | None = None) -> LexicalIndex:
        """Index the questions of `pairs` (at least one). `ngrams`: by default fitted on them."""
        assert pairs, "an index needs at least one pair"
        questions = [pair.question for pair in pairs]
        ngrams = ngrams or CharTfidf.fit(questions)
        return cls(pairs, ngrams, ngrams.vectors(questions).T.tocsr())

    def extended(self, pairs: Sequence[Pair]) -> LexicalIndex:
        """The same index with more pairs behind its own; how rare an n-gram is stays as it was fitted."""
        if not pairs:
            return self
        more = self.ngrams.vectors([pair.question for pair in pairs]).T.tocsr()
        return LexicalIndex([*self.pairs, *pairs], self.ngrams, sparse.hstack([self._postings, more], format="csr"))

    def search(self, questions: Sequence[str], k: int = 1, *, cells: int = MAX_SIMILARITIES) -> Hits:
        """The `k` nearest pairs of each question, with at most `cells` cosines in memory at once."""
        shape = (len(questions), len(self.pairs))
        return nearest(lambda part: self.similarities(questions[part]), shape, k, cells)

    def similarities(self, questions: Sequence[str]) -> Float32Array:
        """(questions, pairs): all cosines."""
        vectors, (common, dense) = self.ngrams.vectors(questions), self._common
        frequent = vectors[:, common].toarray()
        vectors.data[np.isin(vectors.indices, common)] = 0
        vectors.eliminate_zeros()
        cosines: Float32Array = (vectors @ self._postings).toarray()
        for row, place in zip(*frequent.nonzero(), strict=True):  # not by BLAS: equal questions must stay exactly equal
            cosines[row] += frequent[row, place] * dense[place]
        return cosines

    @cached_property
    def _common(self) -> tuple[NDArray[np.int64], Float32Array]:
        """N-grams of every eighth question, such as a text's ends, and their (n-grams, pairs): quicker when dense."""
        common = np.flatnonzero(np.diff(self._postings.indptr) * _COMMON > len(self.pairs))
        return common, self._postings[common].toarray()

    def nearest(self, questions: Sequence[str], k: int = 1) -> list[list[Evidence]]:
        """The `k` nearest known questions with their answers, best first, for each question."""
        hits = self.search(questions, k)
        return [self.evidence(*each) for each in zip(hits.rows, hits.similarities, strict=True)]

    def evidence(self, rows: NDArray[np.int64], similarities: Float32Array) -> list[Evidence]:
        """The pairs in these rows, (k,)."""
        pairs = [self.pairs[row] for row in rows]
        each = zip(pairs, similarities.clip(0, 1).tolist(), strict=True)
        return [Evidence(pair.question, pair.answer, similarity) for pair, similarity in each]

    def save(self, folder: Path) -> None:
        """Write the index; the same pairs give the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        sparse.save_npz(folder / "matrix.npz", self._postings)
        np.save(folder / "idf.npy", self.ngrams.idf, allow_pickle=False)
        with (folder / "pairs.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in self.pairs)

    @classmethod
    def open(cls, folder: Path) -> LexicalIndex:
        """Read a saved index. Raises RunError when a file is missing, damaged or of another index."""
        with _reading(folder / "pairs.jsonl") as file:
            pairs = [Pair.from_json(json.loads(line)) for line in file]
            if not pairs:
                raise ValueError("no pairs")
        with _reading(folder / "idf.npy") as file:
            idf: Float32Array = np.load(file, allow_pickle=False)
            if idf.shape != (FEATURES,) or idf.dtype != np.float32:
                raise ValueError(f"{idf.dtype} {idf.shape}")
        with _reading(folder / "matrix.npz") as file:  # given a path, numpy would leave a broken file open
            postings: sparse.csr_array[np.float32] = sparse.csr_array(sparse.load_npz(file))
            postings.check_format(full_check=True)  # an index out of range would read foreign memory
            if postings.shape != (FEATURES, len(pairs)):
                raise ValueError(f"{postings.shape}, {len(pairs)} pairs")
        return cls(pairs, CharTfidf(idf), postings)


def _counts(texts: Sequence[str]) -> sparse.csr_array[np.float32]:
    """(texts, FEATURES): how often each n-gram occurs."""
    columns, ends = array("i"), array("i", [0])
    for text in texts:
        form = _SPACES.sub(" ", strip_emoticons(text))
        marked = f"\x02{form}\x03" if form else ""
        columns.extend(map(_bucket, marked))
        columns.extend(map(_bucket, map(add, marked, marked[1:])))
        ends.append(len(columns))
    ones, shape = np.ones(len(columns), np.float32), (len(texts), FEATURES)
    counts: sparse.csr_array[np.float32]
    counts = sparse.csr_array((ones, np.array(columns, np.int32), np.array(ends, np.int32)), shape=shape)
    counts.sum_duplicates()
    return counts


@lru_cache(1 << 17)
def _bucket(ngram: str) -> int:
    """The column of an n-gram: MurmurHash3 (x86, 32 bits, seed 0; https://github.com/aappleby/smhasher).

    The same as that of scikit-learn's HashingVectorizer, whose import takes longer than everything else until a first
    answer.
    """
    octets = ngram.encode("utf-8", "surrogatepass")
    state = 0
    for start in range(0, len(octets), 4):
        part = octets[start : start + 4]
        block = int.from_bytes(part, "little") * 0xCC9E2D51 & _BITS
        state ^= (block << 15 | block >> 17) * 0x1B873593 & _BITS
        if len(part) == 4:
            state = ((state << 13 | state >> 19) & _BITS) * 5 + 0xE6546B64 & _BITS
    state ^= len(octets)
    state = (state ^ state >> 16) * 0x85EBCA6B & _BITS
    state = (state ^ state >> 13) * 0xC2B2AE35 & _BITS
    state ^= state >> 16
    return min(state, 2**32 - state) % FEATURES  # its absolute value, as of a signed number


def chunks(queries: int, pairs: int, cells: int = MAX_SIMILARITIES) -> Iterator[slice]:
    """Slices of the queries whose similarities to all pairs are computed together: at most `cells` numbers each."""
    step = max(1, cells // pairs)
    return (slice(start, start + step) for start in range(0, queries, step))


def nearest(
    similarities: Callable[[slice], Float32Array], shape: tuple[int, int], k: int, cells: int = MAX_SIMILARITIES
) -> Hits:
    """The `k` nearest pairs of each query (all of them, when there are fewer). `shape`: (queries, pairs).

    `similarities`: slice of the queries → (queries, pairs). At most `cells` of them are in memory at once.
    """
    queries, pairs = shape
    k = min(k, pairs)
    hits = Hits(np.zeros((queries, k), np.int64), np.zeros((queries, k), np.float32))
    for part in chunks(queries, pairs, cells):
        near = similarities(part)
        hits.rows[part] = largest(near, k)
        hits.similarities[part] = np.take_along_axis(near, hits.rows[part], axis=1).clip(0, 1)
    return hits


def nearest_vectors(known: Float32Array, vectors: Float32Array, k: int) -> Hits:
    """The `k` nearest of known vectors, (pairs, width), to each of (queries, width), by cosine."""
    return nearest(lambda part: vectors[part] @ known.T, (len(vectors), len(known)), k)


def surrounded(own: NDArray[Any], added: NDArray[Any], before: int) -> NDArray[Any]:
    """Rows with others around them: the first `before` of `added` before them, the rest after them."""
    return np.concatenate([added[:before], own, added[before:]])


def largest(values: Float32Array, k: int) -> NDArray[np.int64]:
    """(rows, k): columns of the k largest values of each row, largest first, equal ones by column."""
    kth = np.partition(values, -k, axis=1)[:, -k]
    best = np.zeros((len(values), k), dtype=np.int64)
    for row, (line, least) in enumerate(zip(values, kth, strict=True)):
        # argpartition alone would choose freely among those that tie for the last place.
        columns = np.flatnonzero(line >= least)
        best[row] = columns[np.argsort(-line[columns], kind="stable")[:k]]
    return best


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """An open file. Raises RunError when it is missing, or when what happens in the block shows that it is damaged."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        message = "{file}: this part of the index is missing."
        raise RunError(message, "Train again to make a whole run.", file=path) from error
    except READ_ERRORS as error:
        raise damaged(path, str(error)) from error


def damaged(file: Path, problem: str) -> RunError:
    """What to raise when part of what a bot knows can't be read."""
    return RunError(
        "{file}: the index is damaged ({problem}).", "Train again to make a whole run.", file=file, problem=problem
    )


NEAREST = 100
DIRECT = 0.3
"""Weight of what question and candidate have in common; chosen, like NEAREST, on a part kept apart for it."""


class LexicalKnn:
    """Ranks candidates by what was answered to questions like this one."""

    def __init__(self, index: LexicalIndex) -> None:
        answers = [pair.answer for pair in index.pairs]
        self._index = index
        self._ngrams = CharTfidf.fit(answers)
        self._answers = self._ngrams.vectors(answers)

    def answer_counts(self, texts: Sequence[str]) -> Float64Array:
        """(texts,): how many known questions have this answer; 1 for what is not known."""
        return np.array([max(1, self._count[comparison_form(text)]) for text in texts], np.float64)

    @cached_property
    def _count(self) -> Counter[str]:
        return Counter(comparison_form(pair.answer) for pair in self._index.pairs)

    def scores(self, questions: Sequence[str], candidates: Sequence[Sequence[str]]) -> Float64Array:
        """(questions, candidates): how well each candidate answers. All lists of candidates are equally long."""
        owners = np.repeat(np.arange(len(questions)), len(candidates[0]))
        texts = [text for listed in candidates for text in listed]
        return self.score_texts(questions, owners, texts).reshape(len(questions), -1)

    def score_texts(self, questions: Sequence[str], owners: NDArray[np.int64], texts: Sequence[str]) -> Float64Array:
        """(texts,): how well each text answers its question, the one whose number is in `owners`, (texts,).

        max over the 100 nearest known questions q' with answers a' of cos(q, q')² · cos(text, a'),
        plus 0.3 · cos(q, text).
        """
        near = self._index.search(questions, NEAREST)
        query_vectors, text_vectors = self._ngrams.vectors(questions), self._ngrams.vectors(texts)
        scores = np.zeros(len(texts))
        for row in range(len(questions)):
            mine = np.flatnonzero(owners == row)
            by_answers = (text_vectors[mine] @ self._answers[near.rows[row]].T).toarray()
            direct = (text_vectors[mine] @ query_vectors[row : row + 1].T).toarray()[:, 0]
            scores[mine] = (by_answers * near.similarities[row] ** 2).max(axis=1, initial=0) + DIRECT * direct
        return scores
