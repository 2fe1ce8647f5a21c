"""A question with its history and sentence vector, encoded once and shared by all stages of retrieval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from daedap.arrays import Float32Array
from daedap.retrieval.token_vectors import Encoder
from daedap.types import Message, Pair


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
