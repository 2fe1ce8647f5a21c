"""Which known pair answers a question, and how sure that is: lexical and sentence similarities, calibrated.

Each known pair is compared with the query in four ways: character n-grams (TF-IDF cosine) and sentence vectors
(cosine), both with its question and with its answer. A weighted sum ranks the pairs. A logistic regression gives the
probability that the best pair's answer is right (SIGNALS): over its similarities, how far other answers are behind, how
much of the query it covers, and whether the query is small talk where it is not. All weights were fitted on FAQs of
held-out trades by bench/ranker.py, and are the same for every file (`matcher.json`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from daedap.korean.text import comparison_form
from daedap.retrieval.lexical import CELLS, CharTfidf, LexicalIndex, chunks, largest
from daedap.types import Pair

FloatArray = NDArray[np.float32]
VIEWS = ("lexical_question", "lexical_answer", "sentence_question", "sentence_answer")
SIGNALS = (
    *VIEWS,  # of the best pair
    "score",  # their weighted sum
    "margin",  # score less that of the best pair with another answer
    "lead",  # score less the mean of the four best pairs with other answers
    "question_margin",  # sentence similarity of the question less the highest of a pair with another answer
    "answer_margin",  # … of the answer
    "coverage",  # share of the query's n-grams, weighted by rarity, that question or answer contain
    "tokens",  # mean over the query's tokens of the highest cosine with a token of question or answer
    "token_quartile",  # … lower quartile
    "token_margin",  # mean less that of the best pair with another answer
    "neighbour",  # sentence similarity of the question to the nearest one with another answer
    "own_answer",  # … to its own answer
    "small_talk",  # how much more the query is small talk than the question is
    "length",  # ln(1 + characters of the query)
)
_FIT_ROWS, _ANSWER_FIT = 200, (0.2, 0.45)
"""Known questions looked at; from the first to the second share of them near their own answer, the weight of answers
grows from nothing to the whole: FAQs of held-out trades lie at 0.45 to 0.85, the built-in small talk at 0.18."""
_RIVALS = 4
"""Pairs with other answers that `lead` is measured against."""
_QUERIES_AT_ONCE, _TEXTS_KEPT = 256, 2_000
"""Queries whose token vectors are held at once, 30 kB each; texts of pairs whose token vectors are kept, 15 kB each."""
_WEIGHTS = Path(__file__).with_name("matcher.json")


class Encoder(Protocol):
    """What encodes texts: model/sentence_encoder.py, or anything with the same method."""

    def encode(self, texts: Sequence[str], /) -> FloatArray:
        """(texts, width), rows of length 1."""

    def encode_tokens(self, texts: Sequence[str], /) -> list[FloatArray]:
        """(tokens, width) of each text, rows of length 1."""


class Match(NamedTuple):
    """The known pairs that answer a question best."""

    rows: NDArray[np.int64]
    """(k,): rows with different answers, best first."""
    similarities: FloatArray
    """(k,): weighted mean of the four similarities."""
    probability: float
    """That the first one's answer is right."""
    exact: bool = False
    """The first one's question is the query, letter for letter."""


class Signals(NamedTuple):
    """What ranking and calibration are computed from; bench/ranker.py fits their weights."""

    rows: NDArray[np.int64]
    """(k,): rows with different answers, best first."""
    similarities: FloatArray
    """(k,)"""
    calibration: FloatArray
    """(signals,): in the order of SIGNALS."""


def with_rival(calibration: FloatArray, margin: float) -> FloatArray:
    """Signals (in the order of SIGNALS) beside one more pair with another answer, whose score is `margin` lower."""
    signals = dict(zip(SIGNALS, calibration.tolist(), strict=True))
    for name in ("margin", "lead", "question_margin", "answer_margin", "token_margin"):
        signals[name] = min(margin, signals[name])  # the score alone is known of the new pair
    return np.array([signals[name] for name in SIGNALS], np.float32)


