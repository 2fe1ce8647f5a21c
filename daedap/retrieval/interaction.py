"""Reads a query and a known pair together: does this pair answer it? A small interaction model over token vectors.

Each token of the query attends to the tokens of the pair and the other way round, is compared with what it found, and
both sides are pooled (decomposable attention: Parikh et al. 2016, "A Decomposable Attention Model for Natural Language
Inference"). The token vectors are the sentence encoder's, so that it costs a fraction of a millisecond a pair and needs
no PyTorch. bench/sentence_encoder/interaction.py trains it; `interaction.npz` holds its weights in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from daedap.types import Float32Array

_WEIGHTS = Path(__file__).with_name("interaction.npz")


class TokenPair(NamedTuple):
    """A known pair as token vectors, rows of length 1."""

    question: Float32Array
    """(tokens, width)"""
    answer: Float32Array
    """(tokens, width); no tokens where answers say nothing about their questions, as in small talk."""


@dataclass(frozen=True)
class InteractionModel:
    """The weights, named as in bench/sentence_encoder/interaction.py; `inner` below is the model's own width."""

    weights: Mapping[str, Float32Array]

    @classmethod
    @cache
    def default(cls) -> InteractionModel:
        """The model of the package."""
        with np.load(_WEIGHTS, allow_pickle=False) as file:
            return cls({name: file[name].astype(np.float32) for name in file.files})

    def log_odds(self, query: Float32Array, pairs: Sequence[TokenPair], similarities: Float32Array) -> Float32Array:
        """(pairs,): log odds that each pair answers the query, against no pair.

        query: (tokens, width), rows of length 1. similarities: (pairs, 4), sentence similarity of question and of
        answer, and each less the highest of a pair with another answer.
        """
        known = np.concatenate([part for pair in pairs for part in pair])
        sides = np.concatenate([np.repeat([0, 1], [len(part) for part in pair]) for pair in pairs])
        ends = np.cumsum([len(pair.question) + len(pair.answer) for pair in pairs])[:-1]
        projected, values = self._linear("project", query), self._linear("project", known) + self.weights["side"][sides]
        cosines = query @ known.T
        attention = np.split(self.weights["scale"] * (self._keys(query) @ self._keys(known).T + cosines), ends, axis=1)
        to_known = [_softmax(each, axis=1) @ part for each, part in zip(attention, np.split(values, ends), strict=True)]
        to_query = [_softmax(each, axis=0).T @ projected for each in attention]
        highest = np.concatenate([each.max(axis=1) for each in np.split(cosines, ends, axis=1)])
        query_features = self._compared(np.tile(projected, (len(pairs), 1)), np.concatenate(to_known), highest)
        pair_features = self._compared(values, np.concatenate(to_query), cosines.max(axis=0))
        pooled = [
            self._pooled("query_gate", [query] * len(pairs), np.split(query_features, len(pairs))),
            self._pooled("pair_gate", np.split(known, ends), np.split(pair_features, ends)),
        ]
        hidden = self._activated("hidden", np.concatenate([*pooled, similarities], axis=1))
        log_odds: Float32Array = self._linear("output", hidden)[:, 0]
        return log_odds

    def _pooled(self, gate: str, texts: Sequence[Float32Array], compared: Sequence[Float32Array]) -> Float32Array:
        """(texts, 2 inner): mean of each text's tokens, weighted by a gate over their vectors, and maximum."""
        means = [
            _softmax(self._linear(gate, tokens)[:, 0]) @ part for tokens, part in zip(texts, compared, strict=True)
        ]
        return np.hstack([np.stack(means), np.stack([part.max(axis=0) for part in compared])])

    def _compared(self, own: Float32Array, attended: Float32Array, cosines: Float32Array) -> Float32Array:
        """(tokens, inner). own, attended: (tokens, inner), each token and what it attended to; cosines: (tokens,)."""
        both = np.concatenate([own, attended, own * attended, np.abs(own - attended), cosines[:, None]], axis=1)
        return self._activated("compare", both)

    def _keys(self, tokens: Float32Array) -> Float32Array:
        """(tokens, inner), rows of length 1. tokens: (tokens, width)."""
        keys = tokens @ self.weights["key.weight"].T
        length: Float32Array = np.linalg.norm(keys, axis=1, keepdims=True)
        normalized: Float32Array = keys / np.maximum(length, 1e-12)
        return normalized

    def _activated(self, name: str, inputs: Float32Array) -> Float32Array:
        return np.maximum(self._linear(name, inputs), 0)

    def _linear(self, name: str, inputs: Float32Array) -> Float32Array:
        product: Float32Array = inputs @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return product


def _softmax(values: Float32Array, axis: int = -1) -> Float32Array:
    exponentials = np.exp(values - values.max(axis=axis, keepdims=True))
    shares: Float32Array = exponentials / exponentials.sum(axis=axis, keepdims=True)
    return shares
