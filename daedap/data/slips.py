"""Slips of the fingers and of the ear, as they happen on the two-set Korean keyboard (두벌식)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

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

_WORD = re.compile("[가-힣]+")
NEGATION = re.compile("안|않|못|없|아니|아닌|아닐|아님|아냐|말|마")
"""Syllables that (may) deny something. No slip touches them or makes one."""
_LONG = 8
"""Letters of a text from which on there may be two slips."""

Way = Callable[[str, int], list[str]]
"""(word, which syllable) → what may be typed instead of the word."""


def slip(text: str, dice: random.Random) -> str:
    """The text with one or two slips; unchanged when it has no Hangul beside its negation."""
    once = _slip_once(text, dice)
    twice = _slip_once(once, dice) if len(text) >= _LONG and dice.random() < 0.25 else once
    return once if twice == text else twice  # the second may undo the first


def _slip_once(text: str, dice: random.Random) -> str:
    places = _places(text)
    dice.shuffle(places)
    for way in _in_order(dice):
        for word, at in places:
            typed = [new for new in way(word[0], at) if new != word[0]]
            texts = [text[: word.start()] + new + text[word.end() :] for new in typed]
            kept = [new for new in texts if NEGATION.findall(new) == NEGATION.findall(text)]
            if kept:
                return dice.choice(kept)
    return text


def _places(text: str) -> list[tuple[re.Match[str], int]]:
    """Each syllable that may be mistyped: its word and its place in there."""
    denied = {at for found in NEGATION.finditer(text) for at in range(found.start(), found.end())}
    return [
        (word, at - word.start())
        for word in _WORD.finditer(text)
        for at in range(word.start(), word.end())
        if at not in denied
    ]


def _in_order(dice: random.Random) -> list[Way]:
    """All ways, the likelier ones mostly first."""
    return sorted(_WAYS, key=lambda way: dice.random() ** (1 / _WAYS[way]), reverse=True)


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
