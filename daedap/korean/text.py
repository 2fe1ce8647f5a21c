"""Korean text: its form for comparison, its speech level; morphemes and word vectors by Kiwi."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from daedap.types import Float32Array

if TYPE_CHECKING:
    from kiwipiepy import Kiwi

SpeechLevel = Literal["polite", "casual"]
HANGUL = re.compile("[가-힣]")
"""A precomposed syllable."""

# Conjoining jamo (what NFKC makes of ㅋㅋ and ㅠㅠ) → the compatibility jamo that people type.
_COMPATIBILITY = {
    ord(unicodedata.normalize("NFKC", chr(code))): chr(code)
    for code in range(0x3131, 0x3164)
    if len(unicodedata.normalize("NFKC", chr(code))) == 1
}
_LAUGHTER = re.compile(r"([ㅋㅎㅠㅜ])\1+")
_EMOTION = re.compile(r"[ㅋㅎㅠㅜ]{2,}")
_TRAILING = re.compile(r"[\W_ㄱ-ㅣ]+$")
_POLITE = re.compile(r"((?<![필중수소])요|욥|용|죠|니다|니까|십시오|시오|세여|예여|에여|네여|어여|아여|해여|까여)$")


class Morpheme(NamedTuple):
    """One morpheme of a text, as analysed by Kiwi."""

    form: str
    """Dictionary form: `고맙` in 고마워. Endings may begin with a conjoining final consonant: `ᆯ까`."""
    tag: str
    """Part of speech in the Sejong tag set: NNG, VV, JKS, EF, …"""
    start: int
    end: int
    """Character offsets are `start` to `end`; those of contracted morphemes overlap."""
    word: int
    """Index of its word in the text, from 0."""
    morpheme_id: int = -1
    """Its entry in Kiwi's dictionary."""


def nfc(text: str) -> str:
    """Composed form: `한` typed on a Mac (three code points) becomes one."""
    return unicodedata.normalize("NFC", text)


def compatibility_jamo(text: str) -> str:
    """Lone conjoining jamo back to the letters people type: NFKC's `ᄏᄏ` → `ㅋㅋ`."""
    return nfc(text).translate(_COMPATIBILITY)


def comparison_form(text: str) -> str:
    """The text without spacing, punctuation, width, case and the length of laughter.

    Questions with the same comparison form are treated as the same question. A text of punctuation alone keeps it.
    """
    folded = compatibility_jamo(unicodedata.normalize("NFKC", text)).casefold()
    letters = "".join(char for char in folded if char.isalnum())
    return _LAUGHTER.sub(r"\1\1", letters) or "".join(folded.split())


def strip_emoticons(text: str) -> str:
    """The comparison form without ㅋㅋ, ㅎㅎ, ㅠㅠ; a text that consists of them alone keeps them."""
    form = comparison_form(text)
    return _EMOTION.sub("", form) or form


def speech_level(text: str) -> SpeechLevel:
    """Polite (해요체, 합쇼체) or casual (반말), by the last word's ending; emoticons and punctuation are skipped."""
    return "polite" if _POLITE.search(_TRAILING.sub("", text)) else "casual"


def morphemes(text: str) -> list[str]:
    """Morphemes of a text as `form/tag`."""
    return [f"{token.form}/{token.tag}" for token in kiwi().tokenize(text)]


def analyse(texts: Iterable[str]) -> Iterator[list[Morpheme]]:
    """The morphemes of each text; Kiwi analyses a batch on all cores."""
    for tokens in kiwi().tokenize(texts):
        yield [Morpheme(one.form, one.tag, one.start, one.end, one.word_position, one.id) for one in tokens]


def join(morphemes: Sequence[Morpheme]) -> str:
    """Morphemes joined to a text with contractions and irregular conjugation: 춥 + 어요 → 추워요."""
    return str(kiwi().join([(one.form, one.tag) for one in morphemes]))


def is_closed(text: str) -> bool:
    """Whether the text ends in a syllable with a final consonant (밥 does, 물가 does not)."""
    return "가" <= text[-1:] <= "힣" and (ord(text[-1]) - ord("가")) % 28 > 0


@cache
def kiwi() -> Kiwi:
    """The analyser, loaded once. Without its dictionary of multi-word names, which doubles the loading time."""
    from kiwipiepy import Kiwi  # 1 s and 300 MB: loaded on first use

    return Kiwi(load_multi_dict=False)


# ---- word vectors ----

WIDTH = 256
_LANDMARKS, _COMMON = 400, (60, 12_000)
"""Number of landmarks, and the range of ids they are sampled from: Kiwi's dictionary is sorted by frequency."""


@dataclass(frozen=True)
class KiwiWordVectors:
    """Unit word vectors in an arbitrary rotation; store `basis` with any model trained on them.

    Kiwi's CoNg model has 256-dimensional embeddings of 70,000 morphemes but exposes only their cosine similarities.
    The Nyström method (Williams & Seeger 2001) recovers the vectors, up to one common rotation, from the cosines with
    a set of landmark words; with more landmarks than dimensions the recovery is exact.
    """

    basis: Float32Array
    """(landmarks, 256): projection of cosines with the landmarks onto the vectors."""

    @classmethod
    def recover(cls) -> KiwiWordVectors:
        """Compute the basis (about a second)."""
        landmarks = _landmarks()
        values, directions = np.linalg.eigh(_cosines(landmarks, landmarks))
        top = slice(-1, -WIDTH - 1, -1)
        return cls((directions[:, top] / np.sqrt(values[top])).astype(np.float32))

    def vectors(self, words: Iterable[int]) -> dict[int, Float32Array]:
        """`Morpheme.morpheme_id` → vector of shape (256,); words without a vector in Kiwi are left out."""
        ids, landmarks = sorted(set(words)), _landmarks()
        cosines = _cosines(ids, landmarks)
        known = [bool(np.isfinite(row).all()) for row in cosines]
        return {word: vector for word, vector, good in zip(ids, cosines @ self.basis, known, strict=True) if good}


def model_version() -> str:
    """Version of Kiwi's model; vectors of different versions are not comparable."""
    return version("kiwipiepy-model")


def _landmarks() -> list[int]:
    return sorted(int(word) for word in np.random.RandomState(0).choice(np.arange(*_COMMON), _LANDMARKS, replace=False))


def _cosines(words: list[int], others: list[int]) -> Float32Array:
    """Cosines of shape (words, others); NaN where Kiwi has no vector."""
    cosine = kiwi().morpheme_similarity
    rows = [[cosine(word, other) for other in others] for word in words]
    return np.array(rows, np.float32).reshape(len(words), len(others))
