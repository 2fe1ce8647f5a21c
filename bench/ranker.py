"""Fit the weights by which known pairs are matched to questions (daedap/retrieval/matcher.json).

    python bench/ranker.py [--encoder FOLDER] [--write]

Uses the FAQs of the held-out trades, from which neither the sentence encoder nor the interaction model has learned
(data/faq, bench/sentence_encoder/texts.py), alone and in pairs, so that files of 20 and of 40 rows count. Ranking:
softmax regression over the rows of a file (four weights), then over the best ones with the interaction model's log odds
(its weight). Probability: logistic regression over the signals of the best row, of paraphrases (right or wrong) and of
questions that no row answers (always wrong). Three kinds of the latter are made of other texts: the paraphrases of a
row that is taken out of its file, those of other trades, and paraphrases of the built-in small talk. Direction of small
talk: logistic regression over sentence vectors, built-in pairs and questions that are out of the scope of the encoder's
trades against the questions of these. Figures are of six-fold cross-validation over trades: none is scored by weights
that were fitted on it. Everything is fitted twice: for the built-in sentence encoder, and without what only that one
has, for others.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sentence_encoder.texts import is_held_out, trade_number
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from daedap.model.sentence_encoder import SentenceEncoder
from daedap.retrieval.interaction import TokenPair
from daedap.retrieval.lexical import LexicalIndex
from daedap.retrieval.matcher import CANDIDATES, SIGNALS, VIEWS, AnswerMatcher, MatchWeights
from daedap.retrieval.query import encode_queries
from daedap.types import Pair

KINDS = ("words", "casual", "messy", "long")
FOLDS, PENALTY, FOREIGN = 6, 0.1, 40
WEIGHTS = {"removed": 0.15, "foreign": 0.1, "talk": 0.1}
"""How much a question of these kinds counts in fitting the probability; all others count 1."""
DATA = Path(__file__).parent.parent / "daedap" / "data"
FloatType = NDArray[np.float64]


@dataclass(frozen=True)
class Faq:
    """An FAQ with questions that are answered by one of its rows, and questions that no row answers."""

    trades: frozenset[int]
    pairs: tuple[Pair, ...]
    queries: tuple[str, ...]
    gold: tuple[int, ...]
    """Row that answers each query; -1: none."""
    kinds: tuple[str, ...]


class Cached:
    """An encoder that encodes each text once: the merged files hold the same texts."""

    built_in = True

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder
        self.vectors, self.tokens = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]]()

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """As `SentenceEncoder.encode`."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.vectors]:
            self.vectors.update(zip(new, self.encoder.encode(new), strict=True))
        return np.array([self.vectors[text] for text in texts])

    def encode_tokens(self, texts: Sequence[str], /) -> list[NDArray[np.float32]]:
        """As `SentenceEncoder.encode_tokens`."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.tokens]:
            self.tokens.update(zip(new, self.encoder.encode_tokens(new), strict=True))
        return [self.tokens[text] for text in texts]


def read_trade(path: Path) -> Faq:
    """One file of data/faq."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    known = [row for row in rows if "question" in row]
    queries = [(row[kind], number, kind) for number, row in enumerate(known) for kind in KINDS]
    queries += [(row["out_of_scope"], -1, row["kind"]) for row in rows if "out_of_scope" in row]
    pairs = tuple(Pair(row["question"], row["answer"]) for row in known)
    texts, gold, kinds = zip(*queries, strict=True)
    return Faq(frozenset({trade_number(path)}), pairs, texts, gold, kinds)


def merged(first: Faq, second: Faq) -> Faq:
    """Two FAQs as one file. The trades are so different that none answers what is out of the other's scope."""
    gold = [*first.gold, *(row if row < 0 else row + len(first.pairs) for row in second.gold)]
    both = zip((*first.queries, *second.queries), gold, (*first.kinds, *second.kinds), strict=True)
    texts, rows, kinds = zip(*both, strict=True)
    return Faq(first.trades | second.trades, (*first.pairs, *second.pairs), texts, tuple(rows), kinds)


def with_foreign(trade: Faq, others: Sequence[Faq], talk: Sequence[str], seed: int) -> Faq:
    """With small talk and paraphrases of other trades, which no row answers."""
    asked = [query for other in others for query, gold in zip(other.queries, other.gold, strict=True) if gold >= 0]
    foreign = [asked[row] for row in np.random.RandomState(seed).choice(len(asked), FOREIGN, replace=False)]
    queries, kinds = (*talk, *foreign), ("talk",) * len(talk) + ("foreign",) * FOREIGN
    gold = (*trade.gold, *[-1] * len(queries))
    return replace(trade, queries=(*trade.queries, *queries), gold=gold, kinds=(*trade.kinds, *kinds))


