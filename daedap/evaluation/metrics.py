"""The metrics as functions on arrays. Definitions: docs/evaluation.md, "The scores". Rates are fractions, 0 to 1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from daedap.korean.text import comparison_form, nfc, speech_level
from daedap.types import Float64Array

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from daedap.types import Generation, Reply

Part = Literal["known", "small_talk", "lesson", "generated", "suggestions", "fallback"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Where a reply comes from: a known answer, built-in small talk, a lesson, the language model, the nearest known
questions to choose from, or a request to say it another way."""
BLAND = 50
"""Number of the most frequent known answers; a reply is bland if it is one of them."""
NGRAMS = 1000
"""distinct-n falls as a text grows, so it is always computed on at most this many n-grams."""
SHORT = 32
"""Tokens, EOS included, within which a reply should end."""
_CELLS = 4_000_000
"""Bootstrap draws in memory at once, 8 bytes each: 32 MB, about three times that while they are counted."""


@dataclass(frozen=True, slots=True)
class Interval:
    """95 % percentile interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value with its 95% interval, and the number `n` of pairs, replies or n-grams it was computed from.

    `low` and `high` are None where a bootstrap over questions is not valid: distinct-n and unique % (a resample
    repeats replies, so it is always less diverse than the sample), chrF and BLEU (corpus metrics, not sums over
    questions), latency (depends on machine and load), and any metric measured in a single component.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    @property
    def lower(self) -> float:
        """Lower end of the interval, or the value without one."""
        return self.value if self.low is None else self.low

    @property
    def upper(self) -> float:
        """Upper end of the interval, or the value without one."""
        return self.value if self.high is None else self.high


Scores = Mapping[str, Mapping[str, Mapping[str, Score]]]
"""System → slice ("all", "seen", "unseen", "label:…") → metric → score."""


def as_json(value: Any) -> Any:
    """Plain JSON types: a dataclass as an object, a tuple as a list, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class RatioTerms:
    """A metric that is a ratio of sums over pairs; a pair that was not measured has denominator 0."""

    numerators: Float64Array
    """(pairs,)"""
    denominators: Float64Array
    """(pairs,)"""


def ratio(terms: RatioTerms, components: NDArray[np.int64], *, resamples: int = 1000, seed: int = 0) -> Score | None:
    """Sum of numerators ÷ sum of denominators over the measured pairs, with its interval; None if none was measured."""
    measured = terms.denominators > 0
    above, below, groups = terms.numerators[measured], terms.denominators[measured], components[measured]
    if not measured.any():
        return None
    value, n = float(above.sum() / below.sum()), int(measured.sum())
    if (groups == groups[0]).all():
        return Score(value, n=n)
    interval = bootstrap(above, below, groups, resamples=resamples, seed=seed)
    return Score(value, interval.low, interval.high, n)


