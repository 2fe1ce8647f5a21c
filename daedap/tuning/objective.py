"""The objective of a search: bits per character in which the information from the question has a higher weight.

Dev rows are put into groups of four with distinct questions and answers, and every answer is scored after each of the
four questions. For an answer A, its own question Q and the questions Q′ of its group (Q included):

    marginal   −log2 mean p(A | Q′): bits of the answer whatever the question
    gain       log2 p(A | Q) − log2 mean p(A | Q′): information from the question; 0 for a model that ignores
               questions, at most 2 bits (InfoNCE, van den Oord et al. 2018: a lower bound of the mutual information)
    score      Σ (marginal − 4 gain) ÷ Σ characters of the answers; lower is better

With weight 1 the score is BPC, of which the question explains a tenth. The gain alone would not notice a model that
forgets how to write. Hits@1 is binary for each row and discards most of the information (docs/tuning.md). The gain is
logarithmic, so a confident wrong model loses more than a confident right one gains, and higher surprise after the other
questions does not increase it without bound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from daedap.errors import SettingsError
from daedap.evaluation.metrics import characters
from daedap.korean.text import comparison_form
from daedap.types import Float64Array, Pair

Scorer = Callable[[Sequence[Pair]], Float64Array]
"""Pairs → (pairs, 2): log2 p of each answer after its question, and its number of tokens."""
GROUP = 4
WEIGHT = 4.0
"""Weight of the gain. More would make the score noisier, as the gain has a larger error than BPC (docs/tuning.md)."""
_MAX_ROWS = 256
"""Rows of each half: more rows separate trials no better and take more of their time."""
_MIN_ROWS = 2 * GROUP
_PRUNING_ROWS = 64
"""Rows scored after each epoch, to decide on early stopping."""


@dataclass(frozen=True)
class DevRows:
    """Dev rows in groups of four, one group after the other."""

    pairs: Sequence[Pair]
    components: Sequence[str]

    @property
    def for_pruning(self) -> DevRows:
        """The first 64 rows."""
        return DevRows(self.pairs[:_PRUNING_ROWS], self.components[:_PRUNING_ROWS])


@dataclass(frozen=True)
class ObjectiveTerms:
    """A model's log-probabilities on dev rows, (rows,) each, in bits."""

    own: Float64Array
    """log2 p of each answer after its own question."""
    mean: Float64Array
    """log2 of the mean p of each answer after the questions of its group."""
    characters: Float64Array

    @property
    def bits(self) -> Float64Array:
        """(rows,): marginal − 4 gain."""
        weighted: Float64Array = -self.mean - WEIGHT * (self.own - self.mean)
        return weighted

    @property
    def score(self) -> float:
        """The objective; lower is better."""
        return float(self.bits.sum() / self.characters.sum())

    @property
    def bpc(self) -> float:
        """Bits per character of the answers after their own questions."""
        return float(-self.own.sum() / self.characters.sum())

    @property
    def gain(self) -> float:
        """Mean information from the question in bits, at most 2."""
        return float((self.own - self.mean).mean())


def split_dev(dev: Sequence[Pair], components: Sequence[str]) -> tuple[DevRows, DevRows]:
    """Split dev rows by component into rows that select the best trial and rows that compare it with the defaults.

    The best of many trials is also the luckiest one on the rows that selected it, so its score there is biased. Raises
    SettingsError if there are too few rows.
    """
    order = sorted(range(len(dev)), key=lambda row: (_hash_byte(components[row]), dev[row].id))
    halves = [[row for row in order if _hash_byte(components[row]) % 2 == half] for half in (0, 1)]
    selection, comparison = (_grouped([dev[row] for row in half], [components[row] for row in half]) for half in halves)
    if min(len(selection.pairs), len(comparison.pairs)) < _MIN_ROWS:
        raise SettingsError(
            "{rows} dev rows are too few to compare settings.",
            "Try --dev-size 0.2, or add rows.",
            rows=len(dev),
        )
    return selection, comparison


def measure_objective(scorer: Scorer, rows: DevRows) -> ObjectiveTerms:
    """Score each answer after the four questions of its group."""
    groups = [rows.pairs[start : start + GROUP] for start in range(0, len(rows.pairs), GROUP)]
    crossed = [replace(query, answer=pair.answer) for group in groups for query in group for pair in group]
    log2 = scorer(crossed)[:, 0].reshape(-1, GROUP, GROUP)  # groups, questions, answers
    own = np.diagonal(log2, axis1=1, axis2=2).ravel()
    mean = np.logaddexp2.reduce(log2, axis=1).ravel() - np.log2(GROUP)
    return ObjectiveTerms(own, mean, characters([pair.answer for pair in rows.pairs]))


def _hash_byte(component: str) -> int:
    return hashlib.blake2b(component.encode(), digest_size=4).digest()[0]


def _grouped(pairs: Sequence[Pair], components: Sequence[str]) -> DevRows:
    """Groups of four rows with distinct questions and answers; rows that fill no group are left out."""
    groups: list[list[int]] = []
    forms = [(comparison_form(pair.question), comparison_form(pair.answer)) for pair in pairs]
    for row, (question, answer) in enumerate(forms):
        for group in groups:
            others = [forms[other] for other in group]
            if len(group) < GROUP and all(question != other[0] and answer != other[1] for other in others):
                group.append(row)
                break
        else:
            groups.append([row])
    chosen = [row for group in groups if len(group) == GROUP for row in group][:_MAX_ROWS]
    return DevRows([pairs[row] for row in chosen], [components[row] for row in chosen])
