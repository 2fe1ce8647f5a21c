"""Fit the weights by which known pairs are matched to questions (daedap/retrieval/matcher.json).

    python bench/ranker.py [--encoder FOLDER] [--write]

Uses the FAQs of the ten trades that the sentence encoder has not learned from (data/faq, bench/sentence_encoder), alone
and in pairs, so that files of 20 and of 40 rows count. Ranking: softmax regression over the rows of a file (four
weights). Probability: logistic regression over the signals of the best row, of paraphrases (right or wrong) and of
questions that no row answers (always wrong). Figures are leave-one-trade-out: no trade is scored by weights that were
fitted on it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from daedap.model.sentence_encoder import SentenceEncoder
from daedap.retrieval.lexical import LexicalIndex
from daedap.retrieval.matcher import SIGNALS, VIEWS, AnswerMatcher, MatchWeights
from daedap.types import Pair

KINDS = ("words", "casual", "messy", "long")
HELD_OUT = ("05", "11", "17", "23", "29", "35", "41", "43", "47", "53")
FloatType = NDArray[np.float64]


@dataclass(frozen=True)
class Faq:
    """An FAQ with questions that are answered by one of its rows, and questions that no row answers."""

    trades: frozenset[str]
    pairs: tuple[Pair, ...]
    queries: tuple[str, ...]
    gold: tuple[int, ...]
    """Row that answers each query; -1: none."""
    kinds: tuple[str, ...]


class Cached:
    """An encoder that encodes each text once: the merged files hold the same texts."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder, self.vectors = encoder, dict[str, NDArray[np.float32]]()

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """As `SentenceEncoder.encode`."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.vectors]:
            self.vectors.update(zip(new, self.encoder.encode(new), strict=True))
        return np.array([self.vectors[text] for text in texts])


def read_trade(path: Path) -> Faq:
    """One file of data/faq."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    known = [row for row in rows if "question" in row]
    queries = [(row[kind], number, kind) for number, row in enumerate(known) for kind in KINDS]
    queries += [(row["out_of_scope"], -1, row["kind"]) for row in rows if "out_of_scope" in row]
    pairs = tuple(Pair(row["question"], row["answer"]) for row in known)
    texts, gold, kinds = zip(*queries, strict=True)
    return Faq(frozenset({path.name[:2]}), pairs, texts, gold, kinds)


def merged(first: Faq, second: Faq) -> Faq:
    """Two FAQs as one file. The trades are so different that none answers what is out of the other's scope."""
    gold = [*first.gold, *(row if row < 0 else row + len(first.pairs) for row in second.gold)]
    both = zip((*first.queries, *second.queries), gold, (*first.kinds, *second.kinds), strict=True)
    texts, rows, kinds = zip(*both, strict=True)
    return Faq(first.trades | second.trades, (*first.pairs, *second.pairs), texts, tuple(rows), kinds)