@dataclass(frozen=True)
class MatchWeights:
    """How much each view counts in ranking, and the logistic regression of the probability."""

    views: dict[str, float]
    signals: dict[str, float]
    intercept: float
    small_talk: tuple[float, ...]
    """(width,): direction of small talk among the built-in encoder's vectors, away from customers' questions."""

    @classmethod
    @cache
    def default(cls) -> MatchWeights:
        """Those of the package."""
        saved = json.loads(_WEIGHTS.read_text(encoding="utf-8"))
        return cls(**{**saved, "small_talk": tuple(saved["small_talk"])})

    def probability(self, signals: FloatArray) -> float:
        """Logistic regression over (signals,), in the order of SIGNALS."""
        logit = self.intercept + float(np.dot([self.signals[name] for name in SIGNALS], signals))
        return float(1 / (1 + np.exp(-logit)))


@dataclass(frozen=True)
class AnswerMatcher:
    """Known pairs, ready to be compared with queries."""

    index: LexicalIndex
    encoder: Encoder
    questions: FloatArray
    """(pairs, width): sentence vectors of the known questions, rows of length 1."""
    answers: FloatArray
    """(pairs, width)"""
    weights: MatchWeights

    @classmethod
    def build(cls, index: LexicalIndex, encoder: Encoder, weights: MatchWeights | None = None) -> AnswerMatcher:
        """Encode the pairs of an index."""
        texts = [text for pair in index.pairs for text in (pair.question, pair.answer)]
        vectors = encoder.encode(texts)
        return cls(index, encoder, vectors[::2], vectors[1::2], weights or MatchWeights.default())

    def extended(self, index: LexicalIndex, before: Sequence[Pair] = (), after: Sequence[Pair] = ()) -> AnswerMatcher:
        """With new pairs before and after its own; `index` holds all of them in that order."""
        texts = [text for pair in (*before, *after) for text in (pair.question, pair.answer)]
        vectors, first = self.encoder.encode(texts), len(before)
        questions = np.concatenate([vectors[: 2 * first : 2], self.questions, vectors[2 * first :: 2]])
        answers = np.concatenate([vectors[1 : 2 * first : 2], self.answers, vectors[2 * first + 1 :: 2]])
        return AnswerMatcher(index, self.encoder, questions, answers, self.weights)

    def match(self, queries: Sequence[str], k: int = 4, vectors: FloatArray | None = None) -> list[Match]:
        """The `k` best pairs with different answers for each query, and the probability that the first is right.

        `vectors`: the queries' sentence vectors, (queries, width), where they are known already.
        """
        return [self._match(*each) for each in zip(queries, self.signals(queries, k, vectors), strict=True)]

    def _match(self, query: str, found: Signals) -> Match:
        """A known question is certain, letter for letter; of rows with this question the first is taken, the newest."""
        exact = self._rows_by_question.get(comparison_form(query))
        if exact is None:
            return Match(found.rows, found.similarities, self.weights.probability(found.calibration))
        others = found.rows != exact
        rows = np.concatenate([[exact], found.rows[others]])
        return Match(rows, np.concatenate([[1.0], found.similarities[others]]).astype(np.float32), 1.0, exact=True)

    def signals(self, queries: Sequence[str], k: int = 4, vectors: FloatArray | None = None) -> list[Signals]:
        """What the match of each query is decided by; `vectors` as in `match`."""
        vectors = self.encoder.encode(queries) if vectors is None else vectors
        found: list[Signals] = []
        for part in chunks(len(queries), len(self.index.pairs), CELLS // 4):
            found += self._signals(queries[part], vectors[part], k)
        return found

    def views(self, queries: Sequence[str], vectors: FloatArray) -> FloatArray:
        """(views, queries, pairs): similarities in the order of VIEWS."""
        lexical_answers = (self._answer_tfidf.vectors(queries) @ self._answer_postings).toarray()
        return np.stack(
            [
                self.index.similarities(queries),
                lexical_answers,
                vectors @ self.questions.T,
                vectors @ self.answers.T,
            ]
        ).astype(np.float32)

    def _signals(self, queries: Sequence[str], vectors: FloatArray, k: int) -> list[Signals]:
        views, distinct = self.views(queries, vectors), max(k, 1 + _RIVALS)
        scores: FloatArray = np.einsum("v,vqp->qp", self.view_weights, views)
        near = largest(scores, min(8 * distinct, scores.shape[1]))
        rows = [self._distinct(best, distinct) for best in near]
        best = np.array([one[0] for one in rows])
        columns = {
            **{name: view[range(len(best)), best] for name, view in zip(VIEWS, views, strict=True)},
            **self._lead(scores, views, rows),
            **self._token_signals(queries, rows),
            "coverage": self._coverage(queries, best.tolist()),
            "neighbour": np.array([self._neighbour(each) for each in near]),
            "own_answer": np.einsum("qw,qw->q", self.questions[best], self.answers[best]),
            "small_talk": (vectors - self.questions[best]) @ self._small_talk,
            "length": np.log1p([len(query) for query in queries]),
        }
        calibration = np.stack([columns[name] for name in SIGNALS], axis=1).astype(np.float32)
        return [Signals(each[:k], scores[n, each[:k]], calibration[n]) for n, each in enumerate(rows)]

    def _lead(self, scores: FloatArray, views: FloatArray, rows: Sequence[NDArray[np.int64]]) -> dict[str, FloatArray]:
        """How far the best pair is before those with other answers. scores: (queries, pairs), rows: (distinct,)."""
        best = np.array([one[0] for one in rows])
        score = scores[range(len(best)), best]
        rivals = [row[1 : 1 + _RIVALS] for row in rows]
        behind = np.array([np.mean(scores[n, others]) if len(others) else 0.0 for n, others in enumerate(rivals)])
        question, answer = (view[range(len(best)), best] - self._behind(view, best) for view in views[2:])
        return {
            "score": score,
            "margin": score - [scores[n, others[0]] if len(others) else 0.0 for n, others in enumerate(rivals)],
            "lead": score - behind,
            "question_margin": question,
            "answer_margin": answer,
        }

    def _behind(self, similarities: FloatArray, best: NDArray[np.int64]) -> FloatArray:
        """(queries,): highest of (queries, pairs) among pairs with another answer than the best row; 0 without any."""
        others = self._answer_groups != self._answer_groups[best][:, None]
        highest: FloatArray = np.where(others, similarities, 0).max(axis=1)
        return highest

    def _neighbour(self, near: NDArray[np.int64]) -> float:
        """Highest similarity of the best row's question to one with another answer, among the nearest rows, (n,)."""
        others = near[self._answer_groups[near] != self._answer_groups[near[0]]]
        return float((self.questions[others] @ self.questions[near[0]]).max(initial=0))

    def _token_signals(self, queries: Sequence[str], rows: Sequence[NDArray[np.int64]]) -> dict[str, FloatArray]:
        """How well each token of a query is met by one of the best pair, and of the best pair with another answer."""
        found = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            asked, known = self._tokens(queries[part], {int(row) for one in rows[part] for row in one[:2]})
            for tokens, one in zip(asked, rows[part], strict=True):
                met = [(tokens @ known[row].T).max(axis=1) for row in one[:2].tolist()]
                second = met[1].mean() if len(met) > 1 else 0.0
                found.append((met[0].mean(), np.percentile(met[0], 25), met[0].mean() - second))
        mean, quartile, margin = np.array(found).reshape(-1, 3).T
        return {"tokens": mean, "token_quartile": quartile, "token_margin": margin}

    def _tokens(self, queries: Sequence[str], rows: Collection[int]) -> tuple[list[FloatArray], dict[int, FloatArray]]:
        """(tokens, width) of each query, and of question and answer together of each row. Those of rows are kept."""
        kept = self._kept_tokens
        texts = {row: (self.index.pairs[row].question, self.index.pairs[row].answer) for row in rows}
        wanted = dict.fromkeys(text for pair in texts.values() for text in pair)
        found = {text: one for text in wanted if (one := kept.get(text)) is not None}  # another thread may clear it
        new = [text for text in wanted if text not in found]
        encoded = self.encoder.encode_tokens([*queries, *new])
        found |= {text: one.astype(np.float16) for text, one in zip(new, encoded[len(queries) :], strict=True)}
        if len(kept) + len(new) > _TEXTS_KEPT:
            kept.clear()
        kept.update(found)
        known = {row: np.concatenate([found[text] for text in pair]).astype(np.float32) for row, pair in texts.items()}
        return encoded[: len(queries)], known

    @cached_property
    def _kept_tokens(self) -> dict[str, NDArray[np.float16]]:
        return {}

    @cached_property
    def _small_talk(self) -> FloatArray:
        """(width,): of no effect with another encoder than the built-in one."""
        direction = np.array(self.weights.small_talk, np.float32)
        width = self.questions.shape[1]
        return direction if len(direction) == width else np.zeros(width, np.float32)

    @cached_property
    def view_weights(self) -> FloatArray:
        """(views,): the weights of the package, those of answers scaled by how well answers fit their questions here.

        Customers' questions share their topic with the right answer of an FAQ; in small talk they do not, and there the
        similarity to answers would mislead. What the answers lose, the sentence vectors of the questions gain.
        """
        weights = dict(self.weights.views)
        low, high = _ANSWER_FIT
        scale = float(np.clip((self._answer_fit() - low) / (high - low), 0, 1))
        for name in ("lexical_answer", "sentence_answer"):
            weights["sentence_question"] += (1 - scale) * weights[name]
            weights[name] *= scale
        return np.array([weights[name] for name in VIEWS], np.float32)

    def _answer_fit(self) -> float:
        """Share of known questions, of at most 200, to which their own answer is the most similar one."""
        rows = np.random.RandomState(0).permutation(len(self.questions))[:_FIT_ROWS]
        nearest = (self.questions[rows] @ self.answers.T).argmax(axis=1)
        return float(np.mean(self._answer_groups[nearest] == self._answer_groups[rows]))

    def _distinct(self, rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """The first `k` rows whose answers differ."""
        first: dict[int, int] = {}
        for row in rows.tolist():
            first.setdefault(int(self._answer_groups[row]), row)
        return np.array(list(first.values())[:k], np.int64)

    def _coverage(self, queries: Sequence[str], rows: Sequence[int]) -> FloatArray:
        """(queries,): share of each query's n-grams, weighted by rarity, that question or answer of its row contain."""
        pairs = [self.index.pairs[row] for row in rows]
        weights = self.index.ngrams.vectors(queries).power(2)
        known = self.index.ngrams.vectors([f"{pair.question} {pair.answer}" for pair in pairs])
        inside, total = weights.multiply(known.astype(bool)).sum(axis=1), weights.sum(axis=1)
        covered: FloatArray = np.asarray(inside) / np.maximum(np.asarray(total), 1e-9)
        return covered

    @cached_property
    def _answer_groups(self) -> NDArray[np.int64]:
        """(pairs,): the same number for the same answer."""
        forms = [comparison_form(pair.answer) for pair in self.index.pairs]
        return np.unique(forms, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def _rows_by_question(self) -> dict[str, int]:
        """The first row of each question's comparison form; an empty form equals nothing."""
        rows = reversed(list(enumerate(self.index.pairs)))
        return {form: row for row, pair in rows if (form := comparison_form(pair.question))}

    @cached_property
    def _answer_tfidf(self) -> CharTfidf:
        return CharTfidf.fit([pair.answer for pair in self.index.pairs])

    @cached_property
    def _answer_postings(self) -> Any:
        return self._answer_tfidf.vectors([pair.answer for pair in self.index.pairs]).T.tocsr()

    def save(self, folder: Path) -> None:
        """Write `sentences.npz`, in half precision."""
        np.savez(
            folder / "sentences.npz",
            questions=self.questions.astype(np.float16),
            answers=self.answers.astype(np.float16),
        )

    @classmethod
    def open(cls, folder: Path, index: LexicalIndex, encoder: Encoder) -> AnswerMatcher:
        """Read the vectors of an index's pairs; the file may hold those of more pairs behind them."""
        pairs = len(index.pairs)
        with np.load(folder / "sentences.npz", allow_pickle=False) as file:
            vectors = (file[name][:pairs].astype(np.float32) for name in ("questions", "answers"))
            questions, answers = vectors
            return cls(index, encoder, questions, answers, MatchWeights.default())
