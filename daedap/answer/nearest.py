"""What was answered to questions like this one: a ranking that needs no training, and the baseline of every other."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from daedap.answer.index import NGrams
from daedap.korean import comparison_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from daedap.answer.index import Index

NEAREST = 100
DIRECT = 0.3
"""Weight of what question and candidate have in common; chosen, like NEAREST, on a part kept apart for it."""


class NearestQuestion:
    """Ranks candidates by what was answered to questions like this one."""

    def __init__(self, index: Index) -> None:
        answers = [pair.answer for pair in index.pairs]
        self._index = index
        self._ngrams = NGrams.fit(answers)
        self._answers = self._ngrams.vectors(answers)

    def often(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts,): how many known questions have this answer; 1 for what is not known."""
        return np.array([max(1, self._count[comparison_form(text)]) for text in texts], np.float64)

    @cached_property
    def _count(self) -> Counter[str]:
        return Counter(comparison_form(pair.answer) for pair in self._index.pairs)

    def scores(self, questions: Sequence[str], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(questions, candidates): how well each candidate answers. All lists of candidates are equally long."""
        owners = np.repeat(np.arange(len(questions)), len(candidates[0]))
        texts = [text for offered in candidates for text in offered]
        return self.each(questions, owners, texts).reshape(len(questions), -1)

    def each(self, questions: Sequence[str], owners: NDArray[np.int64], texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts,): how well each text answers its question, the one whose number is in `owners`, (texts,).

        max over the 100 nearest known questions q' with answers a' of cos(q, q')² · cos(text, a'),
        plus 0.3 · cos(q, text).
        """
        near = self._index.search(questions, NEAREST)
        asked, offered = self._ngrams.vectors(questions), self._ngrams.vectors(texts)
        scores = np.zeros(len(texts))
        for row in range(len(questions)):
            mine = np.flatnonzero(owners == row)
            alike = (offered[mine] @ self._answers[near.rows[row]].T).toarray()
            direct = (offered[mine] @ asked[row : row + 1].T).toarray()[:, 0]
            scores[mine] = (alike * near.similarities[row] ** 2).max(axis=1, initial=0) + DIRECT * direct
        return scores
