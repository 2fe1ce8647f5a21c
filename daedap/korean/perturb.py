"""Slips of the fingers and of the ear, as they happen on the two-set Korean keyboard (두벌식).

Questions as other people type them: slips, spacing, dropped particles, speech level, laughter.

What is asked stays, and whether it is denied.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from daedap.korean.speech_level import Edit, casual, polite
from daedap.korean.text import Morpheme, analyse

_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_FINALS = ["", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"]
_STROKES = {
    **{"ㅘ": "ㅗㅏ", "ㅙ": "ㅗㅐ", "ㅚ": "ㅗㅣ", "ㅝ": "ㅜㅓ", "ㅞ": "ㅜㅔ", "ㅟ": "ㅜㅣ", "ㅢ": "ㅡㅣ"},
    **{"ㄳ": "ㄱㅅ", "ㄵ": "ㄴㅈ", "ㄶ": "ㄴㅎ", "ㄺ": "ㄹㄱ", "ㄻ": "ㄹㅁ", "ㄼ": "ㄹㅂ", "ㄽ": "ㄹㅅ"},
    **{"ㄾ": "ㄹㅌ", "ㄿ": "ㄹㅍ", "ㅀ": "ㄹㅎ", "ㅄ": "ㅂㅅ"},
}
"""Letters that take two keys; all others take one, perhaps with shift."""
_LETTERS = {strokes: letter for letter, strokes in _STROKES.items()}
_VOWEL = "|".join([strokes for strokes in _LETTERS if strokes[0] in _VOWELS] + [f"[{_VOWELS}]"])
_FINAL = "|".join([strokes for strokes in _LETTERS if strokes[0] in _INITIALS] + [f"[{''.join(_FINALS)}]"])
_SYLLABLE = re.compile(f"([{_INITIALS}])({_VOWEL})((?:{_FINAL})(?![{_VOWELS}]))?")
"""What an input method makes of strokes: a consonant that a vowel follows begins the next syllable."""

_ROWS = ((0.0, "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔ"), (0.25, "ㅁㄴㅇㄹㅎㅗㅓㅏㅣ"), (0.75, "ㅋㅌㅊㅍㅠㅜㅡ"))
"""The keyboard, each row with how far it stands to the right, in keys."""
_PLACES = {key: (row, shift + at) for row, (shift, keys) in enumerate(_ROWS) for at, key in enumerate(keys)}
_SHIFT = {"ㄲ": "ㄱ", "ㄸ": "ㄷ", "ㅃ": "ㅂ", "ㅆ": "ㅅ", "ㅉ": "ㅈ", "ㅒ": "ㅐ", "ㅖ": "ㅔ"}
_SHIFTED = {plain: tense for tense, plain in _SHIFT.items() if tense in _INITIALS}

_ALIKE = {"되": "돼", "돼": "되", "됐": "됬", "됨": "됌", "뵈": "봬", "봬": "뵈", "왠": "웬", "웬": "왠", "예": "에"}
"""Syllables that are said alike and often mixed up."""
_VOWELS_ALIKE = {"ㅐ": "ㅔ", "ㅔ": "ㅐ", "ㅒ": "ㅖ"}
_FINALS_ALIKE = {"ㄶ": "ㄴ", "ㅀ": "ㄹ", "ㅆ": "ㅅ"}

_HANGUL_WORD = re.compile("[가-힣]+")
NEGATION = re.compile("안|않|못|없|아니|아닌|아닐|아님|아냐|말|마")
"""Syllables that (may) deny something. No slip touches them or makes one."""
_LONG = 8
"""Letters of a text from which on there may be two slips."""

Way = Callable[[str, int], list[str]]
"""(word, which syllable) → what may be typed instead of the word."""


def add_typo(text: str, rng: random.Random) -> str:
    """The text with one or two slips; unchanged when it has no Hangul beside its negation."""
    once = _slip_once(text, rng)
    twice = _slip_once(once, rng) if len(text) >= _LONG and rng.random() < 0.25 else once
    return once if twice == text else twice  # the second may undo the first


def _slip_once(text: str, rng: random.Random) -> str:
    places = _places(text)
    rng.shuffle(places)
    for way in _in_order(rng):
        for word, at in places:
            typed = [new for new in way(word[0], at) if new != word[0]]
            texts = [text[: word.start()] + new + text[word.end() :] for new in typed]
            kept = [new for new in texts if NEGATION.findall(new) == NEGATION.findall(text)]
            if kept:
                return rng.choice(kept)
    return text


def _places(text: str) -> list[tuple[re.Match[str], int]]:
    """Each syllable that may be mistyped: its word and its place in there."""
    denied = {at for found in NEGATION.finditer(text) for at in range(found.start(), found.end())}
    return [
        (word, at - word.start())
        for word in _HANGUL_WORD.finditer(text)
        for at in range(word.start(), word.end())
        if at not in denied
    ]


def _in_order(rng: random.Random) -> list[Way]:
    """All ways, the likelier ones mostly first."""
    return sorted(_WAYS, key=lambda way: rng.random() ** (1 / _WAYS[way]), reverse=True)


def _neighbouring_key(word: str, at: int) -> list[str]:
    return _each_stroke(word, at, lambda key: [near for near in _PLACES if _adjacent(key, near)])


def _missed_shift(word: str, at: int) -> list[str]:
    """했어 → 햇어."""
    return _each_stroke(word, at, lambda key: [_SHIFT[key]] if key in _SHIFT else [])


def _held_shift(word: str, at: int) -> list[str]:
    """가게 → 까게."""
    return _each_stroke(word, at, lambda key: [_SHIFTED[key]] if key in _SHIFTED else [])


def _twice(word: str, at: int) -> list[str]:
    return _each_stroke(word, at, lambda key: [key + key])


def _left_out(word: str, at: int) -> list[str]:
    """A vowel or a final; an initial would be noticed, or change the word: 할까 → 하라."""
    return _each_stroke(word, at, lambda _: [""])[1:]


def _said_alike(word: str, at: int) -> list[str]:
    initial, vowel, final = _parts(word[at])
    syllables = [_ALIKE[word[at]]] if word[at] in _ALIKE else []
    if vowel in _VOWELS_ALIKE and word[at] not in "내네":  # mine and yours
        syllables.append(_syllable(initial, _VOWELS_ALIKE[vowel], final))
    if final in _FINALS_ALIKE:
        syllables.append(_syllable(initial, vowel, _FINALS_ALIKE[final]))
    if final == "ㅎ" and word[at + 1 : at + 2] in [*"아어으은을이"]:
        syllables.append(_syllable(initial, vowel, ""))
    return [word[:at] + new + word[at + 1 :] for new in syllables]


_WAYS: dict[Way, float] = {
    **{_neighbouring_key: 3, _said_alike: 3, _missed_shift: 2},
    **{_twice: 1, _left_out: 1, _held_shift: 0.5},
}


def _each_stroke(word: str, at: int, instead: Callable[[str], list[str]]) -> list[str]:
    """The word as typed when one stroke of a syllable becomes what `instead` gives."""
    before, strokes, after = (_strokes(part) for part in (word[:at], word[at], word[at + 1 :]))
    return [
        _typed(before + strokes[:n] + new + strokes[n + 1 :] + after)
        for n, key in enumerate(strokes)
        for new in instead(key)
    ]


def _adjacent(key: str, other: str) -> bool:
    """On the keyboard, and a consonant for a consonant: the hands don't mix up."""
    if key not in _PLACES or (key in _VOWELS) != (other in _VOWELS):
        return False
    (row, x), (its_row, its_x) = _PLACES[key], _PLACES[other]
    return (
        key != other and abs(row - its_row) <= 1 and abs(x - its_x) <= 1 and abs(row - its_row) + abs(x - its_x) < 1.6
    )


