"""Backward: which of 20 questions does a reply answer? Told by a judge that takes no part in answering.

A reply that would do after any question fits all of them equally: its question can't be found again.
Measured choices: docs/EXPERIMENTS.md, "Finding the question from the reply".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_solve, cholesky, solve_triangular

from daedap.korean.text import analyse, comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daedap.types import Pair

Dense = NDArray[np.float32]
PAIRS = 10_000
"""At most so many pairs are learned from, those with the smallest ids: a larger file takes no longer to judge."""
WORDS = 4096
"""The most frequent morphemes of the questions, and as many of the answers."""
RIDGE = 10.0
"""Added to the diagonal of both covariances: what is rare is trusted less."""
SHARED = 0.3
"""Weight of the words that a reply and a question have in common."""
_EVERYWHERE = ""
"""Stands in every text beside its morphemes, so that none is without any."""
_AT_ONCE = 500
_NOTHING = 1e-6
"""A guess shorter than this is rounding: all that spoke for it has been left out."""


@dataclass(frozen=True)
class Words:
    """Texts that were cut into words, as TF-IDF vectors of length 1."""

    model: Any
    """scikit-learn's."""

    @classmethod
    def fit(cls, texts: Sequence[Sequence[str]], most: int | None = None) -> Words:
        """Learn the words, or the `most` frequent ones, and how rare they are."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # 1 s

        return cls(TfidfVectorizer(analyzer=list, max_features=most, dtype=np.float32).fit(texts))

    def vectors(self, texts: Sequence[Sequence[str]]) -> sparse.csr_array[np.float32]:
        """(texts, words)"""
        found: sparse.csr_array[np.float32] = sparse.csr_array(self.model.transform(texts))
        return found


@dataclass(frozen=True)
class ReplyToQuestionScorer:
    """What is asked, as far as an answer tells it: a ridge regression from the words of answers to those of questions.

    It learns from the training pairs alone and has nothing in common with what chooses the replies: no language
    model, no similarity between questions, no characters. Where a reply is a training answer (by comparison form),
    it is judged as if the pairs with that answer had never been seen, in closed form. Otherwise a look-up would be
    known by heart, not by what it says, and beat the people who wrote the answers.

    What remains: a training answer in slightly other words is still half known, which favours those who copy; and a
    reply that says nothing but its question again is nearly always found. So look at this score beside the others.
    """

    asked: Words
    told: Words
    both: Words
    questions: sparse.csr_array[np.float32]
    """(pairs, words)"""
    asked_factor: Dense
    """(words, words): Cholesky factor of the covariance of the questions, ridge included."""
    told_factor: Dense
    """The same of the answers."""
    crossed: Dense
    """(words of answers, words of questions): their cross-covariance."""
    rows: dict[str, list[int]]
    """Comparison form of an answer → its pairs."""

    @classmethod
    def fit(cls, train: Sequence[Pair]) -> ReplyToQuestionScorer:
        """Learn from at least one pair; which ones, when there are many, does not depend on their order."""
        pairs = sorted(train, key=lambda pair: pair.id)[:PAIRS]
        asked, told = (cut(texts) for texts in ([p.question for p in pairs], [p.answer for p in pairs]))
        question_words, answer_words = Words.fit(asked, WORDS), Words.fit(told, WORDS)
        questions, answers = question_words.vectors(asked), answer_words.vectors(told)
        rows = defaultdict[str, list[int]](list)
        for row, pair in enumerate(pairs):
            rows[comparison_form(pair.answer)].append(row)
        return cls(
            asked=question_words,
            told=answer_words,
            both=Words.fit([*asked, *told]),
            questions=questions,
            asked_factor=_factor(questions),
            told_factor=_factor(answers),
            crossed=(answers.T @ questions).toarray(),
            rows=dict(rows),
        )

    def scores(self, replies: Sequence[str], questions: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(replies, candidates): how well each candidate question goes before its reply; all lists equally long.

        The cosine of the question that the reply makes likely with the candidate, both in whitened words, plus 0.3
        times the cosine of their TF-IDF vectors.
        """
        texts = list(dict.fromkeys(text for several in questions for text in several))
        place = {text: column for column, text in enumerate(texts)}
        columns = np.array([[place[text] for text in several] for several in questions])
        asked = cut(texts)
        white, plain = self._whitened(self.asked.vectors(asked).toarray().T), self.both.vectors(asked)
        scores = np.zeros(columns.shape)
        for start in range(0, len(replies), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            told = cut(replies[part])
            alike = (self.both.vectors(told) @ plain.T).toarray()
            fits = self._guesses(told, self._forget(replies[part])) @ white.T + SHARED * alike
            scores[part] = np.take_along_axis(fits, columns[part], axis=1)
        return scores

    def _guesses(self, told: Sequence[Sequence[str]], forgotten: sparse.csr_array[np.float32]) -> Dense:
        """(replies, words): the question that each reply makes likely, whitened.

        Leaving out the rows with a reply's own vector x changes its forecast by x'A⁻¹x times their questions (and by a
        factor, which the cosine ignores).
        """
        vectors = self.told.vectors(told).toarray().T
        expected = self.crossed.T @ cho_solve((self.told_factor, True), vectors, check_finite=False)
        lever = (solve_triangular(self.told_factor, vectors, lower=True, check_finite=False) ** 2).sum(axis=0)
        return self._whitened(expected - forgotten.toarray().T * lever)

    def _forget(self, replies: Sequence[str]) -> sparse.csr_array[np.float32]:
        """(replies, words): the sum of the training questions that have just this answer."""
        known = [self.rows.get(comparison_form(reply), []) for reply in replies]
        columns = np.array([row for rows in known for row in rows], dtype=np.int64)
        ends = np.cumsum([0, *map(len, known)])
        chosen = sparse.csr_array(
            (np.ones(len(columns), dtype=np.float32), columns, ends), shape=(len(replies), self.questions.shape[0])
        )
        return chosen @ self.questions

    def _whitened(self, questions: Dense) -> Dense:
        """(words, texts) → (texts, words), each of length 1, or 0 where nothing is left of it."""
        white = solve_triangular(self.asked_factor, questions, lower=True, check_finite=False).T
        length = np.linalg.norm(white, axis=1, keepdims=True)
        unit: Dense = np.divide(white, length, out=np.zeros_like(white), where=length > _NOTHING)
        return unit


def cut(texts: Iterable[str]) -> list[list[str]]:
    """The words of each text: its morphemes, and one that every text has."""
    return [[*(f"{one.form}/{one.tag}" for one in found), _EVERYWHERE] for found in analyse(texts)]


def _factor(vectors: sparse.csr_array[np.float32]) -> Dense:
    covariance = (vectors.T @ vectors).toarray()
    covariance[np.diag_indices_from(covariance)] += RIDGE
    factor: Dense = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
    return factor
