"""Token vectors of queries and of known pairs; those of pairs are kept for the next query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from daedap.arrays import Float32Array
from daedap.types import Pair

_KEPT = 2_000
"""Texts whose token vectors are kept, 15 kB each."""


class Encoder(Protocol):
    """What encodes texts: model/sentence_encoder.py, or anything with the same methods."""

    @property
    def built_in(self) -> bool:
        """Whether it is the package's, whose vectors the fitted weights know."""

    def encode(self, texts: Sequence[str], /) -> Float32Array:
        """(texts, width), rows of length 1."""

    def encode_tokens(self, texts: Sequence[str], /) -> list[Float32Array]:
        """(tokens, width) of each text, rows of length 1."""


class TokenVectors:
    """An encoder's token vectors, with a bounded cache; several threads may use it."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._kept: dict[str, NDArray[np.float16]] = {}

    def encode(
        self, queries: Sequence[str], pairs: Iterable[Pair]
    ) -> tuple[list[Float32Array], dict[str, Float32Array]]:
        """(tokens, width) of each query, and of each question and answer of the pairs by its text."""
        wanted = dict.fromkeys(text for pair in pairs for text in (pair.question, pair.answer))
        result = {text: one for text in wanted if (one := self._kept.get(text)) is not None}
        new = [text for text in wanted if text not in result]
        encoded = self._encoder.encode_tokens([*queries, *new])
        added = {text: one.astype(np.float16) for text, one in zip(new, encoded[len(queries) :], strict=True)}
        self._keep(added)
        return encoded[: len(queries)], {text: one.astype(np.float32) for text, one in {**result, **added}.items()}

    def _keep(self, added: dict[str, NDArray[np.float16]]) -> None:
        if len(self._kept) + len(added) > _KEPT:
            self._kept = {}  # a new one: another thread may be reading
        self._kept.update(added)
