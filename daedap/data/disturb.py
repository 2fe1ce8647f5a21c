"""Questions as other people type them: slips, spacing, dropped particles, speech level, laughter.

What is asked stays, and whether it is denied.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from daedap.data.slips import NEGATION, slip
from daedap.data.speech import Edit, casual, polite
from daedap.korean import Morpheme, analyse

Kind = Literal["typo", "spacing", "particles", "polite", "casual", "laughter"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SPACE = re.compile("(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])")
_WORD = re.compile("[가-힣]{2,}")
_LAUGHTER = re.compile(r" ?(?:([ㅠㅜ])\.\1|[ㅋㅎㅠㅜ]+)(?![가-힣])")
_SAD = re.compile(
    "헤어[져졌지진질짐]|이별|슬[프퍼픈픔플]|힘[들든듭드]|아[프파픈픔]|죽|울[고었]|눈물|외[로롭]|그[립리]|보고 ?싶"
    "|우울|짜증|망[했함]|무서|미안|후회|걱정|싫|차였|떨어[졌지져]|피곤|지[쳐쳤]"
)

_PARTICLES = {"JKS": "이가", "JKC": "이가", "JKO": "을를", "JX": "은는"}
_HOSTS = ("N", "XSN", "ETN", "J", "EC", "SL", "SN")
"""What a particle may hang on: nouns, other particles (에는), 하지는."""
_SHORTENED = {"난": "나", "날": "나", "넌": "너", "널": "너", "전": "저", "절": "저", "건": "거", "걸": "거"}
_OWNERS = ("내", "제", "네", "니", "누", "지")
"""Without its particle, 내가 would say whose."""
_DONE_TO = ("VV", "XSV", "VX")
"""Verbs that can take an object: without its particle, who does it might be read as whom it's done to."""
_DONE_TO_NONE = re.compile("있|없|되|(?:나|들어)?[오가]|나|들|생기|끝나|걸리|보이|울리|지나|남|터지|깨지")
_FIXED = ("위하", "비롯하", "통하", "향하", "무릅쓰", "막론하")
"""을 위해, 를 통해: no Korean leaves out the particle."""


def disturb(question: str, kind: Kind, dice: random.Random) -> str:
    """The question as somebody else might type it; unchanged when it has nothing of that kind to change."""
    return next(disturb_each([question], kind, [dice]))


def disturb_each(questions: Sequence[str], kind: Kind, dice: Sequence[random.Random]) -> Iterator[str]:
    """`disturb` for many: a thousand questions a second, as they are analysed at once."""
    if kind in _BY_LETTERS:
        yield from map(_BY_LETTERS[kind], questions, dice)
    else:
        yield from map(_BY_MORPHEMES[kind], questions, analyse(questions), dice)


def _spacing(text: str, dice: random.Random) -> str:
    """Without spaces; or, where there are none, with a space inside a word."""
    if " " in text:
        return _SPACE.sub("", text)
    places = [at for word in _WORD.finditer(text) for at in range(word.start() + 1, word.end())]
    if not places:
        return text
    at = dice.choice(places)
    return f"{text[:at]} {text[at:]}"


def _laughter(text: str, dice: random.Random) -> str:
    """Without its laughter or tears; or with some, tears where it's sad."""
    sober = _LAUGHTER.sub("", text).strip()
    if sober != text.strip():
        return sober if any(map(str.isalnum, sober)) else text
    letters = "ㅠㅜ" if _SAD.search(text) else "ㅋㅎㅠ" if NEGATION.search(text) else "ㅋㅎ"
    return text + dice.choice(["", " "]) + dice.choice(letters) * dice.choice([2, 2, 3])


def _particles(text: str, morphemes: Sequence[Morpheme], dice: random.Random) -> str:
    """Without one of its 이/가, 을/를, 은/는."""
    edits = [edit for at in range(1, len(morphemes)) if (edit := _dropped(text, morphemes, at))]
    if not edits:
        return text
    edit = dice.choice(edits)
    return text[: edit.start] + edit.new + text[edit.end :]


def _dropped(text: str, morphemes: Sequence[Morpheme], at: int) -> Edit | None:
    """What is left of a particle; None when it's none, or when it must stay."""
    host, one = morphemes[at - 1], morphemes[at]
    if not (one.tag in _PARTICLES and host.tag.startswith(_HOSTS) and _leads_on(morphemes, at)):
        return None
    said = text[one.start : one.end]
    if host.tag == "NP" and host.end > one.start and said in _SHORTENED:
        return Edit(one.start, one.end, _SHORTENED[said])
    whole = host.end == one.start and said in _PARTICLES[one.tag]
    return Edit(one.start, one.end, "") if whole and text[host.start : host.end] not in _OWNERS else None


def _leads_on(morphemes: Sequence[Morpheme], at: int) -> bool:
    """Whether the sentence goes on behind it, and says the same without it: 너는? and 너를 위해 don't."""
    after = morphemes[at + 1] if at + 1 < len(morphemes) else None
    if after is None or after.word == morphemes[at].word or after.tag.startswith("S") or after.form in _FIXED:
        return False
    return _is_clear(morphemes, at)


def _is_clear(morphemes: Sequence[Morpheme], at: int) -> bool:
    """Whether it is still clear who does what to whom."""
    if morphemes[at].tag in ("JKO", "JKC") or morphemes[at - 1].tag.startswith(("J", "E")):
        return True
    rest = morphemes[at + 1 :]
    verb = next((one for one in rest if one.tag.startswith(("V", "XSV", "XSA"))), None)
    if verb is None or not verb.tag.startswith(_DONE_TO) or _DONE_TO_NONE.fullmatch(verb.form):
        return True
    return any(one.tag == "JKO" for one in rest[: rest.index(verb)])


_BY_LETTERS: dict[Kind, Callable[[str, random.Random], str]] = {
    "typo": slip,
    "spacing": _spacing,
    "laughter": _laughter,
}
_BY_MORPHEMES: dict[Kind, Callable[[str, Sequence[Morpheme], random.Random], str]] = {
    "particles": _particles,
    "polite": lambda text, morphemes, _: polite(text, morphemes),
    "casual": lambda text, morphemes, _: casual(text, morphemes),
}
