"""What is measured, as plain functions on arrays. Definitions: docs, "Metrics"; rates are fractions, 0 to 1."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from daedap.korean.text import comparison_form, morphemes, nfc, speech_level
from daedap.types import Source

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from daedap.types import Generation, Reply

FloatArray = NDArray[np.float64]
BLAND = 50
"""A reply is bland when it is among so many most frequent training answers."""
NGRAMS = 1000
"""distinct-n falls as a text grows, so that it's always taken over this many n-grams."""
SHORT = 32
"""Tokens, the end included, within which a reply should end."""
_CELLS = 4_000_000
"""Draws held at once, 8 bytes each: 32 MB, about three times that while they are counted."""


@dataclass(frozen=True, slots=True)
class Interval:
    """95 %, by the percentiles of the resampled values."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value with its 95 % interval, and over how many things (pairs, replies, n-grams) it was taken.

    `low` and `high` are None where resampling questions says nothing: distinct-n and unique % (a resample repeats
    replies, so that it's always less varied than the sample itself), chrF and BLEU (alarms for a whole corpus, not
    sums over questions), latency (a property of the machine and the moment), and anything from a single component.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass(frozen=True, slots=True)
class RatioTerms:
    """A metric that is a ratio of sums over pairs; a pair that wasn't measured has denominator 0."""

    numerators: FloatArray
    """(pairs,)"""
    denominators: FloatArray
    """(pairs,)"""


def ratio(tally: RatioTerms, components: NDArray[np.int64], *, resamples: int = 1000, seed: int = 0) -> Score | None:
    """Sum of numerators by sum of denominators over the measured pairs, None when there are none."""
    measured = tally.denominators > 0
    above, below, groups = tally.numerators[measured], tally.denominators[measured], components[measured]
    if not measured.any():
        return None
    value, n = float(above.sum() / below.sum()), int(measured.sum())
    if (groups == groups[0]).all():
        return Score(value, n=n)
    interval = bootstrap(above, below, groups, resamples=resamples, seed=seed)
    return Score(value, interval.low, interval.high, n)


