"""Rerank candidate answers by a linear combination of four features, weighted by a regression on the dev rows.

lexical_knn    similarity to the answers of lexically similar known questions (LexicalKnn)
bi_encoder     cosine of question and answer, by the run's bi-encoder, or else by the sentence encoder
semantic_knn   similarity to the answers of known questions that are near by the same vectors
pmi            log2 p(answer | question) − log2 p(answer | no question) of the language model, per token (PMI: Li et al.
               2016, "A Diversity-Promoting Objective Function for Neural Conversation Models")
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
from daedap.retrieval.matcher import AnswerMatcher
from daedap.retrieval.query import Encoder, Query, encode_queries, texts_of
from daedap.training.planner import ENOUGH_DEV_ROWS
from daedap.types import Float64Array, Pair

if TYPE_CHECKING:
    from daedap.model.decoding import LanguageModel

_NEIGHBOURS = 50
"""Nearest known questions that `semantic_knn` looks at."""
_NEGATIVES = 9
"""Random wrong answers for each dev row that is used for fitting."""
_FOLDS = 5
"""Folds of the cross-validation by which reranking is compared with look-up."""
_SCORED_BY_MODEL = 8
"""Candidates of a question that are scored by the language model: the best by the other features."""


@dataclass(frozen=True)
class RerankWeights:
    """Weights of the four features; the defaults are those beside a bi-encoder (`default_weights`)."""

    lexical_knn: float = 20.0
    bi_encoder: float = 6.5
    semantic_knn: float = 8.5
    pmi: float = 0.5
    out_of_scope_threshold: float = 0.3
    """Similarity to the nearest known question below which a question is out of scope."""
    generates: bool = False
    """Whether reranking beat look-up on dev rows (cross-validated): only then the language model proposes answers."""

    @property
    def vector(self) -> Float64Array:
        """(4,)"""
        return np.array([self.lexical_knn, self.bi_encoder, self.semantic_knn, self.pmi])

    def save(self, file: Path) -> None:
        """Write them as JSON."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def open(cls, file: Path) -> RerankWeights:
        """Read them. Raises TypeError when the file holds other fields."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def default_weights(*, bi_encoder: bool) -> RerankWeights:
    """For runs with few dev rows: fitted on ChatbotData's, with a bi-encoder, or with sentence vectors and 500 rows."""
    return RerankWeights() if bi_encoder else RerankWeights(lexical_knn=23.0, bi_encoder=6.0, semantic_knn=9.0)


@dataclass(frozen=True)
class Reranker:
    """Scores candidate answers; of two answers to one question, the higher score fits better."""

    lexical_knn: LexicalKnn
    encoder: Encoder
    """The sentence encoder, for the queries of dev rows."""
    embeddings: PairEmbeddings | AnswerMatcher
    model: LanguageModel
    weights: RerankWeights = RerankWeights()

    def scores(self, queries: Sequence[Query], candidates: Sequence[Sequence[str]]) -> list[Float64Array]:
        """(candidates,) for each query."""
        return [features @ self.weights.vector for features in self.features(queries, candidates)]

    def best(self, queries: Sequence[Query], candidates: Sequence[Sequence[str]]) -> list[int]:
        """The index of the best candidate for each query.

        Only the candidates that are best without the model are scored by it. An answer that many known questions share
        is penalised by the logarithm of their number, as a uniform prior over questions would.
        """
        weights = self.weights.vector
        partial = [
            features @ weights[:-1] - np.log(self.lexical_knn.answer_counts(texts))
            for features, texts in zip(self._retrieval_features(queries, candidates), candidates, strict=True)
        ]
        shortlists = [np.argsort(-scores, kind="stable")[:_SCORED_BY_MODEL] for scores in partial]
        shortlisted = [[texts[n] for n in chosen] for texts, chosen in zip(candidates, shortlists, strict=True)]
        pmi = _split(self._pmi(queries, *_flatten(shortlisted)), shortlisted)
        return [
            int(chosen[np.argmax(scores[chosen] + weights[-1] * information)])
            for scores, chosen, information in zip(partial, shortlists, pmi, strict=True)
        ]

    def features(self, queries: Sequence[Query], candidates: Sequence[Sequence[str]]) -> list[Float64Array]:
        """(candidates, 4) for each query: the features in the order of `RerankWeights`."""
        pmi = self._pmi(queries, *_flatten(candidates))[:, None]
        return _split(np.hstack([np.concatenate(self._retrieval_features(queries, candidates)), pmi]), candidates)

    def _retrieval_features(self, queries: Sequence[Query], candidates: Sequence[Sequence[str]]) -> list[Float64Array]:
        """(candidates, 3) for each query: the features that need no language model."""
        owners, texts = _flatten(candidates)
        lexical = self.lexical_knn.score_texts(texts_of(queries), owners, texts)
        return _split(np.stack([lexical, *self._semantic(queries, owners, texts)], axis=1), candidates)

    def _semantic(
        self, queries: Sequence[Query], owners: NDArray[np.int64], texts: Sequence[str]
    ) -> tuple[Float64Array, Float64Array]:
        """`bi_encoder` and `semantic_knn`, (texts,) each."""
        questions = self.embeddings.vectors_of(queries)
        answers = self.embeddings.encode_answers(texts)
        hits = self.embeddings.search(questions, _NEIGHBOURS)
        cosines, knn = np.einsum("ij,ij->i", answers, questions[owners]), np.zeros(len(texts))
        for row in range(len(queries)):
            mine = owners == row
            to_known = answers[mine] @ self.embeddings.answers[hits.rows[row]].T
            knn[mine] = (to_known * hits.similarities[row] ** 2).max(axis=1)
        return cosines.astype(np.float64), knn

    def _pmi(self, queries: Sequence[Query], owners: NDArray[np.int64], texts: Sequence[str]) -> Float64Array:
        """(texts,)"""
        pairs = [replace(queries[owner].pair, answer=text) for owner, text in zip(owners, texts, strict=True)]
        conditional, tokens = self.model.log2_probability(pairs).T
        distinct, place = np.unique(texts, return_inverse=True)
        unconditional = self.model.log2_probability([Pair("", str(text)) for text in distinct])[place, 0]
        pmi: Float64Array = (conditional - unconditional) / np.maximum(tokens, 1)
        return pmi


