"""Vectors by which a reranker compares questions and answers: a bi-encoder's, or those of the sentence encoder.

The bi-encoder is trained on a run's own pairs: two projections over n-grams and morphemes (LSA) and the word vectors of
Kiwi's language model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from daedap.errors import RunError
from daedap.korean.text import Morpheme, analyse, comparison_form, strip_emoticons
from daedap.korean.word_vectors import WIDTH, KiwiWordVectors, model_version
from daedap.retrieval.large_matcher import LargeMatcher
from daedap.retrieval.lexical import LexicalHits, chunks, largest
from daedap.retrieval.matcher import AnswerMatcher
from daedap.types import Pair

FloatArray = NDArray[np.float32]
_PARTS, _FITTED_ON, _MOST = 512, 40_000, 40_000
"""Dimensions of LSA, texts it is fitted on, and features that it knows at most."""
_AT_ONCE = 4096
_EMOTIONS = frozenset("ㅋㅎㅠㅜ") | {"ㅋㅋ", "ㅎㅎ", "ㅠㅠ", "ㅜㅜ"}


@dataclass(frozen=True)
class TextVectorizer:
    """Fitted on the texts of a run's training rows."""

    vocabulary: tuple[str, ...]
    idf: FloatArray
    """(vocabulary,): ln((1 + n) / (1 + document frequency)) + 1."""
    parts: NDArray[np.float16]
    """(vocabulary, 512): LSA (Deerwester et al. 1990)."""
    senses: KiwiWordVectors
    middle: FloatArray
    """(256,): the mean word vector, which all words share and which says nothing."""
    _vectors: dict[int, FloatArray] = field(default_factory=dict, repr=False)
    _analysed: dict[str, _Cut] = field(default_factory=dict, repr=False)
    """The texts it was fitted on, which are encoded next: Kiwi takes as long for a text as all the rest."""

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int) -> TextVectorizer:
        """Learn which features are rare and which go together."""
        from sklearn.decomposition import TruncatedSVD  # 1 s

        some = list(dict.fromkeys(texts))
        if len(some) > _FITTED_ON:
            some = [some[row] for row in np.random.default_rng(seed).choice(len(some), _FITTED_ON, replace=False)]
        cut = _cut(some)
        tfidf = _tfidf(min_df=2 if len(some) > 1 else 1, max_features=_MOST)
        counted = tfidf.fit_transform(cut)
        rank = min(_PARTS, *(size - 1 for size in counted.shape))
        parts = np.zeros((_PARTS, counted.shape[1]), np.float32)
        if rank > 0:
            parts[:rank] = TruncatedSVD(rank, n_iter=1, random_state=seed).fit(counted).components_
        senses = KiwiWordVectors.recover()
        vectors = senses.vectors(morpheme.morpheme_id for text in cut for morpheme in text.morphemes)
        middle = np.mean(list(vectors.values()) or [np.zeros(WIDTH, np.float32)], axis=0).astype(np.float32)
        return cls(
            tuple(tfidf.get_feature_names_out()),
            tfidf.idf_.astype(np.float32),
            parts.T.astype(np.float16),
            senses,
            middle,
            vectors,
            dict(zip(some, cut, strict=True)),
        )

    def of(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 768): two parts, each of length 1 or, where nothing is known of a text, 0."""
        found = np.zeros((len(texts), _PARTS + WIDTH), np.float32)
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            cut = self._cut(some)
            counted: sparse.csr_array[np.float32] = self._tfidf.transform(cut)
            used = np.unique(counted.indices)
            found[start : start + len(some), :_PARTS] = unit(counted[:, used] @ self.parts[used].astype(np.float32))
            found[start : start + len(some), _PARTS:] = unit(self._meaning(cut))
        return found

    def _cut(self, texts: Sequence[str]) -> list[_Cut]:
        new = list(dict.fromkeys(text for text in texts if text not in self._analysed))
        added = dict(zip(new, _cut(new), strict=True))
        return [added[text] if text in added else self._analysed[text] for text in texts]

    def _meaning(self, cut: Sequence[_Cut]) -> FloatArray:
        """(texts, 256): the sum of the word vectors, rare words counting more."""
        asked = {morpheme.morpheme_id for text in cut for morpheme in text.morphemes} - self._vectors.keys()
        missing = self.senses.vectors(asked)
        self._vectors.update({word: missing.get(word, self.middle) for word in asked})  # in the middle: no meaning
        words = [morpheme for text in cut for morpheme in text.morphemes]
        numbers, place = np.unique([morpheme.morpheme_id for morpheme in words], return_inverse=True)
        apart = np.array([self._vectors[number] - self.middle for number in numbers.tolist()], np.float32)
        rows = np.repeat(np.arange(len(cut)), [len(text.morphemes) for text in cut])
        rarity = np.array([self._rarity(morpheme) for morpheme in words], np.float32)
        counted = sparse.csr_array((rarity, (rows, place)), shape=(len(cut), len(numbers)))
        return np.asarray(counted @ apart.reshape(-1, WIDTH))

    def _rarity(self, morpheme: Morpheme) -> float:
        column = self._column.get(_named(morpheme))
        return self._rarest if column is None else float(self.idf[column])

    @cached_property
    def _rarest(self) -> float:
        return float(self.idf.max(initial=1))

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.vocabulary)}

    @cached_property
    def _tfidf(self) -> Any:
        tfidf = _tfidf(vocabulary=self._column)
        tfidf.idf_ = self.idf
        return tfidf

    def save(self, folder: Path) -> None:
        """Write `features.json`, `features.npz` and `parts.npy`, without pickle."""
        (folder / "features.json").write_text(
            json.dumps({"kiwi": model_version(), "vocabulary": self.vocabulary}, ensure_ascii=False), encoding="utf-8"
        )
        np.save(folder / "parts.npy", self.parts, allow_pickle=False)
        np.savez(folder / "features.npz", idf=self.idf, basis=self.senses.basis, middle=self.middle)

    @classmethod
    def open(cls, folder: Path) -> TextVectorizer:
        """Read them again. Raises RunError where Kiwi has another model now: its vectors are others."""
        told = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        if told["kiwi"] != model_version():
            raise RunError(
                "{folder} was made with version {old} of Kiwi's model; {new} is installed.",
                "Install the old one (pip install kiwipiepy-model=={old}), or train again.",
                folder=folder,
                old=told["kiwi"],
                new=model_version(),
            )
        with np.load(folder / "features.npz", allow_pickle=False) as file:
            parts = np.load(folder / "parts.npy", mmap_mode="r")  # a question needs a few rows of it
            return cls(tuple(told["vocabulary"]), file["idf"], parts, KiwiWordVectors(file["basis"]), file["middle"])


@dataclass(frozen=True)
class _Cut:
    """A text and its morphemes."""

    text: str
    morphemes: list[Morpheme]


def _cut(texts: Sequence[str]) -> list[_Cut]:
    """Texts and their morphemes, without laughter and tears."""
    found = zip(texts, analyse(texts), strict=True)
    return [_Cut(text, [one for one in morphemes if not _is_emotion(one.form)]) for text, morphemes in found]


@lru_cache(2**16)
def _is_emotion(form: str) -> bool:
    """Whether a morpheme is laughter or tears."""
    return strip_emoticons(form) in _EMOTIONS


def _tfidf(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=_names, sublinear_tf=True, dtype=np.float32, **options)


def _names(cut: _Cut) -> list[str]:
    """Its features: 1- to 3-grams of characters, the text's ends included, and 1- and 2-grams of morphemes."""
    marked, words = f"\x02{strip_emoticons(cut.text)}\x03", [_named(morpheme) for morpheme in cut.morphemes]
    grams = [marked[i : i + n] for n in (1, 2, 3) for i in range(len(marked) - n + 1)]
    return [*grams, *words, *(f"{one} {two}" for one, two in pairwise(words))]


