"""How well an answer fits a question: four views of it, weighed by what they were worth on the dev rows.

known    what was answered to questions that share its letters (nearest.py)
fit      how near question and answer are in the encoder's space
alike    what was answered to questions that are near in that space
told     log2 p(answer | question) − log2 p(answer | no question) of the model, per token (PMI: Li et al. 2016)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daedap.korean.text import comparison_form
from daedap.retrieval.encoder import PairEmbeddings
from daedap.retrieval.lexical import LexicalKnn
from daedap.types import Pair

if TYPE_CHECKING:
    from daedap.model.language_model import LanguageModel  # torch takes seconds to import

FloatArray = NDArray[np.float64]
_NEAREST = 50
ENOUGH = 100
"""Dev rows from which on a run's weights are fitted on its own."""
_FITTED_ON, _WRONG = 60, 9
"""Dev rows that they are fitted on, and wrong answers beside each right one: docs/EXPERIMENTS.md."""
_TOLD = 8
"""Candidates that the model is asked about: those that look best without it."""


@dataclass(frozen=True)
class RerankWeights:
    """Of the four views. The defaults are those of ChatbotData (docs/EXPERIMENTS.md), for runs with few dev rows."""

    known: float = 20.0
    fit: float = 6.5
    alike: float = 8.5
    told: float = 0.5
    out_of_scope_threshold: float = 0.3
    """A question less similar than this to everything known is not understood."""

    @property
    def views(self) -> FloatArray:
        """(4,)"""
        return np.array([self.known, self.fit, self.alike, self.told])

    def with_threshold(self, similarity: float) -> RerankWeights:
        """The same, with another limit of what is understood."""
        return replace(self, out_of_scope_threshold=round(similarity, 4))

    def save(self, file: Path) -> None:
        """Write them as JSON."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def open(cls, file: Path) -> RerankWeights:
        """Read them."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Reranker:
    """Scores candidates; of two for the same question, the higher one fits better."""

    nearest: LexicalKnn
    space: PairEmbeddings
    talker: LanguageModel
    weights: RerankWeights = RerankWeights()

    def scores(self, asked: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> list[FloatArray]:
        """For each question (the answers of `asked` are not looked at) one score for each of its candidates."""
        return [views @ self.weights.views for views in self.views(asked, candidates)]

    def best(self, asked: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> list[int]:
        """For each question the number of the candidate that fits best; the model is asked about the likely ones.

        What is answered to many questions has to fit the better: less ln of how many, as a prior would have it.
        """
        weights = self.weights.views
        fitting = zip(self._seen(asked, candidates), candidates, strict=True)
        seen = [views @ weights[:-1] - np.log(self.nearest.often(texts)) for views, texts in fitting]
        likely = [np.argsort(-scores, kind="stable")[:_TOLD] for scores in seen]
        about = [[offered[n] for n in chosen] for offered, chosen in zip(candidates, likely, strict=True)]
        owners, texts = _flat(about)
        told = np.split(self._told(asked, owners, texts), np.cumsum([len(chosen) for chosen in likely])[:-1])
        return [
            int(chosen[np.argmax(scores[chosen] + weights[-1] * heard)])
            for scores, chosen, heard in zip(seen, likely, told, strict=True)
        ]

    def views(self, asked: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> list[FloatArray]:
        """For each question (candidates, 4): the four views in the order of `RerankWeights`."""
        owners, texts = _flat(candidates)
        told = self._told(asked, owners, texts)[:, None]
        return _parted(np.hstack([np.concatenate(self._seen(asked, candidates)), told]), candidates)

    def _seen(self, asked: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> list[FloatArray]:
        """For each question (candidates, 3): the views that take no model."""
        owners, texts = _flat(candidates)
        known = self.nearest.each([pair.question for pair in asked], owners, texts)
        return _parted(np.stack([known, *self._meant(asked, owners, texts)], axis=1), candidates)

    def _meant(
        self, asked: Sequence[Pair], owners: NDArray[np.int64], texts: Sequence[str]
    ) -> tuple[FloatArray, FloatArray]:
        """`fit` and `alike`, (texts,) each."""
        questions = self.space.encoder.questions([pair.question for pair in asked])
        answers = self.space.encoder.answers(texts)
        near = self.space.search(questions, _NEAREST)
        fit, alike = np.einsum("ij,ij->i", answers, questions[owners]), np.zeros(len(texts))
        for row in range(len(asked)):
            mine = owners == row
            cosines = answers[mine] @ self.space.said[near.rows[row]].T
            alike[mine] = (cosines * near.similarities[row] ** 2).max(axis=1)
        return fit.astype(np.float64), alike

    def _told(self, asked: Sequence[Pair], owners: NDArray[np.int64], texts: Sequence[str]) -> FloatArray:
        offered = [replace(asked[owner], answer=text) for owner, text in zip(owners, texts, strict=True)]
        given, number = self.talker.log2_probability(offered).T
        different, place = np.unique(texts, return_inverse=True)
        alone = self.talker.log2_probability([Pair("", str(text)) for text in different])[place, 0]
        pmi: FloatArray = (given - alone) / np.maximum(number, 1)
        return pmi


def _flat(candidates: Sequence[Sequence[str]]) -> tuple[NDArray[np.int64], list[str]]:
    """The number of its question for each candidate, and the candidates, (texts,) both."""
    owners = np.repeat(np.arange(len(candidates)), [len(texts) for texts in candidates])
    return owners, [text for texts in candidates for text in texts]


def _parted(rows: FloatArray, candidates: Sequence[Sequence[str]]) -> list[FloatArray]:
    """Rows of all candidates, question by question."""
    return np.split(rows, np.cumsum([len(texts) for texts in candidates])[:-1])


def fit_weights(ranker: Reranker, dev: Sequence[Pair], answers: Sequence[str]) -> RerankWeights:
    """Weights that put the right answers of dev rows before wrong ones; too few of either keep the defaults."""
    if len(dev) < ENOUGH:
        return RerankWeights()
    apart = differences(ranker, dev, answers)
    return RerankWeights(*(round(float(weight), 4) for weight in weigh(apart))) if len(apart) else RerankWeights()


def differences(ranker: Reranker, dev: Sequence[Pair], answers: Sequence[str]) -> FloatArray:
    """(comparisons, 4): the views of dev rows' right answers less those of wrong ones, drawn from `answers`."""
    dev = sorted(dev, key=lambda pair: pair.id)[:_FITTED_ON]
    offered = [[pair.answer, *_wrong(pair, answers)] for pair in dev]
    return np.concatenate([views[:1] - views[1:] for views in ranker.views(dev, offered)])


def weigh(apart: FloatArray) -> FloatArray:
    """(views,): how much each counts, by a logistic regression on differences (as in RankSVM: Joachims 2002)."""
    from sklearn.linear_model import LogisticRegression  # 1 s

    scale = np.maximum(apart.std(axis=0), 1e-9)
    sides, right = np.concatenate([apart, -apart]) / scale, np.repeat([1, 0], len(apart))
    weights: FloatArray = LogisticRegression(fit_intercept=False).fit(sides, right).coef_[0] / scale
    return weights


def _wrong(pair: Pair, answers: Sequence[str]) -> list[str]:
    """Answers of other rows, drawn by the pair's own dice."""
    rng = np.random.RandomState(int(pair.id[:8], 16))
    drawn = (answers[row] for row in rng.randint(len(answers), size=_WRONG))
    return [text for text in drawn if comparison_form(text) != comparison_form(pair.answer)]
