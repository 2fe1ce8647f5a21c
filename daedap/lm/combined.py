"""Answers by the engine, scores by PyTorch, each once: for the candidates that a training and an evaluation compare.

PyTorch reads a question once for all its candidates, CTranslate2 once for each of them: on two AVX2 cores that takes
three times as long. Both were found to agree when the engine was made (verify.py). A single question is scored by the
engine, as for a user, so that the time of a reply is that of a user's reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from daedap.lm.prompt import Prompt
from daedap.lm.score import FloatArray
from daedap.lm.speech import Talker
from daedap.pair import Pair, Spoken

_FEW = 8
"""Candidates of one question that a bot asks the model about."""


@dataclass(frozen=True)
class _Wrapped:
    """A language model whose likelihoods come from elsewhere; all else is the model's own."""

    model: Talker

    @property
    def prompt(self) -> Prompt:
        """How it reads a question."""
        return self.model.prompt

    def reply(self, pairs: Sequence[Pair]) -> list[Spoken]:
        """As `Talker.reply`."""
        return self.model.reply(pairs)

    def stream(self, pair: Pair, tell: Callable[[str], None]) -> Spoken:
        """As `Talker.stream`."""
        return self.model.stream(pair, tell)

    def sample(
        self, pairs: Sequence[Pair], count: int, *, seed: int, temperature: float = 1.0, top_k: int = 0
    ) -> list[list[Spoken]]:
        """As `Talker.sample`."""
        return self.model.sample(pairs, count, seed=seed, temperature=temperature, top_k=top_k)


@dataclass(frozen=True)
class Scored(_Wrapped):
    """A language model that computes the likelihood of a pair once, however often it is asked for it.

    Fitting the ranker, ranking candidates by the model and ranking them by the bot ask for many of the same.
    """

    known: dict[Pair, tuple[float, float]] = field(default_factory=dict, repr=False)

    def log2_probability(self, pairs: Sequence[Pair]) -> FloatArray:
        """As `Talker.log2_probability`."""
        keys = [Pair(pair.question, pair.answer, history=pair.history) for pair in pairs]
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        if new:
            self.known.update(zip(new, map(tuple, self.model.log2_probability(new).tolist()), strict=True))
        return np.array([self.known[key] for key in keys], np.float64).reshape(len(pairs), 2)


@dataclass(frozen=True)
class Combined(_Wrapped):
    """An engine that answers, and the same model by PyTorch, which scores many pairs in less time."""

    scorer: Talker

    def log2_probability(self, pairs: Sequence[Pair]) -> FloatArray:
        """As `Talker.log2_probability`: few pairs by the engine, many by the scorer."""
        return (self.model if len(pairs) <= _FEW else self.scorer).log2_probability(pairs)
