"""Questions and answers in one space, where what goes together is near: a bi-encoder learned from the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daedap.answer.features import Features, unit
from daedap.korean import comparison_form
from daedap.pair import Pair

FloatArray = NDArray[np.float32]
MOST = 100_000
"""Pairs that it learns from at most, drawn at random."""


@dataclass(frozen=True)
class Encoder:
    """Texts → vectors of length 1; what a text is taken for, a question or an answer, makes a difference."""

    features: Features
    question: FloatArray
    """(768, 256)"""
    answer: FloatArray

    @classmethod
    def fit(cls, pairs: Sequence[Pair], seed: int, *, bf16: bool = False) -> Encoder:
        """Learn from pairs, whose questions and answers are all it ever sees; in bf16 where that is the faster."""
        from daedap.lm.pairing import learn_pairing  # torch takes seconds to import

        if len(pairs) > MOST:
            chosen = np.random.default_rng(seed).choice(len(pairs), MOST, replace=False)
            pairs = [pairs[row] for row in chosen]
        questions, answers = [pair.question for pair in pairs], [pair.answer for pair in pairs]
        features = Features.fit([*questions, *answers], seed)
        _, groups = np.unique([comparison_form(answer) for answer in answers], return_inverse=True)
        parts = (features.of(questions), features.of(answers), groups.astype(np.int64))
        learned = learn_pairing(*parts, seed, bf16=bf16)
        return cls(features, learned.question, learned.answer)

    def questions(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 256)"""
        return unit(self.features.of(texts) @ self.question)

    def answers(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 256)"""
        return unit(self.features.of(texts) @ self.answer)

    def save(self, folder: Path) -> None:
        """Write it, without pickle."""
        folder.mkdir(parents=True, exist_ok=True)
        self.features.save(folder)
        np.savez(folder / "maps.npz", question=self.question, answer=self.answer)

    @classmethod
    def open(cls, folder: Path) -> Encoder:
        """Read it. Raises RunError when it was made with another model of Kiwi's."""
        with np.load(folder / "maps.npz", allow_pickle=False) as maps:
            return cls(Features.open(folder), maps["question"], maps["answer"])
