"""The bi-encoder of a run, by whose vectors a reranker compares questions and answers.

It is trained on the run's own pairs: two projections over n-grams and morphemes (LSA) and the word vectors of Kiwi's
language model. Runs without one are reranked by the sentence vectors of matcher.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from daedap.errors import RunError
from daedap.korean.text import (
    WIDTH,
    KiwiWordVectors,
    Morpheme,
    analyse,
    comparison_form,
    model_version,
    strip_emoticons,
)
from daedap.retrieval.lexical import PAIR_SIDES, Hits, nearest_vectors, surrounded
from daedap.retrieval.query import Query, texts_of
from daedap.types import Float32Array, Pair

_COMPONENTS, _SAMPLE, _MAX_FEATURES = 512, 40_000, 40_000
"""Dimensions of LSA, texts it is fitted on, and features that it knows at most."""
_BATCH = 4096
_EMOTICONS = frozenset("ㅋㅎㅠㅜ") | {"ㅋㅋ", "ㅎㅎ", "ㅠㅠ", "ㅜㅜ"}
BI_ENCODER_FILES = ("features.json", "features.npz", "components.npy", "maps.npz", "vectors.npz")
"""What a bi-encoder adds to an index; only answering with the language model reads it."""


@dataclass(frozen=True)
class TextVectorizer:
    """Fitted on the texts of a run's training rows."""

    vocabulary: tuple[str, ...]
    idf: Float32Array
    """(vocabulary,): ln((1 + n) / (1 + document frequency)) + 1."""
    components: NDArray[np.float16]
    """(vocabulary, 512): LSA (Deerwester et al. 1990)."""
    word_vectors: KiwiWordVectors
    mean: Float32Array
    """(256,): the mean word vector, which all words share and which says nothing."""
    _vectors: dict[int, Float32Array] = field(default_factory=dict, repr=False)
    _analysed: dict[str, _AnalysedText] = field(default_factory=dict, repr=False)
    """The texts it was fitted on, which are encoded next: Kiwi takes as long for a text as all the rest."""

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int) -> TextVectorizer:
        """Learn which features are rare and which go together."""
        from sklearn.decomposition import TruncatedSVD  # 1 s

        some = list(dict.fromkeys(texts))
        if len(some) > _SAMPLE:
            some = [some[row] for row in np.random.default_rng(seed).choice(len(some), _SAMPLE, replace=False)]
        analysed = _analyse(some)
        tfidf = _tfidf(min_df=2 if len(some) > 1 else 1, max_features=_MAX_FEATURES)
        counts = tfidf.fit_transform(analysed)
        rank = min(_COMPONENTS, *(size - 1 for size in counts.shape))
        components = np.zeros((_COMPONENTS, counts.shape[1]), np.float32)
        if rank > 0:
            components[:rank] = TruncatedSVD(rank, n_iter=1, random_state=seed).fit(counts).components_
        word_vectors = KiwiWordVectors.recover()
        vectors = word_vectors.vectors(morpheme.morpheme_id for text in analysed for morpheme in text.morphemes)
        mean = np.mean(list(vectors.values()) or [np.zeros(WIDTH, np.float32)], axis=0).astype(np.float32)
        return cls(
            tuple(tfidf.get_feature_names_out()),
            tfidf.idf_.astype(np.float32),
            components.T.astype(np.float16),
            word_vectors,
            mean,
            vectors,
            dict(zip(some, analysed, strict=True)),
        )

    def transform(self, texts: Sequence[str]) -> Float32Array:
        """(texts, 768): two parts, each of length 1 or, where nothing is known of a text, 0."""
        vectors = np.zeros((len(texts), _COMPONENTS + WIDTH), np.float32)
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            analysed = self._analyse(texts[part])
            counts: sparse.csr_array[np.float32] = self._tfidf.transform(analysed)
            used = np.unique(counts.indices)
            vectors[part, :_COMPONENTS] = unit(counts[:, used] @ self.components[used].astype(np.float32))
            vectors[part, _COMPONENTS:] = unit(self._weighted_sums(analysed))
        return vectors

    def _analyse(self, texts: Sequence[str]) -> list[_AnalysedText]:
        new = list(dict.fromkeys(text for text in texts if text not in self._analysed))
        added = dict(zip(new, _analyse(new), strict=True))
        return [added[text] if text in added else self._analysed[text] for text in texts]

    def _weighted_sums(self, analysed: Sequence[_AnalysedText]) -> Float32Array:
        """(texts, 256): the sum of the word vectors, rare words counting more, and unknown ones as the rarest."""
        asked = {morpheme.morpheme_id for text in analysed for morpheme in text.morphemes} - self._vectors.keys()
        missing = self.word_vectors.vectors(asked)
        self._vectors.update({word: missing.get(word, self.mean) for word in asked})  # unknown: 0 once centred
        words = [morpheme for text in analysed for morpheme in text.morphemes]
        numbers, place = np.unique([morpheme.morpheme_id for morpheme in words], return_inverse=True)
        centred = np.array([self._vectors[number] - self.mean for number in numbers.tolist()], np.float32)
        rows = np.repeat(np.arange(len(analysed)), [len(text.morphemes) for text in analysed])
        rarest = float(self.idf.max(initial=1))
        rarity = np.array([self._rarity.get(_name(morpheme), rarest) for morpheme in words], np.float32)
        counts = sparse.csr_array((rarity, (rows, place)), shape=(len(analysed), len(numbers)))
        return np.asarray(counts @ centred.reshape(-1, WIDTH))

    @cached_property
    def _rarity(self) -> dict[str, float]:
        return dict(zip(self.vocabulary, self.idf.tolist(), strict=True))

    @cached_property
    def _tfidf(self) -> Any:
        tfidf = _tfidf(vocabulary=self.vocabulary)
        tfidf.idf_ = self.idf
        return tfidf

    def save(self, folder: Path) -> None:
        """Write `features.json`, `features.npz` and `components.npy`, without pickle."""
        (folder / "features.json").write_text(
            json.dumps({"kiwi": model_version(), "vocabulary": self.vocabulary}, ensure_ascii=False), encoding="utf-8"
        )
        np.save(folder / "components.npy", self.components, allow_pickle=False)
        np.savez(folder / "features.npz", idf=self.idf, basis=self.word_vectors.basis, mean=self.mean)

    @classmethod
    def open(cls, folder: Path) -> TextVectorizer:
        """Read them again. Raises RunError where Kiwi has another model now: its vectors are others."""
        saved = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        if saved["kiwi"] != model_version():
            raise RunError(
                "{folder} was made with version {old} of Kiwi's model; {new} is installed.",
                "Install the old one (pip install kiwipiepy-model=={old}), or train again.",
                folder=folder,
                old=saved["kiwi"],
                new=model_version(),
            )
        with np.load(folder / "features.npz", allow_pickle=False) as file:
            components = np.load(folder / "components.npy", mmap_mode="r")  # a question needs a few rows of it
            return cls(
                tuple(saved["vocabulary"]), file["idf"], components, KiwiWordVectors(file["basis"]), file["mean"]
            )