def without(faq: Faq, row: int) -> Faq:
    """The FAQ without a row, and its paraphrases, which no row answers any more."""
    queries = tuple(query for query, gold in zip(faq.queries, faq.gold, strict=True) if gold == row)
    pairs = (*faq.pairs[:row], *faq.pairs[row + 1 :])
    return Faq(faq.trades, pairs, queries, (-1,) * len(queries), ("removed",) * len(queries))


def fit_small_talk(folder: Path, encoder: Cached) -> tuple[float, ...]:
    """Direction of small talk, (width,), by texts that the encoder has learned from."""
    with (DATA / "starter.csv").open(encoding="utf-8", newline="") as file:
        talk = [row["question"] for row in csv.DictReader(file)]
    asked = []
    for path in sorted(folder.glob("*.jsonl")):
        if not is_held_out(trade_number(path)):
            trade = read_trade(path)
            asked += [pair.question for pair in trade.pairs]
            for query, kind in zip(trade.queries, trade.kinds, strict=True):
                (talk if kind in ("chat", "far") else asked).append(query)
    labels = np.repeat([1, 0], [len(talk), len(asked)])
    model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(encoder.encode([*talk, *asked]), labels)
    return tuple(round(float(value), 2) for value in model.coef_[0])


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


def fit_interaction(faqs: Sequence[Faq], encoder: Cached, weights: MatchWeights) -> float:
    """Weight of the interaction model's log odds beside the views' sum: softmax regression over the best rows."""
    parts = []
    for faq in faqs:
        one = matcher(faq, encoder, replace(weights, interaction=1.0))
        views = one.views(encode_queries(faq.queries, encoder))
        scores = np.einsum("v,vqp->qp", one.view_weights, views)
        found = one.candidates(faq.queries, scores, views, CANDIDATES)
        for gold, each in zip(faq.gold, found, strict=True):
            if gold in each.rows and len(each.rows) == CANDIDATES:
                right = int(np.flatnonzero(each.rows == gold)[0])
                parts.append(np.roll(np.stack([each.scores, each.log_odds]), -right, axis=1))
    sums, odds = np.stack(parts, axis=1)  # (queries, CANDIDATES) each, the right row first

    def loss(pair: FloatType) -> float:
        scores = pair[0] * sums + pair[1] * odds
        return float((np.logaddexp.reduce(scores, axis=1) - scores[:, 0]).sum())

    of_views, of_odds = minimize(loss, [10.0, 0.5], method="L-BFGS-B", bounds=[(0, None)] * 2).x
    return round(float(of_odds / of_views), 4)


def fit_probability(signals: FloatType, right: NDArray[np.bool_], counts: FloatType) -> tuple[dict[str, float], float]:
    """Logistic regression on standardised signals, given back for the raw ones."""
    mean, scale = signals.mean(axis=0), signals.std(axis=0) + 1e-9
    model = LogisticRegression(C=PENALTY, max_iter=2000).fit((signals - mean) / scale, right, sample_weight=counts)
    weights = model.coef_[0] / scale
    intercept = float(model.intercept_[0] - weights @ mean)
    return {name: round(float(value), 4) for name, value in zip(SIGNALS, weights, strict=True)}, round(intercept, 4)


