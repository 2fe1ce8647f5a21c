"""A question with its history and vectors, encoded once and shared by all stages of retrieval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from daedap.types import Float32Array, Message, Pair

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


@dataclass(frozen=True)
class Query:
    """A question, the turns before it, and its sentence vector."""

    text: str
    vector: Float32Array
    """(width,), of length 1."""
    history: tuple[Message, ...] = ()

    @property
    def pair(self) -> Pair:
        """As a language model reads it: a pair whose answer is still missing."""
        return Pair(self.text, "", history=self.history)


def encode_queries(questions: Iterable[Pair | str], encoder: Encoder) -> list[Query]:
    """Encode questions, or the questions of pairs with their histories, in one batch."""
    pairs = [Pair(each, "") if isinstance(each, str) else each for each in questions]
    texts = [printable(pair.question) for pair in pairs]
    vectors = encoder.encode(texts)
    return [Query(text, vector, pair.history) for text, vector, pair in zip(texts, vectors, pairs, strict=True)]


def printable(text: str) -> str:
    """With "?" for lone surrogates, which stand for bytes that a terminal could not decode."""
    return text.encode("utf-8", "replace").decode()


def texts_of(queries: Sequence[Query]) -> list[str]:
    """The questions."""
    return [query.text for query in queries]


def vectors_of(queries: Sequence[Query]) -> Float32Array:
    """(queries, width)"""
    return np.stack([query.vector for query in queries])


class TokenVectors:
    """Token vectors by an encoder; those of known pairs are kept for the next query. Several threads may use it."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._kept: dict[str, NDArray[np.float16]] = {}

    def encode(
        self, queries: Sequence[str], pairs: Iterable[Pair]
    ) -> tuple[list[Float32Array], dict[str, Float32Array]]:
        """(tokens, width) of each query, and of each question and answer of the pairs by its text."""
        texts = dict.fromkeys(text for pair in pairs for text in (pair.question, pair.answer))
        halves = {text: tokens for text in texts if (tokens := self._kept.get(text)) is not None}
        new = [text for text in texts if text not in halves]
        encoded = self._encoder.encode_tokens([*queries, *new])
        added = {text: tokens.astype(np.float16) for text, tokens in zip(new, encoded[len(queries) :], strict=True)}
        if len(self._kept) + len(added) > _KEPT:
            self._kept = {}  # a new one: another thread may be reading
        self._kept.update(added)
        return encoded[: len(queries)], {text: half.astype(np.float32) for text, half in (halves | added).items()}
