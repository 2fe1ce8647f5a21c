"""Known pairs where the encoder puts them, found by meaning rather than by letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daedap.answer.encoder import Encoder
from daedap.answer.index import CELLS, Neighbours, largest
from daedap.pair import Pair

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Space:
    """Vectors of pairs, in the order of an index."""

    encoder: Encoder
    asked: FloatArray
    """(pairs, 256): their questions."""
    said: FloatArray
    """(pairs, 256): their answers."""

    @classmethod
    def of(cls, encoder: Encoder, pairs: Sequence[Pair]) -> Space:
        """Encode pairs."""
        asked = encoder.questions([pair.question for pair in pairs])
        return cls(encoder, asked, encoder.answers([pair.answer for pair in pairs]))

    def extended(self, pairs: Sequence[Pair]) -> Space:
        """With more pairs behind its own."""
        return self.followed_by(Space.of(self.encoder, pairs))

    def followed_by(self, other: Space) -> Space:
        """With the pairs of another space behind its own, that the same encoder has encoded."""
        asked, said = (self.asked, other.asked), (self.said, other.said)
        return Space(self.encoder, np.concatenate(asked), np.concatenate(said))

    def first(self, pairs: int) -> Space:
        """The first so many pairs alone."""
        return Space(self.encoder, self.asked[:pairs], self.said[:pairs])

    def search(self, vectors: FloatArray, k: int) -> Neighbours:
        """The `k` nearest known questions of each of the vectors, (questions, 256)."""
        k = min(k, len(self.asked))
        rows, cosines = np.zeros((len(vectors), k), np.int64), np.zeros((len(vectors), k), np.float32)
        step = max(1, CELLS // len(self.asked))
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            near = vectors[part] @ self.asked.T
            rows[part] = largest(near, k)
            cosines[part] = np.take_along_axis(near, rows[part], axis=1).clip(0, 1)
        return Neighbours(rows, cosines)

    def save(self, folder: Path) -> None:
        """Write encoder and vectors; half precision is enough for these."""
        self.encoder.save(folder)
        np.savez(folder / "vectors.npz", asked=self.asked.astype(np.float16), said=self.said.astype(np.float16))

    @classmethod
    def open(cls, folder: Path) -> Space:
        """Read them."""
        with np.load(folder / "vectors.npz", allow_pickle=False) as file:
            return cls(Encoder.open(folder), file["asked"].astype(np.float32), file["said"].astype(np.float32))