def _named(morpheme: Morpheme) -> str:
    return f"{morpheme.form}/{morpheme.tag}"


def unit(rows: Any) -> FloatArray:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    found: FloatArray = (rows / np.maximum(length, 1e-9)).astype(np.float32)
    return found


MOST = 100_000
"""Pairs that it learns from at most, drawn at random."""


@dataclass(frozen=True)
class BiEncoder:
    """Texts → vectors of length 1; what a text is taken for, a question or an answer, makes a difference."""

    features: TextVectorizer
    question: FloatArray
    """(768, 256)"""
    answer: FloatArray

    @classmethod
    def fit(cls, pairs: Sequence[Pair], seed: int, *, bf16: bool = False) -> BiEncoder:
        """Learn from pairs, whose questions and answers are all it ever sees; in bf16 where that is the faster."""
        from daedap.training.biencoder import fit_biencoder  # torch takes seconds to import

        if len(pairs) > MOST:
            chosen = np.random.default_rng(seed).choice(len(pairs), MOST, replace=False)
            pairs = [pairs[row] for row in chosen]
        questions, answers = [pair.question for pair in pairs], [pair.answer for pair in pairs]
        features = TextVectorizer.fit([*questions, *answers], seed)
        _, groups = np.unique([comparison_form(answer) for answer in answers], return_inverse=True)
        parts = (features.of(questions), features.of(answers), groups.astype(np.int64))
        learned = fit_biencoder(*parts, seed, bf16=bf16)
        return cls(features, learned.question, learned.answer)

    def questions(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 256)"""
        return unit(self.features.of(texts) @ self.question)

    def answers(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 256)"""
        return unit(self.features.of(texts) @ self.answer)

    def save(self, folder: Path) -> None:
        """Write it, without pickle."""
        folder.mkdir(parents=True, exist_ok=True)
        self.features.save(folder)
        np.savez(folder / "maps.npz", question=self.question, answer=self.answer)

    @classmethod
    def open(cls, folder: Path) -> BiEncoder:
        """Read it. Raises RunError when it was made with another model of Kiwi's."""
        with np.load(folder / "maps.npz", allow_pickle=False) as maps:
            return cls(TextVectorizer.open(folder), maps["question"], maps["answer"])


