"""From similarities to the probability that a known pair answers a question: signals, and their fitted weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from daedap.arrays import Float32Array

VIEWS = ("lexical_question", "lexical_answer", "sentence_question", "sentence_answer")
SIGNALS = (
    *VIEWS,  # of the best pair
    "score",  # their weighted sum
    "margin",  # score less that of the best pair with another answer
    "lead",  # score less the mean of the four best pairs with other answers
    "question_margin",  # sentence similarity of the question less the highest of a pair with another answer
    "answer_margin",  # … of the answer
    "interaction",  # log odds of the interaction model, which reads query and pair together
    "interaction_margin",  # … less the highest of a pair with another answer, or of no pair at all (0)
    "coverage",  # share of the query's n-grams, weighted by rarity, that question or answer contain
    "tokens",  # mean over the query's tokens of the highest cosine with a token of question or answer
    "token_quartile",  # … lower quartile
    "token_margin",  # mean less that of the best pair with another answer
    "neighbour",  # sentence similarity of the question to the nearest one with another answer
    "own_answer",  # … to its own answer
    "small_talk",  # projection of query less question on the direction of small talk
    "length",  # ln(1 + characters of the query)
)
_WEIGHTS = Path(__file__).with_name("matcher.json")


def with_rival(calibration: Float32Array, margin: float) -> Float32Array:
    """Signals (in the order of SIGNALS) beside one more pair with another answer, whose score is `margin` lower."""
    signals = dict(zip(SIGNALS, calibration.tolist(), strict=True))
    for name in ("margin", "lead", "question_margin", "answer_margin", "token_margin"):
        signals[name] = min(margin, signals[name])  # the score alone is known of the new pair
    return np.array([signals[name] for name in SIGNALS], np.float32)


@dataclass(frozen=True)
class MatchWeights:
    """Weights of the ranking and of the logistic regression for the probability, fitted by bench/ranker.py."""

    views: dict[str, float]
    interaction: float
    """Weight of the interaction model's log odds, added to the weighted sum of the views; 0: it is not used."""
    signals: dict[str, float]
    intercept: float
    small_talk: tuple[float, ...] = ()
    """(width,): direction of small talk among the vectors, away from customers' questions; empty: unknown."""

    @classmethod
    @cache
    def default(cls, *, built_in: bool = True) -> MatchWeights:
        """The package's weights: for its own sentence encoder, or for any other."""
        saved = json.loads(_WEIGHTS.read_text(encoding="utf-8"))["built_in" if built_in else "other"]
        return cls(**{**saved, "small_talk": tuple(saved["small_talk"])})

    @property
    def reads_together(self) -> bool:
        """Whether the interaction model is used."""
        return self.interaction > 0

    def probability(self, signals: Float32Array) -> float:
        """Logistic regression over (signals,), in the order of SIGNALS."""
        logit = self.intercept + float(np.dot([self.signals[name] for name in SIGNALS], signals))
        return float(1 / (1 + np.exp(-logit)))