def bootstrap(
    numerators: Float64Array,
    denominators: Float64Array,
    components: NDArray[np.int64],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """95% interval of a ratio of sums, by a cluster bootstrap: whole components are drawn with replacement.

    Near-duplicate questions are not independent; drawing single pairs would make the interval too narrow. All three
    arrays are (pairs,). For the paired interval of the difference of two systems on the same pairs, pass the
    difference of their numerators.
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
    finite = values[np.isfinite(values)]  # a resample of unmeasured pairs only has no ratio
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return Interval(float(low), float(high))


def gold_ranks(scores: Float64Array) -> Float64Array:
    """(pairs,): rank of the gold answer, column 0 of `scores` (pairs, candidates); ties get their mean rank.

    NaN counts as the lowest score; otherwise a model with NaN weights would rank every gold answer first.
    """
    finite = np.where(np.isnan(scores), -np.inf, scores)
    gold, others = finite[:, :1], finite[:, 1:]
    ranks: Float64Array = 1 + (others > gold).sum(axis=1) + (others == gold).sum(axis=1) / 2
    return ranks


def chance(candidates: int) -> dict[str, float]:
    """Expected ranking metrics of random guessing among this many candidates."""
    mrr = float((1 / np.arange(1, candidates + 1)).mean())
    return {"hits_at_1": 1 / candidates, "recall_at_5": min(5, candidates) / candidates, "mrr": mrr}


def ranking(ranks: Float64Array) -> dict[str, RatioTerms]:
    """Hits@1, R@5 and MRR from the gold answers' ranks; NaN where a pair was not ranked."""
    ranked = (~np.isnan(ranks)).astype(np.float64)
    filled = np.where(np.isnan(ranks), np.inf, ranks)
    return {
        "hits_at_1": RatioTerms((filled <= 1).astype(np.float64), ranked),
        "recall_at_5": RatioTerms((filled <= 5).astype(np.float64), ranked),
        "mrr": RatioTerms(1 / filled, ranked),
    }


def characters(answers: Sequence[str]) -> Float64Array:
    """(answers,): lengths in NFC characters."""
    return np.array([len(nfc(answer)) for answer in answers], dtype=np.float64)


def per_character(bits: Float64Array, answers: Sequence[str], measured: NDArray[np.bool_]) -> RatioTerms:
    """Bits of an answer ÷ its characters; `bits` (pairs,) are read only where `measured` (pairs,) is true.

    BPC: −log2 p of the answer's tokens and EOS. Question gain: BPC given another question minus BPC given the pair's
    own.
    """
    return RatioTerms(np.where(measured, bits, 0.0), np.where(measured, characters(answers), 0.0))


def frequent_answers(answers: Sequence[str], count: int = BLAND) -> frozenset[str]:
    """Comparison forms of the `count` most frequent answers; ties in code-point order."""
    counts = Counter(comparison_form(answer) for answer in answers)
    return frozenset(sorted(counts, key=lambda form: (-counts[form], form))[:count])


def bland(replies: Sequence[str], frequent: Collection[str]) -> Float64Array:
    """(replies,): 1 where the reply is one of the `frequent` comparison forms."""
    return np.array([comparison_form(reply) in frequent for reply in replies], dtype=np.float64)


def polite(replies: Sequence[str]) -> Float64Array:
    """(replies,): 1 where the reply ends politely."""
    return np.array([speech_level(reply) == "polite" for reply in replies], dtype=np.float64)


def ended(replies: Sequence[Generation]) -> Float64Array:
    """(replies,): 1 where the model generated EOS within 32 tokens."""
    return np.array([reply.ended and reply.tokens <= SHORT for reply in replies], dtype=np.float64)


def reply_part(reply: Reply, known: Collection[tuple[str, str]]) -> Part:
    """The part of the bot that a reply comes from; `known`: question and answer of every pair that the bot knows.

    Small talk is retrieved, too, but from the built-in pairs.
    """
    if reply.source == "fallback":
        return "suggestions" if reply.suggestions else "fallback"
    if reply.source != "retrieved":
        return reply.source
    evidence = reply.evidence
    return "known" if evidence is None or (evidence.question, evidence.answer) in known else "small_talk"


def parts(replies: Sequence[Reply], known: Collection[tuple[str, str]]) -> dict[Part, Float64Array]:
    """Part → (replies,): 1 where the reply comes from it. "lesson" is left out if no reply does."""
    names = [reply_part(reply, known) for reply in replies]
    rates = {part: np.array([name == part for name in names], dtype=np.float64) for part in PARTS}
    return {part: rate for part, rate in rates.items() if part != "lesson" or rate.any()}


def unique(replies: Sequence[str]) -> Score:
    """Share of distinct replies, by comparison form."""
    return Score(len({comparison_form(reply) for reply in replies}) / len(replies), n=len(replies))


def distinct(replies: Sequence[Sequence[str]], order: int, limit: int = NGRAMS) -> Score | None:
    """distinct-n (Li et al. 2016) with n = `order`: share of distinct n-grams among the first `limit` n-grams.

    `replies` are lists of morphemes; n-grams do not cross replies. The score's `n` is the number of n-grams used; None
    if there is none.
    """
    grams = [tuple(morphs[i : i + order]) for morphs in replies for i in range(len(morphs) - order + 1)][:limit]
    return Score(len(set(grams)) / len(grams), n=len(grams)) if grams else None


def overlap(replies: Sequence[str], answers: Sequence[str]) -> dict[str, Score]:
    """Corpus chrF and character BLEU, 0 to 100. An alarm only: a constant polite answer scores well."""
    import sacrebleu  # takes a second

    chrf = sacrebleu.corpus_chrf(list(replies), [list(answers)]).score
    bleu = sacrebleu.corpus_bleu(list(replies), [list(answers)], tokenize="char").score
    return {"chrf": Score(float(chrf), n=len(replies)), "bleu_char": Score(float(bleu), n=len(replies))}


def latency(seconds: Sequence[float]) -> dict[str, Score]:
    """Median and 95th percentile in milliseconds, from the seconds that each single question took."""
    p50, p95 = np.percentile(np.asarray(seconds) * 1000, [50, 95])
    return {
        "latency_p50_ms": Score(float(p50), n=len(seconds)),
        "latency_p95_ms": Score(float(p95), n=len(seconds)),
    }


@dataclass(frozen=True, slots=True)
class PreferenceCounts:
    """Preferences between two runs, with a sign test."""

    first: int
    """Wins of the first run."""
    second: int
    ties: int
    share: float | None
    """Wins of the second run ÷ wins of either, 0 to 1; None if there are only ties."""
    low: float | None
    """Exact 95% interval of the share (Clopper-Pearson)."""
    high: float | None
    p: float | None
    """Two-sided sign test of equal win rates."""

    @property
    def clear(self) -> bool:
        """Whether the interval excludes one half."""
        return self.low is not None and self.high is not None and not self.low <= 0.5 <= self.high


def sign_test(first: int, second: int, ties: int) -> PreferenceCounts:
    """The sign test of these numbers of wins."""
    from scipy.stats import binomtest  # half a second to import

    if not first + second:
        return PreferenceCounts(0, 0, ties, None, None, None, None)
    test = binomtest(second, first + second)
    low, high = test.proportion_ci(0.95, "exact")
    share = second / (first + second)
    return PreferenceCounts(first, second, ties, share, float(low), float(high), float(test.pvalue))
