"""Korean text: one spelling per meaning for comparison, speech level, morphemes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from kiwipiepy import Kiwi

SpeechLevel = Literal["polite", "casual"]

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
    """A morpheme of a text, as Kiwi finds it."""

    form: str
    """As in a dictionary: `고맙` in 고마워. Endings may begin with a conjoining final: `ᆯ까`."""
    tag: str
    """Sejong's part of speech: NNG, VV, JKS, EF, …"""
    start: int
    end: int
    """Its place in the text; that of contracted morphemes overlaps."""
    word: int
    """Which word of the text it belongs to, counted from 0."""
    number: int = -1
    """Of its entry in Kiwi's dictionary: see senses.py."""


def nfc(text: str) -> str:
    """Composed form: `한` typed on a Mac (three code points) becomes one."""
    return unicodedata.normalize("NFC", text)


def compatibility_jamo(text: str) -> str:
    """Lone conjoining jamo back to the letters people type: NFKC's `ᄏᄏ` → `ㅋㅋ`."""
    return nfc(text).translate(_COMPATIBILITY)


def comparison_form(text: str) -> str:
    """What is left when spacing, punctuation, width, case and the length of laughter are ignored.

    Two questions with the same comparison form are the same question; a text of punctuation alone keeps it.
    """
    folded = compatibility_jamo(unicodedata.normalize("NFKC", text)).casefold()
    letters = "".join(char for char in folded if char.isalnum())
    return _LAUGHTER.sub(r"\1\1", letters) or "".join(folded.split())


def strip_emoticons(text: str) -> str:
    """The comparison form without laughter and tears, which any question may carry; one of nothing else keeps them."""
    form = comparison_form(text)
    return _EMOTION.sub("", form) or form


def speech_level(text: str) -> SpeechLevel:
    """Polite (해요체, 합쇼체) or casual, read off the last word; emoticons and punctuation are passed over."""
    return "polite" if _POLITE.search(_TRAILING.sub("", text)) else "casual"


def morphemes(text: str) -> list[str]:
    """Morphemes as `form/tag`, by Kiwi."""
    return [f"{token.form}/{token.tag}" for token in kiwi().tokenize(text)]


def analyse(texts: Iterable[str]) -> Iterator[list[Morpheme]]:
    """The morphemes of each text; many texts at once go through all cores."""
    for tokens in kiwi().tokenize(texts):
        yield [Morpheme(one.form, one.tag, one.start, one.end, one.word_position, one.id) for one in tokens]


def join(morphemes: Sequence[Morpheme]) -> str:
    """Spelled as one text, with what Korean contracts and changes: 춥 + 어요 → 추워요."""
    return str(kiwi().join([(one.form, one.tag) for one in morphemes]))


def is_closed(text: str) -> bool:
    """Whether it ends in a syllable with a final consonant, as 밥 does and 물가 doesn't."""
    return "가" <= text[-1:] <= "힣" and (ord(text[-1]) - ord("가")) % 28 > 0


@cache
def kiwi() -> Kiwi:
    """The analyser itself, loaded once; without names of several words, which double the time that takes."""
    from kiwipiepy import Kiwi  # 1 s and 300 MB, so only on first use

    return Kiwi(load_multi_dict=False)