def _flatten(candidates: Sequence[Sequence[str]]) -> tuple[NDArray[np.int64], list[str]]:
    """The index of its query for each candidate, (texts,), and all candidates."""
    owners = np.repeat(np.arange(len(candidates)), [len(texts) for texts in candidates])
    return owners, [text for texts in candidates for text in texts]


def _split(rows: Float64Array, candidates: Sequence[Sequence[str]]) -> list[Float64Array]:
    """Rows of all candidates, query by query."""
    return np.split(rows, np.cumsum([len(texts) for texts in candidates])[:-1])


def fit_weights(reranker: Reranker, dev: Sequence[Pair], answers: Sequence[str]) -> RerankWeights:
    """Weights fitted on 100 dev rows against random wrong `answers`; the reranker's if all answers are the same."""
    features = [rows for rows in dev_features(reranker, dev, answers) if len(rows) > 1]
    if len(features) < _FOLDS:
        return reranker.weights
    lexical_knn, bi_encoder, semantic_knn, pmi = (
        round(float(weight), 4) for weight in fit_linear(differences(features))
    )
    return RerankWeights(lexical_knn, bi_encoder, semantic_knn, pmi, generates=beats_look_up(features))


def dev_features(reranker: Reranker, dev: Sequence[Pair], answers: Sequence[str]) -> list[Float64Array]:
    """(candidates, 4) for each of the first 100 dev rows by id, the right answer first."""
    dev = sorted(dev, key=lambda pair: pair.id)[:ENOUGH_DEV_ROWS]
    queries = encode_queries(dev, reranker.encoder)
    return reranker.features(queries, [[pair.answer, *_negatives(pair, answers)] for pair in dev])


def beats_look_up(features: Sequence[Float64Array]) -> bool:
    """Whether reranking finds more of the right answers than look-up, each by weights fitted on the other folds."""
    look_up = _hits([rows[:, :1] for rows in features], np.ones(1))
    reranked = 0
    for fold in range(_FOLDS):
        others = [rows for number, rows in enumerate(features) if number % _FOLDS != fold]
        reranked += _hits(features[fold::_FOLDS], fit_linear(differences(others)))
    return reranked > look_up


def differences(features: Sequence[Float64Array]) -> Float64Array:
    """(comparisons, 4): features of each right answer less those of each wrong one."""
    return np.concatenate([rows[:1] - rows[1:] for rows in features])


def fit_linear(comparisons: Float64Array) -> Float64Array:
    """(features,): weights by a logistic regression on differences (RankSVM's setting: Joachims 2002)."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    scale = np.maximum(comparisons.std(axis=0), 1e-9)
    both, right = np.concatenate([comparisons, -comparisons]) / scale, np.repeat([1, 0], len(comparisons))
    weights: Float64Array = LogisticRegression(fit_intercept=False).fit(both, right).coef_[0] / scale
    return weights


def _hits(features: Sequence[Float64Array], weights: Float64Array) -> int:
    """Number of rows whose right answer, the first candidate, scores strictly best."""
    return sum(bool((rows[0] @ weights > rows[1:] @ weights).all()) for rows in features)


def _negatives(pair: Pair, answers: Sequence[str]) -> list[str]:
    """Random answers of other rows, seeded by the pair's id: independent of the other rows."""
    rng = np.random.RandomState(int(pair.id[:8], 16))
    sampled = (answers[row] for row in rng.randint(len(answers), size=_NEGATIVES))
    return [text for text in sampled if comparison_form(text) != comparison_form(pair.answer)]