@dataclass(frozen=True)
class RememberingMatcher(AnswerMatcher):
    """Reads a query and a pair together once, however often the weights of ranking change."""

    read: dict[tuple[bytes, tuple[int, ...]], NDArray[np.float32]]

    def _log_odds(
        self,
        query: NDArray[np.float32],
        known: Sequence[TokenPair],
        rows: NDArray[np.int64],
        similarities: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        if not self.weights.uses_interaction_model:
            return super()._log_odds(query, known, rows, similarities)
        key = (query.tobytes(), tuple(rows.tolist()))
        if key not in self.read:
            self.read[key] = super()._log_odds(query, known, rows, similarities)
        return self.read[key]


_MATCHERS: dict[int, RememberingMatcher] = {}


def matcher(faq: Faq, encoder: Cached, weights: MatchWeights) -> AnswerMatcher:
    """Of an FAQ's rows."""
    if id(faq) not in _MATCHERS:
        one = AnswerMatcher.build(LexicalIndex.build(faq.pairs), encoder)
        _MATCHERS[id(faq)] = RememberingMatcher(one.index, encoder, one.questions, one.answers, weights, {})
    return replace(_MATCHERS[id(faq)], weights=weights)


def scored(faq: Faq, encoder: Cached, weights: MatchWeights) -> tuple[FloatType, NDArray[np.bool_], list[list[int]]]:
    """Signals, whether the best row is right, and the best rows of each query."""
    found = matcher(faq, encoder, weights).signals(encode_queries(faq.queries, encoder))
    answers = [pair.answer for pair in faq.pairs]
    right = [gold >= 0 and answers[one.rows[0]] == answers[gold] for one, gold in zip(found, faq.gold, strict=True)]
    return np.array([one.calibration for one in found]), np.array(right), [one.rows.tolist() for one in found]


def fit(faqs: Sequence[Faq], encoder: Cached, weights: MatchWeights) -> MatchWeights:
    """All regressions; without the interaction model where its weight is 0."""
    whole = [faq for faq in faqs if "removed" not in faq.kinds]
    views = [matcher(faq, encoder, weights).views(encode_queries(faq.queries, encoder)) for faq in whole]
    weights = replace(weights, views=fit_views(whole, views))
    if weights.uses_interaction_model:
        weights = replace(weights, interaction=fit_interaction(whole, encoder, weights))
    parts = [scored(faq, encoder, weights) for faq in faqs]
    signals, right = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
    counts = np.array([WEIGHTS.get(kind, 1.0) for faq in faqs for kind in faq.kinds])
    coefficients, intercept = fit_probability(signals, right, counts)
    return replace(weights, signals=coefficients, intercept=intercept)


def all_files(trades: Sequence[Faq]) -> list[Faq]:
    """Trades alone and some in pairs, and both without one of their rows each time."""
    with (DATA / "starter_paraphrases.csv").open(encoding="utf-8", newline="") as file:
        talk = [row["question"] for row in csv.DictReader(file)]
    single = [
        with_foreign(trade, [other for other in trades if other is not trade], talk[number :: len(trades)], number)
        for number, trade in enumerate(trades)
    ]
    double = [merged(*two) for two in list(combinations(trades, 2))[::24]]
    removed = [without(faq, row) for faq in trades for row in range(0, len(faq.pairs), 2)]
    removed += [without(faq, row) for faq in double for row in range(3, len(faq.pairs), 8)]
    return [*single, *double, *removed]


def judged(faq: Faq, encoder: Cached, weights: MatchWeights) -> list[tuple[str, bool, bool, float, bool]]:
    """What `report` takes, for each query."""
    signals, right, best = scored(faq, encoder, weights)
    probabilities = [weights.probability(one) for one in signals]
    among = [gold in found[:3] for gold, found in zip(faq.gold, best, strict=True)]
    answerable = [gold >= 0 for gold in faq.gold]
    return list(zip(faq.kinds, right.tolist(), among, probabilities, answerable, strict=True))


def report(rows: Sequence[tuple[str, bool, bool, float, bool]]) -> None:
    """Print the figures. rows: kind, right, among the first three, probability, answerable."""
    kinds, right, among, probability, answerable = (np.array(column) for column in zip(*rows, strict=True))
    made = {kind: probability[kinds == kind] for kind in WEIGHTS}
    own = ~np.isin(kinds, list(WEIGHTS))
    kinds, right, among, probability, answerable = (
        column[own] for column in (kinds, right, among, probability, answerable)
    )
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
            f"({', '.join(f'{kind} {_percent(given[kinds == kind])}' for kind in ('near', 'chat', 'far'))}; "
            f"{', '.join(f'{kind} {_percent(values >= threshold)}' for kind, values in made.items())})"
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
    encoder = Cached(SentenceEncoder.open(options.encoder))
    nothing = MatchWeights({}, 0.0, {}, 0.0)
    start = {
        "built_in": replace(nothing, interaction=1.0, small_talk=fit_small_talk(options.faq, encoder)),
        "other": nothing,
    }
    trades = [read_trade(path) for path in sorted(options.faq.glob("*.jsonl")) if is_held_out(trade_number(path))]
    files = all_files(trades)
    fitted = {}
    for name, weights in start.items():
        print(f"--- {name}: {len(trades)} held-out trades")
        cross_validate(trades, files, encoder, weights)
        fitted[name] = asdict(fit(files, encoder, weights))
        print(json.dumps({**fitted[name], "small_talk": []}, indent=1))
    if options.write:
        target = Path(__file__).parent.parent / "daedap" / "retrieval" / "matcher.json"
        parts = [f'"{name}": {_json(weights)}' for name, weights in fitted.items()]
        target.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def _json(weights: dict[str, Any]) -> str:
    """One field a line."""
    return "{\n" + ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in weights.items()) + "\n}"


def cross_validate(trades: Sequence[Faq], files: Sequence[Faq], encoder: Cached, start: MatchWeights) -> None:
    """Fit without a part of the trades, score these, and print the figures of all."""
    rows = []
    for fold in range(FOLDS):
        numbers = {number for trade in trades[fold::FOLDS] for number in trade.trades}
        weights = fit([faq for faq in files if not faq.trades & numbers], encoder, start)
        for faq in files:
            if len(faq.trades) == 1 and faq.trades <= numbers:
                rows += judged(faq, encoder, weights)
    report(rows)


if __name__ == "__main__":
    main()
