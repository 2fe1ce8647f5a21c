"""What a bot knows: pairs found by lexical and semantic similarity, and the weights by which answers are chosen.

Folder `index/`: lexical index (lexical.py), sentence vectors (matcher.py, large_matcher.py; may be of more pairs than
the index holds), `encoder.json` (name and digest of the sentence encoder that made them), `weights.json` (rerank.py),
and where it was worth fitting one, a bi-encoder and its vectors (encoder.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from daedap.i18n import translate
from daedap.korean.text import comparison_form
from daedap.model.sentence_encoder import SentenceEncoder, built_in_encoder
from daedap.retrieval.encoder import BiEncoder, PairEmbeddings
from daedap.retrieval.large_matcher import EXACT_UP_TO, LargeMatcher, is_large
from daedap.retrieval.lexical import READ_ERRORS, Hits, LexicalIndex, LexicalKnn, chunks, damaged, largest
from daedap.retrieval.matcher import AnswerMatcher
from daedap.retrieval.query import Query, encode_queries, texts_of
from daedap.retrieval.rerank import Reranker, RerankWeights, default_weights, fit_weights
from daedap.training.planner import ENOUGH_DEV_ROWS
from daedap.types import Float32Array, Pair

if TYPE_CHECKING:
    from daedap.model.decoding import LanguageModel

_LEXICAL_SHORTLIST = 500
"""Above EXACT_UP_TO pairs, `search` compares vectors with those of the lexically nearest pairs alone."""
_ENCODER = "encoder.json"
_log = logging.getLogger("daedap")
_OUT_OF_SCOPE_PERCENT = 2.0
"""Percentile of the dev questions' similarity to the nearest known question that becomes the out-of-scope threshold."""


