"""Which known pair answers a question, and how sure that is: lexical and sentence similarities, calibrated.

Each known pair is compared with the query in four ways: character n-grams (TF-IDF cosine) and sentence vectors
(cosine), both with its question and with its answer. A weighted sum ranks the pairs; the best ones are ranked again
with the log odds of a model that reads query and pair together (interaction.py). A logistic regression over SIGNALS
gives the probability that the best pair's answer is right. All weights were fitted on FAQs of held-out trades by
bench/ranker.py, and are the same for every file (`matcher.json`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daedap.korean.text import comparison_form
from daedap.retrieval.interaction import InteractionModel, TokenPair
from daedap.retrieval.lexical import (
    MAX_SIMILARITIES,
    PAIR_SIDES,
    CharTfidf,
    Hits,
    LexicalIndex,
    chunks,
    largest,
    nearest_vectors,
    surrounded,
)
from daedap.retrieval.query import Encoder, Query, TokenVectors, texts_of, vectors_of
from daedap.types import Float32Array, Pair

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
_FIT_ROWS, _ANSWER_FIT = 200, (0.2, 0.45)
"""How well a file's answers fit its questions: of so many known questions, the share whose nearest answer is their own.
Up to the first share the similarity to answers has weight 0, from the second on its full weight; FAQs of held-out
trades lie at 0.3 to 0.8, the built-in small talk at 0.2, ChatbotData at 0.04."""
_RIVALS, CANDIDATES = 4, 6
"""Pairs with other answers that `lead` is measured against; pairs with different answers that are ranked again."""
_QUERIES_AT_ONCE = 256
"""Queries whose token vectors are held at once, 30 kB each."""


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
    def uses_interaction_model(self) -> bool:
        """Whether the interaction model is used."""
        return self.interaction > 0

    def probability(self, signals: Float32Array) -> float:
        """Logistic regression over (signals,), in the order of SIGNALS."""
        logit = self.intercept + float(np.dot([self.signals[name] for name in SIGNALS], signals))
        return float(1 / (1 + np.exp(-logit)))


def with_rival(calibration: Float32Array, margin: float) -> Float32Array:
    """Signals (in the order of SIGNALS) beside one more pair with another answer, whose score is `margin` lower."""
    signals = dict(zip(SIGNALS, calibration.tolist(), strict=True))
    for name in ("margin", "lead", "question_margin", "answer_margin", "token_margin"):
        signals[name] = min(margin, signals[name])  # the score alone is known of the new pair
    return np.array([signals[name] for name in SIGNALS], np.float32)


class Signals(NamedTuple):
    """The known pairs that answer a question best, and what their probability is computed from."""

    rows: NDArray[np.int64]
    """(k,): rows with different answers, best first."""
    similarities: Float32Array
    """(k,): sums of the four similarities, weighted by numbers that add up to 1."""
    calibration: Float32Array
    """(signals,): in the order of SIGNALS."""


class Match(NamedTuple):
    """The known pairs that answer a question best."""

    rows: NDArray[np.int64]
    """(k,): rows with different answers, best first."""
    similarities: Float32Array
    """(k,): as of Signals; 1.0 for an exact match."""
    probability: float
    """That the first one's answer is right."""
    exact: bool = False
    """Whether the first one's question equals the query after normalization (`comparison_form`)."""


class Candidates(NamedTuple):
    """The nearest pairs of a query with different answers, by the weighted sum of the views."""

    rows: NDArray[np.int64]
    """(n,), best first."""
    scores: Float32Array
    """(n,)"""
    log_odds: Float32Array
    """(n,): of the interaction model, 0 where it is not used; after the first CANDIDATES the lowest of theirs."""
    token_cosines: list[Float32Array]
    """For the first pairs, at least two where there are two: each query token's highest cosine with one of the pair's
    tokens, (query tokens,)."""


