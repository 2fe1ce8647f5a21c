"""Word vectors recovered from Kiwi's language model (no download).

Kiwi's CoNg model has 256-dimensional embeddings of 70,000 morphemes but exposes only their cosine similarities. The
Nyström method (Williams & Seeger 2001) recovers the vectors, up to one common rotation, from the cosines with a set of
landmark words; with more landmarks than dimensions the recovery is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from daedap.korean.text import kiwi
from daedap.types import Float32Array

WIDTH = 256
_LANDMARKS, _COMMON = 400, (60, 12_000)
"""Number of landmarks, and the range of ids they are sampled from: Kiwi's dictionary is sorted by frequency."""


@dataclass(frozen=True)
class KiwiWordVectors:
    """Unit word vectors in an arbitrary rotation; store `basis` with any model trained on them."""

    basis: Float32Array
    """(landmarks, 256): projection of cosines with the landmarks onto the vectors."""

    @classmethod
    def recover(cls) -> KiwiWordVectors:
        """Compute the basis (about a second)."""
        landmarks = _landmarks()
        values, directions = np.linalg.eigh(_cosines(landmarks, landmarks))
        top = slice(-1, -WIDTH - 1, -1)
        return cls((directions[:, top] / np.sqrt(values[top])).astype(np.float32))

    def vectors(self, words: Iterable[int]) -> dict[int, Float32Array]:
        """`Morpheme.morpheme_id` → vector of shape (256,); words without a vector in Kiwi are left out."""
        ids, landmarks = sorted(set(words)), _landmarks()
        cosines = _cosines(ids, landmarks)
        known = [bool(np.isfinite(row).all()) for row in cosines]
        return {word: vector for word, vector, good in zip(ids, cosines @ self.basis, known, strict=True) if good}


def model_version() -> str:
    """Version of Kiwi's model; vectors of different versions are not comparable."""
    return version("kiwipiepy-model")


def _landmarks() -> list[int]:
    return sorted(int(word) for word in np.random.RandomState(0).choice(np.arange(*_COMMON), _LANDMARKS, replace=False))


def _cosines(words: list[int], others: list[int]) -> Float32Array:
    """Cosines of shape (words, others); NaN where Kiwi has no vector."""
    cosine = kiwi().morpheme_similarity
    rows = [[cosine(word, other) for other in others] for word in words]
    return np.array(rows, np.float32).reshape(len(words), len(others))
