"""Reply-to-question retrieval: which of 20 questions does a reply answer, by a scorer that the bot does not use?

A reply that fits any question fits all 20 equally, and its question is not found. The scorer is a ridge regression from
the morphemes of answers to the morphemes of questions. Measured choices: docs/EXPERIMENTS.md, "Finding the question
from the reply".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_solve, cholesky, solve_triangular

from daedap.korean.text import analyse, comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sklearn.feature_extraction.text import TfidfVectorizer

    from daedap.types import Pair

Dense = NDArray[np.float32]
PAIRS = 10_000
"""At most this many pairs are fitted, those with the smallest ids, so that larger files take no longer."""
WORDS = 4096
"""Vocabulary: the most frequent morphemes of the questions, and as many of the answers."""
RIDGE = 10.0
"""Added to the diagonal of both covariances, which shrinks the weight of rare morphemes."""
OVERLAP_WEIGHT = 0.3
"""Weight of the TF-IDF cosine of reply and question."""
_BIAS = ""
"""A pseudo-morpheme of every text, so that no text is without any."""
_BATCH = 500
_ZERO = 1e-6
"""A vector shorter than this is rounding error: everything it was made of has been subtracted."""


def _fit_tfidf(texts: Sequence[Sequence[str]], max_words: int | None = None) -> TfidfVectorizer:
    """TF-IDF vectors of length 1 over morphemes, of which a text is a list; None: all morphemes."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # 1 s

    return TfidfVectorizer(analyzer=list, max_features=max_words, dtype=np.float32).fit(texts)