@dataclass(frozen=True)
class AnswerMatcher:
    """Known pairs, ready to be compared with queries."""

    index: LexicalIndex
    encoder: Encoder
    questions: Float32Array
    """(pairs, width): sentence vectors of the known questions, rows of length 1."""
    answers: Float32Array
    """(pairs, width)"""
    weights: MatchWeights
    reference: AnswerMatcher | None = field(default=None, kw_only=True)
    """Whose pairs tell how rare n-grams are in answers and how much answers count, where its own are too few: for
    lessons, and for the nearest pairs of a question in a large file. Its cache of token vectors is shared."""

    @classmethod
    def build(cls, index: LexicalIndex, encoder: Encoder) -> AnswerMatcher:
        """Encode the pairs of an index."""
        questions, answers = encode_pairs(encoder, index.pairs)
        return cls(index, encoder, questions, answers, MatchWeights.default(built_in=encoder.built_in))

    def extended(self, index: LexicalIndex, before: Sequence[Pair] = (), after: Sequence[Pair] = ()) -> AnswerMatcher:
        """With new pairs before and after its own; `index` holds all of them in that order."""
        parts = zip(encode_pairs(self.encoder, [*before, *after]), (self.questions, self.answers), strict=True)
        questions, answers = (surrounded(own, added, len(before)) for added, own in parts)
        return AnswerMatcher(index, self.encoder, questions, answers, self.weights)

    def match(self, queries: Sequence[Query], k: int = 4) -> list[Match]:
        """The `k` best pairs with different answers for each query, and the probability that the first is right.

        A question that is known exactly (`comparison_form`) has probability 1; only its nearest pairs are computed.
        """
        known = [self.exact_row(query.text) for query in queries]
        others = [query for query, row in zip(queries, known, strict=True) if row is None]
        signals = iter(self.signals(others, k))
        return [
            self._match(next(signals)) if row is None else self._exact(query, row, k)
            for query, row in zip(queries, known, strict=True)
        ]

    def exact_row(self, question: str) -> int | None:
        """The first row whose question equals this one after normalization (`comparison_form`): the newest."""
        return self._rows_by_question.get(comparison_form(question))

    def _match(self, signals: Signals) -> Match:
        return Match(signals.rows, signals.similarities, self.weights.probability(signals.calibration))

    def _exact(self, query: Query, row: int, k: int) -> Match:
        scores: Float32Array = np.einsum("v,vqp->qp", self.view_weights, self.views([query]))
        near = largest(scores, min(8 * k, scores.shape[1]))[0]
        rows = self._distinct(np.concatenate([[row], near[near != row]]), k)
        return Match(rows, np.concatenate([[1.0], scores[0, rows[1:]]]).astype(np.float32), 1.0, exact=True)

    def signals(self, queries: Sequence[Query], k: int = 4) -> list[Signals]:
        """What the match of each query is decided by."""
        parts = chunks(len(queries), len(self.index.pairs), MAX_SIMILARITIES // 4)
        return [signals for part in parts for signals in self._signals(queries[part], k)]

    def search(self, vectors: Float32Array, k: int) -> Hits:
        """The `k` nearest known questions of each vector, (queries, width), by cosine."""
        return nearest_vectors(self.questions, vectors, k)

    def vectors_of(self, queries: Sequence[Query]) -> Float32Array:
        """(queries, width)"""
        return vectors_of(queries)

    def encode_answers(self, texts: Sequence[str]) -> Float32Array:
        """(texts, width)"""
        return self.encoder.encode(texts)

    def views(self, queries: Sequence[Query]) -> Float32Array:
        """(views, queries, pairs): similarities in the order of VIEWS."""
        texts, vectors = texts_of(queries), vectors_of(queries)
        similarities = [
            self.index.similarities(texts),
            (self._answer_tfidf.vectors(texts) @ self._answer_postings).toarray(),
            vectors @ self.questions.T,
            vectors @ self.answers.T,
        ]
        return np.stack(similarities).astype(np.float32)

    def _signals(self, queries: Sequence[Query], k: int) -> list[Signals]:
        views, texts = self.views(queries), texts_of(queries)
        scores: Float32Array = np.einsum("v,vqp->qp", self.view_weights, views)
        candidates = self.candidates(texts, scores, views, max(k, CANDIDATES))
        ranked = [self._ranked(each) for each in candidates]
        best = np.array([each.rows[0] for each in ranked])
        columns = {
            **{name: view[range(len(best)), best] for name, view in zip(VIEWS, views, strict=True)},
            **self._margins(scores, views, [each.rows for each in ranked]),
            **_interaction_signals(ranked),
            **_token_signals(ranked),
            "coverage": self._coverage(texts, best.tolist()),
            "neighbour": np.array([self._neighbour(each.rows) for each in ranked]),
            "own_answer": np.einsum("qw,qw->q", self.questions[best], self.answers[best]),
            "small_talk": (vectors_of(queries) - self.questions[best]) @ self._small_talk_direction,
            "length": np.log1p([len(text) for text in texts]),
        }
        calibration = np.stack([columns[name] for name in SIGNALS], axis=1).astype(np.float32)
        return [Signals(each.rows[:k], each.scores[:k], calibration[n]) for n, each in enumerate(ranked)]

    def candidates(
        self, queries: Sequence[str], scores: Float32Array, views: Float32Array, count: int
    ) -> list[Candidates]:
        """The `count` best pairs with different answers of each query, read together with it.

        scores: (queries, pairs), the weighted sum of the views, (views, queries, pairs).
        """
        near = largest(scores, min(8 * count, scores.shape[1]))
        rows = [self._distinct(each, count) for each in near]
        candidates: list[Candidates] = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            pairs = [self.index.pairs[row] for row in {int(row) for each in rows[part] for row in each[:CANDIDATES]}]
            tokens, texts = self._tokens.encode(queries[part], pairs)
            for number, (query, each) in enumerate(zip(tokens, rows[part], strict=True), start):
                nearest = [self.index.pairs[row] for row in each[:CANDIDATES]]
                known = [TokenPair(texts[pair.question], texts[pair.answer]) for pair in nearest]
                log_odds = self._log_odds(query, known, each, views[2:, number])
                cosines = [(query @ np.concatenate(pair).T).max(axis=1) for pair in known]
                candidates.append(Candidates(each, scores[number, each], log_odds, cosines))
        return candidates

    def _log_odds(
        self, query: Float32Array, known: Sequence[TokenPair], rows: NDArray[np.int64], similarities: Float32Array
    ) -> Float32Array:
        """(rows,). query: (tokens, width); similarities: (2, pairs), to questions and to answers."""
        if not self.weights.uses_interaction_model:
            return np.zeros(len(rows), np.float32)
        read_rows = rows[: len(known)]
        sides = similarities[:, read_rows]
        margins = sides - [self._best_rival(side, read_rows) for side in similarities]
        if self._answer_share < 0.5:  # small talk: the answers say nothing about the questions
            known = [pair._replace(answer=pair.answer[:0]) for pair in known]
            sides[1], margins[1] = 0, 0
        read = InteractionModel.default().log_odds(query, known, np.concatenate([sides, margins]).T)
        return np.concatenate([read, np.full(len(rows) - len(known), read.min(), np.float32)])

    def _ranked(self, candidates: Candidates) -> Candidates:
        """Sorted by score plus weighted log odds, highest first; the scores themselves are unchanged."""
        rows, scores, log_odds, cosines = candidates
        order = np.argsort(-(scores + self.weights.interaction * log_odds), kind="stable")
        sorted_cosines = [cosines[place] for place in order if place < len(cosines)]
        return Candidates(rows[order], scores[order], log_odds[order], sorted_cosines)

    def _margins(
        self, scores: Float32Array, views: Float32Array, rows: Sequence[NDArray[np.int64]]
    ) -> dict[str, Float32Array]:
        """Scores of the best pair less those of its rivals, the pairs with other answers.

        scores: (queries, pairs); views: (views, queries, pairs); rows: (distinct,) for each query.
        """
        best = np.array([one[0] for one in rows])
        score = scores[range(len(best)), best]
        rivals = [np.sort(scores[n, row[1:CANDIDATES]])[::-1][:_RIVALS] for n, row in enumerate(rows)]
        question, answer = (
            np.array([view[n, row] - self._best_rival(view[n], best[n : n + 1])[0] for n, row in enumerate(best)])
            for view in views[2:]
        )
        return {
            "score": score,
            "margin": score - [others[0] if len(others) else 0.0 for others in rivals],
            "lead": score - np.array([np.mean(others) if len(others) else 0.0 for others in rivals]),
            "question_margin": question,
            "answer_margin": answer,
        }

    def _best_rival(self, similarities: Float32Array, rows: NDArray[np.int64]) -> Float32Array:
        """(rows,): the highest of `similarities`, (pairs,), of a pair with another answer than each row; at least 0."""
        others = self._answer_groups != self._answer_groups[rows][:, None]
        highest: Float32Array = np.where(others, similarities, 0).max(axis=1)
        return highest

    def _neighbour(self, rows: NDArray[np.int64]) -> float:
        """Highest similarity of the best row's question to that of another candidate, (n,)."""
        return float((self.questions[rows[1:]] @ self.questions[rows[0]]).max(initial=0))

    def _coverage(self, queries: Sequence[str], rows: Sequence[int]) -> Float32Array:
        """(queries,): share of each query's n-grams, weighted by rarity, that question or answer of its row contain."""
        pairs = [self.index.pairs[row] for row in rows]
        weights = self.index.ngrams.vectors(queries).power(2)
        known = self.index.ngrams.vectors([f"{pair.question} {pair.answer}" for pair in pairs])
        inside, total = weights.multiply(known.astype(bool)).sum(axis=1), weights.sum(axis=1)
        covered: Float32Array = np.asarray(inside) / np.maximum(np.asarray(total), 1e-9)
        return covered

    def _distinct(self, rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """The first `k` rows whose answers differ."""
        _, places = np.unique(self._answer_groups[rows], return_index=True)
        return rows[np.sort(places)[:k]]

    @cached_property
    def view_weights(self) -> Float32Array:
        """(views,): the weights of the package, those of answers scaled by how well answers fit their questions here.

        Customers' questions share their topic with the right answer of an FAQ; in small talk they do not, and there the
        similarity to answers would mislead. What the answers lose, the sentence vectors of the questions gain.
        """
        weights = dict(self.weights.views)
        for name in ("lexical_answer", "sentence_answer"):
            weights["sentence_question"] += (1 - self._answer_share) * weights[name]
            weights[name] *= self._answer_share
        return np.array([weights[name] for name in VIEWS], np.float32)

    @cached_property
    def _answer_share(self) -> float:
        """From 0 to 1: by the share of known questions, of at most 200, that are most similar to their own answer."""
        if self.reference:
            return self.reference._answer_share
        rows = np.random.RandomState(0).permutation(len(self.questions))[:_FIT_ROWS]
        nearest = (self.questions[rows] @ self.answers.T).argmax(axis=1)
        fit = np.mean(self._answer_groups[nearest] == self._answer_groups[rows])
        low, high = _ANSWER_FIT
        return float(np.clip((fit - low) / (high - low), 0, 1))

    @cached_property
    def _small_talk_direction(self) -> Float32Array:
        """(width,): zeros with another encoder than the built-in one."""
        direction = np.array(self.weights.small_talk, np.float32)
        width = self.questions.shape[1]
        return direction if len(direction) == width else np.zeros(width, np.float32)

    @cached_property
    def _answer_groups(self) -> NDArray[np.int64]:
        """(pairs,): the same number for the same answer."""
        forms = [comparison_form(pair.answer) for pair in self.index.pairs]
        return np.unique(forms, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def _rows_by_question(self) -> dict[str, int]:
        """The first row of each question's comparison form, but for blank questions."""
        rows = reversed(list(enumerate(self.index.pairs)))
        return {form: row for row, pair in rows if (form := comparison_form(pair.question))}

    @cached_property
    def _tokens(self) -> TokenVectors:
        return self.reference._tokens if self.reference else TokenVectors(self.encoder)

    @cached_property
    def _answer_tfidf(self) -> CharTfidf:
        if self.reference:
            return self.reference._answer_tfidf
        return CharTfidf.fit([pair.answer for pair in self.index.pairs])

    @cached_property
    def _answer_postings(self) -> Any:
        return self._answer_tfidf.vectors([pair.answer for pair in self.index.pairs]).T.tocsr()

    def save(self, folder: Path) -> None:
        """Write `sentences.npz`, in half precision."""
        questions, answers = self.questions.astype(np.float16), self.answers.astype(np.float16)
        np.savez(folder / "sentences.npz", questions=questions, answers=answers)

    @classmethod
    def open(cls, folder: Path, index: LexicalIndex, encoder: Encoder) -> AnswerMatcher:
        """Read the vectors of an index's pairs; the file may hold those of more pairs behind them."""
        with np.load(folder / "sentences.npz", allow_pickle=False) as file:
            questions, answers = (file[side][: len(index.pairs)].astype(np.float32) for side in PAIR_SIDES)
        return cls(index, encoder, questions, answers, MatchWeights.default(built_in=encoder.built_in))


def encode_pairs(encoder: Encoder, pairs: Sequence[Pair]) -> tuple[Float32Array, Float32Array]:
    """(pairs, width) of questions and of answers."""
    vectors = encoder.encode([text for pair in pairs for text in (pair.question, pair.answer)])
    return vectors[::2], vectors[1::2]


def _interaction_signals(ranked: Sequence[Candidates]) -> dict[str, Float32Array]:
    best = np.array([each.log_odds[0] for each in ranked])
    behind = np.array([each.log_odds[1:].max(initial=0) for each in ranked])
    return {"interaction": best, "interaction_margin": best - behind}


def _token_signals(ranked: Sequence[Candidates]) -> dict[str, Float32Array]:
    """How well each token of a query is met by one of the best pair, and of the best pair with another answer."""
    signals = []
    for best, *others in (each.token_cosines for each in ranked):
        rival = others[0].mean() if others else 0.0
        signals.append((best.mean(), np.percentile(best, 25), best.mean() - rival))
    mean, quartile, margin = np.array(signals).reshape(-1, 3).T
    return {"tokens": mean, "token_quartile": quartile, "token_margin": margin}
