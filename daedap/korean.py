"""Korean text: one spelling per meaning for comparison, speech level, morphemes."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Literal

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
_TRAILING = re.compile(r"[\W_ㄱ-ㅣ]+$")
_POLITE = re.compile(r"((?<![필중수소])요|욥|용|죠|니다|니까|십시오|시오|세여|예여|에여|네여|어여|아여|해여|까여)$")


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


def speech_level(text: str) -> SpeechLevel:
    """Polite (해요체, 합쇼체) or casual, read off the last word; emoticons and punctuation are passed over."""
    return "polite" if _POLITE.search(_TRAILING.sub("", text)) else "casual"


def morphemes(text: str) -> list[str]:
    """Morphemes as `form/tag`, by Kiwi."""
    return [f"{token.form}/{token.tag}" for token in _kiwi().tokenize(text)]


@cache
def _kiwi() -> Kiwi:
    from kiwipiepy import Kiwi  # 1-2 s and 300 MB, so only on first use

    return Kiwi()