class _AnalysedText(NamedTuple):
    """A text and its morphemes, but for emoticons."""

    text: str
    morphemes: list[Morpheme]


def _analyse(texts: Sequence[str]) -> list[_AnalysedText]:
    each = zip(texts, analyse(texts), strict=True)
    return [_AnalysedText(text, [one for one in morphemes if not _is_emoticon(one.form)]) for text, morphemes in each]


@lru_cache(2**16)
def _is_emoticon(form: str) -> bool:
    """Whether a morpheme is an emoticon, ㅋㅋ or ㅠㅠ."""
    return strip_emoticons(form) in _EMOTICONS


def _tfidf(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=_ngrams, sublinear_tf=True, dtype=np.float32, **options)


def _ngrams(analysed: _AnalysedText) -> list[str]:
    """Its features: 1- to 3-grams of characters, the text's ends included, and 1- and 2-grams of morphemes."""
    marked, words = f"\x02{strip_emoticons(analysed.text)}\x03", [_name(morpheme) for morpheme in analysed.morphemes]
    grams = [marked[i : i + n] for n in (1, 2, 3) for i in range(len(marked) - n + 1)]
    return [*grams, *words, *(f"{one} {two}" for one, two in pairwise(words))]


def _name(morpheme: Morpheme) -> str:
    return f"{morpheme.form}/{morpheme.tag}"


