"""The baseline that needs no training: say the answer of the nearest known question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daedap.answer.index import NGrams

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

    def scores(self, questions: Sequence[str], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(questions, candidates): how well each candidate answers.

        max over the 100 nearest known questions q' with answers a' of cos(q, q')² · cos(candidate, a'),
        plus 0.3 · cos(q, candidate). All lists of candidates are equally long.
        """
        width = len(candidates[0])
        near = self._index.search(questions, NEAREST)
        asked = self._ngrams.vectors(questions)
        offered = self._ngrams.vectors([text for texts in candidates for text in texts])
        scores = np.zeros((len(questions), width))
        for row in range(len(questions)):
            mine = offered[row * width : (row + 1) * width]
            alike = (mine @ self._answers[near.rows[row]].T).toarray()
            direct = (mine @ asked[row : row + 1].T).toarray()[:, 0]
            scores[row] = (alike * near.similarities[row] ** 2).max(axis=1) + DIRECT * direct
        return scores