def fit_views(faqs: Sequence[Faq], views: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Softmax regression: −log p(right row) summed over the answerable queries. views: (4, queries, rows) a file."""

    def loss(weights: FloatType) -> float:
        total = 0.0
        for faq, each in zip(faqs, views, strict=True):
            rows = np.flatnonzero(np.array(faq.gold) >= 0)
            scores = np.einsum("v,vqr->qr", weights, each[:, rows])
            right = scores[np.arange(len(rows)), np.array(faq.gold)[rows]]
            total += float((np.logaddexp.reduce(scores, axis=1) - right).sum())
        return total + 0.05 * float(weights @ weights)

    fitted = minimize(loss, np.full(len(VIEWS), 5.0), method="L-BFGS-B", bounds=[(0, None)] * len(VIEWS)).x
    scaled = fitted / fitted.sum()
    return {name: round(float(value), 4) for name, value in zip(VIEWS, scaled, strict=True)}


def fit_probability(signals: FloatType, right: NDArray[np.bool_]) -> tuple[dict[str, float], float]:
    """Logistic regression on standardised signals, given back for the raw ones."""
    mean, scale = signals.mean(axis=0), signals.std(axis=0) + 1e-9
    model = LogisticRegression(C=1.0).fit((signals - mean) / scale, right)
    weights = model.coef_[0] / scale
    intercept = float(model.intercept_[0] - weights @ mean)
    return {name: round(float(value), 4) for name, value in zip(SIGNALS, weights, strict=True)}, round(intercept, 4)


def scored(matcher: AnswerMatcher, faq: Faq) -> tuple[FloatType, NDArray[np.bool_], list[list[int]]]:
    """Signals, whether the best row is right, and the best rows of each query."""
    found = matcher.signals(faq.queries)
    answers = [pair.answer for pair in faq.pairs]
    right = [gold >= 0 and answers[one.rows[0]] == answers[gold] for one, gold in zip(found, faq.gold, strict=True)]
    return np.array([one.calibration for one in found]), np.array(right), [one.rows.tolist() for one in found]


def fit(faqs: Sequence[Faq], matchers: dict[int, AnswerMatcher], views: dict[int, NDArray[np.float32]]) -> MatchWeights:
    """Both regressions."""
    weights = replace(MatchWeights.default(), views=fit_views(faqs, [views[id(faq)] for faq in faqs]))
    parts = [scored(replace(matchers[id(faq)], weights=weights), faq) for faq in faqs]
    signals, right = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
    coefficients, intercept = fit_probability(signals, right)
    return MatchWeights(weights.views, coefficients, intercept)


def report(rows: Sequence[tuple[str, bool, bool, float, bool]]) -> None:
    """Print the figures. rows: kind, right, among the first three, probability, answerable."""
    kinds, right, among, probability, answerable = (np.array(column) for column in zip(*rows, strict=True))
    print(f"right {_percent(right[answerable])}, among three {_percent(among[answerable])} (n={answerable.sum()})")
    print(", ".join(f"{kind} {_percent(right[kinds == kind])}" for kind in KINDS))
    print(f"AUROC right-or-not {roc_auc_score(right, probability):.3f}")
    for low in np.arange(0, 1, 0.1):
        inside = (probability >= low) & (probability < low + 0.1)
        print(f"  P {low:.1f}-{low + 0.1:.1f}: right {_percent(right[inside])} (n={inside.sum()})")
    for threshold in (0.2, 0.3, 0.4, 0.5, 0.6):
        given = probability >= threshold
        print(
            f"  threshold {threshold}: right {_percent((right & given)[answerable])}, "
            f"wrong {_percent((~right & given)[answerable])}, out of scope answered {_percent(given[~answerable])} "
            f"({', '.join(f'{kind} {_percent(given[kinds == kind])}' for kind in ('near', 'chat', 'far'))})"
        )


def _percent(values: NDArray[np.bool_]) -> str:
    return f"{100 * values.mean():.1f} %" if len(values) else "-"


def main() -> None:
    """Fit, report, and with --write keep the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faq", type=Path, default=Path(__file__).parent.parent / "data" / "faq")
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    cached = Cached(SentenceEncoder.open(options.encoder))
    trades = [read_trade(path) for path in sorted(options.faq.glob("*.jsonl")) if path.name[:2] in HELD_OUT]
    faqs = [*trades, *(merged(*two) for two in list(combinations(trades, 2))[::3])]
    matchers = {id(faq): AnswerMatcher.build(LexicalIndex.build(faq.pairs), cached) for faq in faqs}
    views = {id(faq): matchers[id(faq)].views(faq.queries, cached.encode(faq.queries)) for faq in faqs}
    rows = []
    for trade in trades:
        weights = fit([faq for faq in faqs if not faq.trades & trade.trades], matchers, views)
        signals, right, best = scored(replace(matchers[id(trade)], weights=weights), trade)
        probabilities = [weights.probability(one) for one in signals]
        among = [gold in found[:3] for gold, found in zip(trade.gold, best, strict=True)]
        rows += zip(trade.kinds, right.tolist(), among, probabilities, [gold >= 0 for gold in trade.gold], strict=True)
    report(rows)
    weights = fit(faqs, matchers, views)
    print(json.dumps(asdict(weights), indent=1))
    if options.write:
        target = Path(__file__).parent.parent / "daedap" / "retrieval" / "matcher.json"
        target.write_text(json.dumps(asdict(weights), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
