"""What words mean, as numbers: the word vectors of Kiwi's language model, which need no download.

Kiwi's CoNg model holds a vector of 256 numbers for each of 70,000 morphemes but tells only their cosines. From its
cosines with enough other words a vector follows, up to a rotation that all vectors share (Nyström's method: Williams
& Seeger 2001): with more landmarks than the vectors have numbers, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from daedap.korean.text import kiwi

WIDTH = 256
_LANDMARKS, _COMMON = 400, (60, 12_000)
"""So many words among those that occur often: the numbers of Kiwi's dictionary go by frequency."""
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class KiwiWordVectors:
    """Word vectors of length 1, in one of many rotations: keep `basis` with whatever was learned from them."""

    basis: FloatArray
    """(landmarks, 256)"""

    @classmethod
    def recover(cls) -> KiwiWordVectors:
        """Find the basis; it takes a second."""
        landmarks = _landmarks()
        values, directions = np.linalg.eigh(_cosines(landmarks, landmarks))
        top = slice(-1, -WIDTH - 1, -1)
        return cls((directions[:, top] / np.sqrt(values[top])).astype(np.float32))

    def vectors(self, words: Iterable[int]) -> dict[int, FloatArray]:
        """Words' numbers (`Morpheme.number`) → (256,) each; words that Kiwi has no vector for are left out."""
        asked, landmarks = sorted(set(words)), _landmarks()
        cosines = _cosines(asked, landmarks)
        known = [bool(np.isfinite(row).all()) for row in cosines]
        return {word: found for word, found, good in zip(asked, cosines @ self.basis, known, strict=True) if good}


def model_version() -> str:
    """Of Kiwi's model: another one has other vectors."""
    return version("kiwipiepy-model")


def _landmarks() -> list[int]:
    return sorted(int(word) for word in np.random.RandomState(0).choice(np.arange(*_COMMON), _LANDMARKS, replace=False))


def _cosines(words: list[int], others: list[int]) -> FloatArray:
    """(words, others); not a number where Kiwi has no vector."""
    cosine = kiwi().morpheme_similarity
    rows = [[cosine(word, other) for other in others] for word in words]
    return np.array(rows, np.float32).reshape(len(words), len(others))