def _strokes(syllables: str) -> str:
    letters = [letter for syllable in syllables for letter in _parts(syllable)]
    return "".join(_STROKES.get(letter, letter) for letter in letters)


def _typed(strokes: str) -> str:
    return _SYLLABLE.sub(lambda found: _syllable(*(_letter(part or "") for part in found.groups())), strokes)


def _letter(strokes: str) -> str:
    return _LETTERS.get(strokes, strokes)


def _parts(syllable: str) -> tuple[str, str, str]:
    """Initial, vowel and final ("" where there is none); of a lone letter, that letter and nothing."""
    if not "가" <= syllable <= "힣":
        return syllable, "", ""
    rest, final = divmod(ord(syllable) - ord("가"), len(_FINALS))
    initial, vowel = divmod(rest, len(_VOWELS))
    return _INITIALS[initial], _VOWELS[vowel], _FINALS[final]


def _syllable(initial: str, vowel: str, final: str) -> str:
    number = (_INITIALS.index(initial) * len(_VOWELS) + _VOWELS.index(vowel)) * len(_FINALS)
    return chr(ord("가") + number + _FINALS.index(final))


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


def perturb(question: str, kind: Kind, rng: random.Random) -> str:
    """The question as somebody else might type it; unchanged when it has nothing of that kind to change."""
    return next(perturb_each([question], kind, [rng]))


def perturb_each(questions: Sequence[str], kind: Kind, rng: Sequence[random.Random]) -> Iterator[str]:
    """`disturb` for many: a thousand questions a second, as they are analysed at once."""
    if kind in _BY_LETTERS:
        yield from map(_BY_LETTERS[kind], questions, rng)
    else:
        yield from map(_BY_MORPHEMES[kind], questions, analyse(questions), rng)


def _spacing(text: str, rng: random.Random) -> str:
    """Without spaces; or, where there are none, with a space inside a word."""
    if " " in text:
        return _SPACE.sub("", text)
    places = [at for word in _WORD.finditer(text) for at in range(word.start() + 1, word.end())]
    if not places:
        return text
    at = rng.choice(places)
    return f"{text[:at]} {text[at:]}"


def _laughter(text: str, rng: random.Random) -> str:
    """Without its laughter or tears; or with some, tears where it's sad."""
    sober = _LAUGHTER.sub("", text).strip()
    if sober != text.strip():
        return sober if any(map(str.isalnum, sober)) else text
    letters = "ㅠㅜ" if _SAD.search(text) else "ㅋㅎㅠ" if NEGATION.search(text) else "ㅋㅎ"
    return text + rng.choice(["", " "]) + rng.choice(letters) * rng.choice([2, 2, 3])


def _particles(text: str, morphemes: Sequence[Morpheme], rng: random.Random) -> str:
    """Without one of its 이/가, 을/를, 은/는."""
    edits = [edit for at in range(1, len(morphemes)) if (edit := _dropped(text, morphemes, at))]
    if not edits:
        return text
    edit = rng.choice(edits)
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
    "typo": add_typo,
    "spacing": _spacing,
    "laughter": _laughter,
}
_BY_MORPHEMES: dict[Kind, Callable[[str, Sequence[Morpheme], random.Random], str]] = {
    "particles": _particles,
    "polite": lambda text, morphemes, _: polite(text, morphemes),
    "casual": lambda text, morphemes, _: casual(text, morphemes),
}