@dataclass(frozen=True)
class PairEmbeddings:
    """Bi-encoder vectors of known pairs, in the order of an index."""

    encoder: BiEncoder
    questions: FloatArray
    """(pairs, 256)"""
    answers: FloatArray
    """(pairs, 256)"""

    @classmethod
    def of(cls, encoder: BiEncoder, pairs: Sequence[Pair]) -> PairEmbeddings:
        """Encode pairs."""
        questions = encoder.questions([pair.question for pair in pairs])
        return cls(encoder, questions, encoder.answers([pair.answer for pair in pairs]))

    def extended(self, pairs: Sequence[Pair]) -> PairEmbeddings:
        """With more pairs after its own."""
        return self.followed_by(PairEmbeddings.of(self.encoder, pairs))

    def followed_by(self, other: PairEmbeddings) -> PairEmbeddings:
        """With the pairs of other embeddings by the same encoder after its own."""
        questions, answers = (self.questions, other.questions), (self.answers, other.answers)
        return PairEmbeddings(self.encoder, np.concatenate(questions), np.concatenate(answers))

    def first(self, pairs: int) -> PairEmbeddings:
        """The first `pairs` rows alone."""
        return PairEmbeddings(self.encoder, self.questions[:pairs], self.answers[:pairs])

    def encode_questions(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 256)"""
        return self.encoder.questions(texts)

    def encode_answers(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 256)"""
        return self.encoder.answers(texts)

    def search(self, vectors: FloatArray, k: int) -> LexicalHits:
        """The `k` nearest known questions of each vector, (queries, 256)."""
        return search(self.questions, vectors, k)

    def save(self, folder: Path) -> None:
        """Write encoder and vectors, the latter in half precision."""
        self.encoder.save(folder)
        questions, answers = self.questions.astype(np.float16), self.answers.astype(np.float16)
        np.savez(folder / "vectors.npz", questions=questions, answers=answers)

    @classmethod
    def open(cls, folder: Path) -> PairEmbeddings:
        """Read them."""
        with np.load(folder / "vectors.npz", allow_pickle=False) as file:
            vectors = (file[name].astype(np.float32) for name in ("questions", "answers"))
            return cls(BiEncoder.open(folder), *vectors)


@dataclass(frozen=True)
class SentenceEmbeddings:
    """Sentence vectors in the place of a bi-encoder's, which needs no training."""

    matcher: AnswerMatcher

    @property
    def questions(self) -> FloatArray:
        """(pairs, width)"""
        return self.matcher.questions

    @property
    def answers(self) -> FloatArray:
        """(pairs, width)"""
        return self.matcher.answers

    def encode_questions(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width)"""
        return self.matcher.encoder.encode(texts)

    encode_answers = encode_questions

    def search(self, vectors: FloatArray, k: int) -> LexicalHits:
        """The `k` nearest known questions of each vector, (queries, width); of many pairs, those that a graph finds."""
        if not isinstance(self.matcher, LargeMatcher):
            return search(self.questions, vectors, k)
        rows = np.stack([self.matcher.nearest(0, vector, k) for vector in vectors])
        return LexicalHits(rows, np.einsum("qkw,qw->qk", self.questions[rows], vectors).clip(0, 1))


def search(known: FloatArray, vectors: FloatArray, k: int) -> LexicalHits:
    """The `k` nearest of (pairs, width) to each of (queries, width), by cosine."""
    k = min(k, len(known))
    rows, cosines = np.zeros((len(vectors), k), np.int64), np.zeros((len(vectors), k), np.float32)
    for part in chunks(len(vectors), len(known)):
        similarities = vectors[part] @ known.T
        rows[part] = largest(similarities, k)
        cosines[part] = np.take_along_axis(similarities, rows[part], axis=1).clip(0, 1)
    return LexicalHits(rows, cosines)