@dataclass(frozen=True)
class HybridRetriever:
    """Known pairs, and everything to find them and choose among them."""

    index: LexicalIndex
    matcher: AnswerMatcher
    weights: RerankWeights
    bi_encoded: PairEmbeddings | None = None
    """Vectors of the run's bi-encoder, where it has one."""

    @classmethod
    def build(
        cls, pairs: Sequence[Pair], encoder: SentenceEncoder | None = None, bi_encoder: BiEncoder | None = None
    ) -> HybridRetriever:
        """Index and encode pairs, by default with the built-in sentence encoder and without a bi-encoder."""
        index = LexicalIndex.build(pairs)
        kind = LargeMatcher if len(pairs) > EXACT_UP_TO else AnswerMatcher
        matcher = kind.build(index, encoder or built_in_encoder())
        weights = default_weights(bi_encoder=bi_encoder is not None)
        return cls(index, matcher, weights, PairEmbeddings.of(bi_encoder, pairs) if bi_encoder else None)

    @property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder, for the vectors of questions."""
        return cast("SentenceEncoder", self.matcher.encoder)

    @property
    def embeddings(self) -> PairEmbeddings | AnswerMatcher:
        """Vectors for semantic similarity: the bi-encoder's if there is one, else sentence vectors."""
        return self.bi_encoded or self.matcher

    def encode(self, questions: Iterable[Pair | str]) -> list[Query]:
        """Questions alone, or those of pairs, ready to be matched."""
        return encode_queries(questions, self.encoder)

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """The `k` nearest known questions of each query, by the mean of the lexical cosine and the embeddings'."""
        hits: list[Hits] = []
        for rows in chunks(len(queries), len(self.index.pairs)):
            part = queries[rows]
            similarities, vectors = self.index.similarities(texts_of(part)), self.embeddings.vectors_of(part)
            hits += [self._nearest(*each, k) for each in zip(similarities, vectors, strict=True)]
        return [self._earliest_first(query.text, each) for query, each in zip(queries, hits, strict=True)]

    def _nearest(self, lexical: Float32Array, vector: Float32Array, k: int) -> Hits:
        """lexical: (pairs,) cosines; vector: (width,)."""
        rows, known = np.arange(len(lexical)), self.embeddings.questions
        if len(rows) > EXACT_UP_TO:
            rows = largest(lexical[None], _LEXICAL_SHORTLIST)[0]
            lexical, known = lexical[rows], known[rows]
        mean: Float32Array = (lexical + known @ vector).clip(0) / np.float32(2)
        best = largest(mean[None], min(k, len(rows)))[0]
        return Hits(rows[best], mean[best].clip(0, 1))

    def _earliest_first(self, question: str, hits: Hits) -> Hits:
        """Of rows with this very question the first, which is the newest; rounding may have reordered them."""
        form = comparison_form(question)
        same = [row for row in hits.rows if comparison_form(self.index.pairs[row].question) == form]
        others = [row for row in hits.rows if row not in same]
        return Hits(np.array([*sorted(same), *others]), hits.similarities) if len(same) > 1 else hits

    def reranker(self, model: LanguageModel) -> Reranker:
        """Scores candidate answers with the help of a language model."""
        return Reranker(self._lexical_knn, self.encoder, self.embeddings, model, self.weights)

    @cached_property
    def _lexical_knn(self) -> LexicalKnn:
        return LexicalKnn(self.index)

    def extended(self, pairs: Sequence[Pair]) -> HybridRetriever:
        """With new pairs before the known ones; the bi-encoder and the weights stay as they were fitted."""
        index = LexicalIndex.build([*pairs, *self.index.pairs])
        bi_encoded = self.bi_encoded.extended(before=pairs) if self.bi_encoded else None
        return HybridRetriever(index, self.matcher.extended(index, before=pairs), self.weights, bi_encoded)

    def save(self, folder: Path, held_out: Sequence[Pair] = ()) -> None:
        """Write everything; the vectors of held-out pairs come along, for a bot that is opened with these."""
        self.index.save(folder)
        self.matcher.extended(self.index.extended(held_out), after=held_out).save(folder)
        self.weights.save(folder / "weights.json")
        if self.bi_encoded:
            self.bi_encoded.extended(after=held_out).save(folder)
        made_by = {"name": self.encoder.settings.name, "digest": self.encoder.settings.digest}
        (folder / _ENCODER).write_text(json.dumps(made_by, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, held_out: Sequence[Pair] = ()) -> HybridRetriever:
        """Read it, with the held-out pairs that it was saved with or none.

        Vectors of another version of the built-in sentence encoder are computed again, with a warning. Raises RunError
        when the folder is damaged, EncoderError when its sentence encoder can't be had any more.
        """
        index = LexicalIndex.open(folder).extended(held_out)
        try:
            encoder, same = _open_encoder(folder)
            kind = LargeMatcher if is_large(folder) else AnswerMatcher
            matcher = kind.open(folder, index, encoder) if same else _encoded_again(kind, folder, index, encoder)
            weights = RerankWeights.open(folder / "weights.json")
            has_bi_encoder = (folder / "vectors.npz").exists()
            bi_encoded = PairEmbeddings.open(folder, len(index.pairs)) if has_bi_encoder else None
            return cls(index, matcher, weights, bi_encoded)
        except READ_ERRORS as error:
            raise damaged(folder, str(error)) from error


def _open_encoder(folder: Path) -> tuple[SentenceEncoder, bool]:
    """The sentence encoder of an index, and whether it is the very one that made the index's vectors.

    Converted encoders are kept beside the runs, in `cache`; the built-in one may be of another version by now.
    """
    if (bundled := folder.parent / "encoder").is_dir():  # of a bundle
        return SentenceEncoder.open(bundled), True
    made_by = json.loads(file.read_text(encoding="utf-8")) if (file := folder / _ENCODER).exists() else {}
    if not made_by.get("name"):
        encoder = built_in_encoder()
        return encoder, encoder.settings.digest == made_by.get("digest")
    from daedap.model.encoder_conversion import open_encoder  # torch takes seconds to import

    return open_encoder(made_by["name"], folder.parents[1] / "cache", made_by["digest"]), True


def _encoded_again(
    kind: type[AnswerMatcher], folder: Path, index: LexicalIndex, encoder: SentenceEncoder
) -> AnswerMatcher:
    message = (
        "{folder}: another version of the built-in sentence encoder made these vectors; they are computed again. "
        "To open it faster, make a new run of its file: daedap train FILE"
    )
    _log.warning(translate(message, folder=folder))
    return kind.build(index, encoder)


def fit_retriever(
    retriever: HybridRetriever, train: Sequence[Pair], dev: Sequence[Pair], model: LanguageModel
) -> HybridRetriever:
    """With rerank weights and an out-of-scope threshold fitted on the dev rows; as it is where there are too few.

    `train`: the known pairs that are not too long for the model.
    """
    if len(dev) < ENOUGH_DEV_ROWS:
        return retriever
    weights = fit_weights(retriever.reranker(model), dev, [pair.answer for pair in train])
    nearest = [hits.similarities[0] for hits in retriever.search(retriever.encode(dev), 1)]
    threshold = round(float(np.percentile(nearest, _OUT_OF_SCOPE_PERCENT)), 4)
    return replace(retriever, weights=replace(weights, out_of_scope_threshold=threshold))