def bootstrap(
    numerators: FloatArray,
    denominators: FloatArray,
    components: NDArray[np.int64],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """95 % interval of a ratio of sums, drawing whole components with replacement.

    Near-duplicate questions stand or fall together, so that drawing single pairs would make the interval too narrow.
    All three arrays are (pairs,). For the difference of two systems on the same pairs give the difference of their
    numerators: that is the paired interval.
    """
    _, group = np.unique(components, return_inverse=True)
    above, below = np.bincount(group, numerators), np.bincount(group, denominators)
    rng, size = np.random.default_rng(seed), len(above)
    values = np.zeros(resamples)
    step = max(1, _CELLS // size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        draws = rng.integers(size, size=(count, size)) + np.arange(count)[:, None] * size
        weights = np.bincount(draws.ravel(), minlength=count * size).reshape(count, size)
        total = weights @ below
        values[start : start + count] = np.divide(weights @ above, total, out=np.full(count, np.nan), where=total > 0)
    finite = values[np.isfinite(values)]  # a resample of unmeasured pairs alone has no ratio
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return Interval(float(low), float(high))


def gold_ranks(scores: FloatArray) -> FloatArray:
    """(pairs,): the rank of the gold answer, which is in column 0 of `scores` (pairs, candidates); ties at mean rank.

    A score that is not a number counts as the lowest, so that a broken model can't win.
    """
    finite = np.where(np.isnan(scores), -np.inf, scores)
    gold, others = finite[:, :1], finite[:, 1:]
    ranks: FloatArray = 1 + (others > gold).sum(axis=1) + (others == gold).sum(axis=1) / 2
    return ranks


def chance(candidates: int) -> dict[str, float]:
    """What blind guessing scores in ranking 1 gold answer among so many candidates."""
    places = np.arange(1, candidates + 1)
    best, five = 1 / candidates, min(5, candidates) / candidates
    return {"hits_at_1": best, "recall_at_5": five, "mrr": float((1 / places).mean())}


def ranking(ranks: FloatArray) -> dict[str, RatioTerms]:
    """Hits@1, R@5 and MRR from the gold answers' ranks; NaN where a pair was not ranked."""
    ranked = (~np.isnan(ranks)).astype(np.float64)
    known = np.where(np.isnan(ranks), np.inf, ranks)
    return {
        "hits_at_1": RatioTerms((known <= 1).astype(np.float64), ranked),
        "recall_at_5": RatioTerms((known <= 5).astype(np.float64), ranked),
        "mrr": RatioTerms(1 / known, ranked),
    }


def characters(answers: Sequence[str]) -> FloatArray:
    """(answers,): lengths in NFC characters."""
    return np.array([len(nfc(answer)) for answer in answers], dtype=np.float64)


def bits_per_character(log2: FloatArray, answers: Sequence[str], measured: NDArray[np.bool_]) -> RatioTerms:
    """BPC: −log2 p of the answer's tokens and its end (pairs,), by the answer's characters.

    `measured` (pairs,) tells which pairs count; `log2` means nothing elsewhere.
    """
    return RatioTerms(np.where(measured, 0.0 - log2, 0.0), np.where(measured, characters(answers), 0.0))


def question_gain(
    own: FloatArray, other: FloatArray, answers: Sequence[str], measured: NDArray[np.bool_]
) -> RatioTerms:
    """BPC given another question less BPC given its own, from log2 p (pairs,) of each.

    `measured` (pairs,) tells which pairs count; `own` and `other` mean nothing elsewhere.
    """
    return RatioTerms(np.where(measured, own - other, 0.0), np.where(measured, characters(answers), 0.0))


def frequent_answers(answers: Sequence[str], count: int = BLAND) -> frozenset[str]:
    """Comparison forms of the most frequent answers; of equally frequent ones the first in code-point order."""
    counts = Counter(comparison_form(answer) for answer in answers)
    return frozenset(sorted(counts, key=lambda form: (-counts[form], form))[:count])


def bland(replies: Sequence[str], frequent: Collection[str]) -> FloatArray:
    """(replies,): 1 where the reply is one of the `frequent` comparison forms."""
    return np.array([comparison_form(reply) in frequent for reply in replies], dtype=np.float64)


def polite(replies: Sequence[str]) -> FloatArray:
    """(replies,): 1 where the reply ends politely."""
    return np.array([speech_level(reply) == "polite" for reply in replies], dtype=np.float64)


def ended(replies: Sequence[Generation]) -> FloatArray:
    """(replies,): 1 where the model came to its end within 32 tokens."""
    return np.array([reply.ended and reply.tokens <= SHORT for reply in replies], dtype=np.float64)


def sources(replies: Sequence[Reply]) -> dict[str, FloatArray]:
    """Source → (replies,): 1 where the reply came from it. Lessons are left out where none was used."""
    found = {name: np.array([reply.source == name for reply in replies], dtype=np.float64) for name in get_args(Source)}
    return {name: came for name, came in found.items() if name != "lesson" or came.any()}


def unique(replies: Sequence[str]) -> Score:
    """Share of different replies, by comparison form."""
    return Score(len({comparison_form(reply) for reply in replies}) / len(replies), n=len(replies))


def distinct(replies: Sequence[Sequence[str]], order: int, limit: int = NGRAMS) -> Score | None:
    """distinct-1, distinct-2: share of different n-grams among the first `limit` of them, n-grams within a reply.

    `replies` are lists of morphemes. Fewer n-grams than `limit` are all taken (`n` says how many); none gives None.
    """
    grams = [tuple(words[i : i + order]) for words in replies for i in range(len(words) - order + 1)][:limit]
    return Score(len(set(grams)) / len(grams), n=len(grams)) if grams else None


def cut(replies: Sequence[str]) -> list[list[str]]:
    """Morphemes of each reply (form and tag), by Kiwi."""
    return [morphemes(reply) for reply in replies]


def overlap(replies: Sequence[str], answers: Sequence[str]) -> dict[str, Score]:
    """chrF and BLEU on characters (0 to 100), by sacrebleu: an alarm only; a constant polite answer scores well."""
    import sacrebleu

    chrf = sacrebleu.corpus_chrf(list(replies), [list(answers)]).score
    bleu = sacrebleu.corpus_bleu(list(replies), [list(answers)], tokenize="char").score
    return {"chrf": Score(float(chrf), n=len(replies)), "bleu_char": Score(float(bleu), n=len(replies))}


def latency(seconds: Sequence[float]) -> dict[str, Score]:
    """Milliseconds for a reply to one question by itself: median and 95th percentile."""
    middle, slow = np.percentile(np.asarray(seconds) * 1000, [50, 95])
    return {
        "latency_p50_ms": Score(float(middle), n=len(seconds)),
        "latency_p95_ms": Score(float(slow), n=len(seconds)),
    }