def unit(rows: Any) -> Float32Array:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Float32Array = (rows / np.maximum(length, 1e-9)).astype(np.float32)
    return units


MAX_PAIRS = 100_000
"""Pairs that it learns from at most, drawn at random."""


@dataclass(frozen=True)
class BiEncoder:
    """Texts → vectors of length 1; what a text is taken for, a question or an answer, makes a difference."""

    features: TextVectorizer
    question: Float32Array
    """(768, 256)"""
    answer: Float32Array

    @classmethod
    def fit(cls, pairs: Sequence[Pair], seed: int, *, bf16: bool = False) -> BiEncoder:
        """Learn from pairs, whose questions and answers are all it ever sees; in bf16 where that is the faster."""
        from daedap.training.biencoder import fit_biencoder  # torch takes seconds to import

        if len(pairs) > MAX_PAIRS:
            chosen = np.random.default_rng(seed).choice(len(pairs), MAX_PAIRS, replace=False)
            pairs = [pairs[row] for row in chosen]
        questions, answers = [pair.question for pair in pairs], [pair.answer for pair in pairs]
        features = TextVectorizer.fit([*questions, *answers], seed)
        _, groups = np.unique([comparison_form(answer) for answer in answers], return_inverse=True)
        parts = (features.transform(questions), features.transform(answers), groups.astype(np.int64))
        learned = fit_biencoder(*parts, seed, bf16=bf16)
        return cls(features, learned.question, learned.answer)

    def questions(self, texts: Sequence[str]) -> Float32Array:
        """(texts, 256)"""
        return unit(self.features.transform(texts) @ self.question)

    def answers(self, texts: Sequence[str]) -> Float32Array:
        """(texts, 256)"""
        return unit(self.features.transform(texts) @ self.answer)

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
    questions: Float32Array
    """(pairs, 256)"""
    answers: Float32Array
    """(pairs, 256)"""

    @classmethod
    def of(cls, encoder: BiEncoder, pairs: Sequence[Pair]) -> PairEmbeddings:
        """Encode pairs."""
        questions = encoder.questions([pair.question for pair in pairs])
        return cls(encoder, questions, encoder.answers([pair.answer for pair in pairs]))

    def extended(self, before: Sequence[Pair] = (), after: Sequence[Pair] = ()) -> PairEmbeddings:
        """With new pairs before and after its own."""
        new, first = PairEmbeddings.of(self.encoder, [*before, *after]), len(before)
        questions = surrounded(self.questions, new.questions, first)
        return PairEmbeddings(self.encoder, questions, surrounded(self.answers, new.answers, first))

    def vectors_of(self, queries: Sequence[Query]) -> Float32Array:
        """(queries, 256)"""
        return self.encoder.questions(texts_of(queries))

    def encode_answers(self, texts: Sequence[str]) -> Float32Array:
        """(texts, 256)"""
        return self.encoder.answers(texts)

    def search(self, vectors: Float32Array, k: int) -> Hits:
        """The `k` nearest known questions of each vector, (queries, 256), by cosine."""
        return nearest_vectors(self.questions, vectors, k)

    def save(self, folder: Path) -> None:
        """Write encoder and vectors, the latter in half precision."""
        self.encoder.save(folder)
        questions, answers = self.questions.astype(np.float16), self.answers.astype(np.float16)
        np.savez(folder / "vectors.npz", questions=questions, answers=answers)

    @classmethod
    def open(cls, folder: Path, pairs: int) -> PairEmbeddings:
        """Read the vectors of an index's pairs; the file may hold those of more pairs behind them."""
        with np.load(folder / "vectors.npz", allow_pickle=False) as file:
            questions, answers = (file[side][:pairs].astype(np.float32) for side in PAIR_SIDES)
        return cls(BiEncoder.open(folder), questions, answers)