@dataclass(frozen=True)
class ReplyToQuestionScorer:
    """Ridge regression from answer vectors to question vectors, compared with candidates in whitened question space.

    It is fitted on the known pairs only and shares nothing with the systems it scores: no language model, no
    question similarity, no character n-grams. If a reply is a known answer (by comparison form), its score is the
    one of a regression fitted without the pairs of that answer (leave-one-out in closed form). Otherwise retrieval,
    which repeats known answers verbatim, would beat the people who wrote the test answers.

    Two biases remain: a reworded known answer is still partly known, which favours retrieval; and a reply that only
    repeats its question is nearly always found. Read this score together with the others.
    """

    question_words: TfidfVectorizer
    answer_words: TfidfVectorizer
    all_words: TfidfVectorizer
    """Of questions and answers, for the overlap."""
    questions: sparse.csr_array[np.float32]
    """(pairs, words)"""
    question_factor: Dense
    """(words, words): Cholesky factor of the covariance of the questions, ridge included."""
    answer_factor: Dense
    """(words, words): Cholesky factor of the covariance of the answers."""
    cross_covariance: Dense
    """(words of answers, words of questions)"""
    rows: dict[str, list[int]]
    """Comparison form of an answer → its pairs."""

    @classmethod
    def fit(cls, known: Sequence[Pair]) -> ReplyToQuestionScorer:
        """Fit on at least one pair; the result does not depend on the order of the pairs."""
        pairs = sorted(known, key=lambda pair: pair.id)[:PAIRS]
        question_texts = split_morphemes(pair.question for pair in pairs)
        answer_texts = split_morphemes(pair.answer for pair in pairs)
        question_words, answer_words = _fit_tfidf(question_texts, WORDS), _fit_tfidf(answer_texts, WORDS)
        questions, answers = tfidf_vectors(question_words, question_texts), tfidf_vectors(answer_words, answer_texts)
        rows = defaultdict[str, list[int]](list)
        for row, pair in enumerate(pairs):
            rows[comparison_form(pair.answer)].append(row)
        return cls(
            question_words=question_words,
            answer_words=answer_words,
            all_words=_fit_tfidf([*question_texts, *answer_texts]),
            questions=questions,
            question_factor=_cholesky_of_covariance(questions),
            answer_factor=_cholesky_of_covariance(answers),
            cross_covariance=(answers.T @ questions).toarray(),
            rows=dict(rows),
        )

    def scores(self, replies: Sequence[str], questions: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(replies, candidates): how well each candidate question fits its reply; all lists have the same length.

        The cosine of predicted and candidate question in whitened space, plus 0.3 times the TF-IDF cosine of reply and
        candidate.
        """
        texts = list(dict.fromkeys(text for candidates in questions for text in candidates))
        column_of = {text: column for column, text in enumerate(texts)}
        columns = np.array([[column_of[text] for text in candidates] for candidates in questions])
        candidate_texts = split_morphemes(texts)
        whitened = self._whiten(tfidf_vectors(self.question_words, candidate_texts).toarray().T)
        plain = tfidf_vectors(self.all_words, candidate_texts)
        scores = np.zeros(columns.shape)
        for start in range(0, len(replies), _BATCH):
            batch = slice(start, start + _BATCH)
            reply_texts = split_morphemes(replies[batch])
            overlap = (tfidf_vectors(self.all_words, reply_texts) @ plain.T).toarray()
            predicted = self._predict(reply_texts, self._own_questions(replies[batch]))
            fit = predicted @ whitened.T + OVERLAP_WEIGHT * overlap
            scores[batch] = np.take_along_axis(fit, columns[batch], axis=1)
        return scores

    def _predict(self, replies: Sequence[Sequence[str]], own: sparse.csr_array[np.float32]) -> Dense:
        """(replies, words): the whitened question vector predicted from each reply.

        Without the rows whose answer vector is x, the prediction changes by their leverage x'A⁻¹x times the sum of
        their questions, `own` (and by a factor, which the cosine ignores).
        """
        vectors = tfidf_vectors(self.answer_words, replies).toarray().T
        predicted = self.cross_covariance.T @ cho_solve((self.answer_factor, True), vectors, check_finite=False)
        leverage = (solve_triangular(self.answer_factor, vectors, lower=True, check_finite=False) ** 2).sum(axis=0)
        return self._whiten(predicted - own.toarray().T * leverage)

    def _own_questions(self, replies: Sequence[str]) -> sparse.csr_array[np.float32]:
        """(replies, words): the sum of the known questions whose answer equals the reply."""
        rows = [self.rows.get(comparison_form(reply), []) for reply in replies]
        columns = np.array([row for group in rows for row in group], dtype=np.int64)
        ends = np.cumsum([0, *map(len, rows)])
        selection = sparse.csr_array(
            (np.ones(len(columns), dtype=np.float32), columns, ends), shape=(len(replies), self.questions.shape[0])
        )
        return selection @ self.questions

    def _whiten(self, questions: Dense) -> Dense:
        """(words, texts) → (texts, words), each of length 1, or 0 where the vector is zero."""
        white = solve_triangular(self.question_factor, questions, lower=True, check_finite=False).T
        length = np.linalg.norm(white, axis=1, keepdims=True)
        unit: Dense = np.divide(white, length, out=np.zeros_like(white), where=length > _ZERO)
        return unit


def split_morphemes(texts: Iterable[str]) -> list[list[str]]:
    """The morphemes of each text, `form/tag`, and the bias."""
    return [[*(f"{token.form}/{token.tag}" for token in tokens), _BIAS] for tokens in analyse(texts)]


def tfidf_vectors(words: TfidfVectorizer, texts: Sequence[Sequence[str]]) -> sparse.csr_array[np.float32]:
    """(texts, words): vectors of texts that are lists of morphemes."""
    vectors: sparse.csr_array[np.float32] = sparse.csr_array(words.transform(texts))
    return vectors


def _cholesky_of_covariance(vectors: sparse.csr_array[np.float32]) -> Dense:
    covariance = (vectors.T @ vectors).toarray()
    covariance[np.diag_indices_from(covariance)] += RIDGE
    factor: Dense = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
    return factor
