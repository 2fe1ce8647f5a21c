"""Perturbations of Korean questions for augmentation and robustness tests; meaning and negation are preserved.

Typos (of the two-set keyboard 두벌식, and of syllables that sound alike), spacing, dropped particles, speech level,
laughter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from daedap.config import Perturbation
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
"""Letters typed with two keys; all others take one key, some with shift."""
_LETTERS = {strokes: letter for letter, strokes in _STROKES.items()}
_VOWEL = "|".join([strokes for strokes in _LETTERS if strokes[0] in _VOWELS] + [f"[{_VOWELS}]"])
_FINAL = "|".join([strokes for strokes in _LETTERS if strokes[0] in _INITIALS] + [f"[{''.join(_FINALS)}]"])
_SYLLABLE = re.compile(f"([{_INITIALS}])({_VOWEL})((?:{_FINAL})(?![{_VOWELS}]))?")
"""How an input method groups keystrokes: a consonant followed by a vowel begins the next syllable."""

_ROWS = ((0.0, "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔ"), (0.25, "ㅁㄴㅇㄹㅎㅗㅓㅏㅣ"), (0.75, "ㅋㅌㅊㅍㅠㅜㅡ"))
"""Keyboard rows with their horizontal offset in key widths."""
_KEY_POSITIONS = {key: (row, shift + at) for row, (shift, keys) in enumerate(_ROWS) for at, key in enumerate(keys)}
_SHIFT = {"ㄲ": "ㄱ", "ㄸ": "ㄷ", "ㅃ": "ㅂ", "ㅆ": "ㅅ", "ㅉ": "ㅈ", "ㅒ": "ㅐ", "ㅖ": "ㅔ"}
_SHIFTED = {plain: tense for tense, plain in _SHIFT.items() if tense in _INITIALS}

_ALIKE = {"되": "돼", "돼": "되", "됐": "됬", "됨": "됌", "뵈": "봬", "봬": "뵈", "왠": "웬", "웬": "왠", "예": "에"}
"""Syllables that sound alike and are often confused."""
_VOWELS_ALIKE = {"ㅐ": "ㅔ", "ㅔ": "ㅐ", "ㅒ": "ㅖ"}
_FINALS_ALIKE = {"ㄶ": "ㄴ", "ㅀ": "ㄹ", "ㅆ": "ㅅ"}

_HANGUL_WORD = re.compile("[가-힣]+")
NEGATION = re.compile("안|않|못|없|아니|아닌|아닐|아님|아냐|말|마")
"""Syllables that may negate a sentence. No typo changes or creates one."""
_LONG = 8
"""Minimum length in characters for a second typo."""

TypoRule = Callable[[str, int], list[str]]
"""(word, index of a syllable) → possible misspellings of the word."""


def add_typo(text: str, rng: random.Random) -> str:
    """The text with one or two typos; unchanged when it has no Hangul besides its negation."""
    once = _one_typo(text, rng)
    twice = _one_typo(once, rng) if len(text) >= _LONG and rng.random() < 0.25 else once
    return once if twice == text else twice  # the second typo may undo the first


def _one_typo(text: str, rng: random.Random) -> str:
    negated = {index for match in NEGATION.finditer(text) for index in range(*match.span())}
    words = _HANGUL_WORD.finditer(text)
    syllables = [(word, at - word.start()) for word in words for at in range(*word.span()) if at not in negated]
    rng.shuffle(syllables)
    # Random order, frequent kinds of typo mostly first: weighted sampling without replacement.
    for rule in sorted(_TYPO_RULES, key=lambda rule: rng.random() ** (1 / _TYPO_RULES[rule]), reverse=True):
        for word, index in syllables:
            misspelled = [new for new in rule(word[0], index) if new != word[0]]
            texts = [text[: word.start()] + new + text[word.end() :] for new in misspelled]
            valid = [new for new in texts if NEGATION.findall(new) == NEGATION.findall(text)]
            if valid:
                return rng.choice(valid)
    return text


def _keystroke(typed: Callable[[str], Sequence[str]]) -> TypoRule:
    """The rule that types something else than one keystroke of the syllable: what `typed` gives for it."""

    def misspellings(word: str, at: int) -> list[str]:
        before, strokes, after = map(_strokes, (word[:at], word[at], word[at + 1 :]))
        return [
            _typed(before + strokes[:n] + new + strokes[n + 1 :] + after)
            for n, key in enumerate(strokes)
            for new in typed(key)
        ]

    return misspellings


def _missing_key(word: str, at: int) -> list[str]:
    """Without a vowel or a final. Never an initial: that is noticed at once, or makes another word (할까 → 하라)."""
    return _keystroke(lambda _: [""])(word, at)[1:]


def _sounds_alike(word: str, at: int) -> list[str]:
    initial, vowel, final = _jamo(word[at])
    syllables = [_ALIKE[word[at]]] if word[at] in _ALIKE else []
    if vowel in _VOWELS_ALIKE and word[at] not in "내네":  # 내가 and 네가 are different people
        syllables.append(_syllable(initial, _VOWELS_ALIKE[vowel], final))
    if final in _FINALS_ALIKE:
        syllables.append(_syllable(initial, vowel, _FINALS_ALIKE[final]))
    if final == "ㅎ" and word[at + 1 : at + 2] in [*"아어으은을이"]:
        syllables.append(_syllable(initial, vowel, ""))
    return [word[:at] + new + word[at + 1 :] for new in syllables]


def _adjacent(key: str, other: str) -> bool:
    """Whether two keys are neighbours typed by the same hand: consonants are on the left, vowels on the right."""
    if key == other or key not in _KEY_POSITIONS or (key in _VOWELS) != (other in _VOWELS):
        return False
    rows, widths = (abs(one - two) for one, two in zip(_KEY_POSITIONS[key], _KEY_POSITIONS[other], strict=True))
    return rows <= 1 and widths <= 1 and rows + widths < 1.6


_TYPO_RULES: dict[TypoRule, float] = {
    _keystroke(lambda key: [near for near in _KEY_POSITIONS if _adjacent(key, near)]): 3,
    _sounds_alike: 3,
    _keystroke(lambda key: _SHIFT.get(key, "")): 2,  # 했어 → 햇어
    _keystroke(lambda key: [key + key]): 1,
    _missing_key: 1,
    _keystroke(lambda key: _SHIFTED.get(key, "")): 0.5,  # 가게 → 까게
}
"""How often each kind of typo occurs, relative to the others."""


def _strokes(syllables: str) -> str:
    letters = [letter for syllable in syllables for letter in _jamo(syllable)]
    return "".join(_STROKES.get(letter, letter) for letter in letters)


def _typed(strokes: str) -> str:
    return _SYLLABLE.sub(
        lambda match: _syllable(*(_LETTERS.get(letter or "", letter or "") for letter in match.groups())), strokes
    )


def _jamo(syllable: str) -> tuple[str, str, str]:
    """Initial, vowel and final of a syllable ("" where there is no final); a lone letter and two empty strings."""
    if not "가" <= syllable <= "힣":
        return syllable, "", ""
    rest, final = divmod(ord(syllable) - ord("가"), len(_FINALS))
    initial, vowel = divmod(rest, len(_VOWELS))
    return _INITIALS[initial], _VOWELS[vowel], _FINALS[final]


def _syllable(initial: str, vowel: str, final: str) -> str:
    number = (_INITIALS.index(initial) * len(_VOWELS) + _VOWELS.index(vowel)) * len(_FINALS)
    return chr(ord("가") + number + _FINALS.index(final))


_SPACE = re.compile("(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])")
_WORD = re.compile("[가-힣]{2,}")
_LAUGHTER = re.compile(r" ?(?:([ㅠㅜ])\.\1|[ㅋㅎㅠㅜ]+)(?![가-힣])")
_SAD = re.compile(
    "헤어[져졌지진질짐]|이별|슬[프퍼픈픔플]|힘[들든듭드]|아[프파픈픔]|죽|울[고었]|눈물|외[로롭]|그[립리]|보고 ?싶"
    "|우울|짜증|망[했함]|무서|미안|후회|걱정|싫|차였|떨어[졌지져]|피곤|지[쳐쳤]"
)

_PARTICLES = {"JKS": "이가", "JKC": "이가", "JKO": "을를", "JX": "은는"}
_HOSTS = ("N", "XSN", "ETN", "J", "EC", "SL", "SN")
"""Tags of what a particle may follow: nouns, nominalized verbs (하지는), other particles (에는)."""
_SHORTENED = {"난": "나", "날": "나", "넌": "너", "널": "너", "전": "저", "절": "저", "건": "거", "걸": "거"}
_OWNERS = ("내", "제", "네", "니", "누", "지")
"""Without its particle, 내가 would read as a possessive."""
_TRANSITIVE_TAGS = ("VV", "XSV", "VX")
"""Tags of verbs that can take an object: without its particle, a subject could be read as the object."""
_INTRANSITIVE = re.compile("있|없|되|(?:나|들어)?[오가]|나|들|생기|끝나|걸리|보이|울리|지나|남|터지|깨지")
_FIXED = ("위하", "비롯하", "통하", "향하", "무릅쓰", "막론하")
"""을 위해, 를 통해: the particle is never dropped before these verbs."""


def perturb(question: str, kind: Perturbation, rng: random.Random) -> str:
    """One perturbed version of a question; unchanged when there is nothing of that kind to change."""
    return next(perturb_each([question], kind, [rng]))


def perturb_each(questions: Sequence[str], kind: Perturbation, rng: Sequence[random.Random]) -> Iterator[str]:
    """`perturb` for many questions, with one generator each, analysed as a batch (about 1,000 a second)."""
    if kind in _BY_LETTERS:
        yield from map(_BY_LETTERS[kind], questions, rng)
    else:
        yield from map(_BY_MORPHEMES[kind], questions, analyse(questions), rng)


def _spacing(text: str, rng: random.Random) -> str:
    """Remove all spaces, or insert one inside a word where there is none."""
    if " " in text:
        return _SPACE.sub("", text)
    positions = [at for word in _WORD.finditer(text) for at in range(word.start() + 1, word.end())]
    if not positions:
        return text
    at = rng.choice(positions)
    return f"{text[:at]} {text[at:]}"


def _laughter(text: str, rng: random.Random) -> str:
    """Remove ㅋㅋ, ㅎㅎ, ㅠㅠ; or append some where there is none, ㅠㅠ to sad texts."""
    without = _LAUGHTER.sub("", text).strip()
    if without != text.strip():
        return without if any(map(str.isalnum, without)) else text
    letters = "ㅠㅜ" if _SAD.search(text) else "ㅋㅎㅠ" if NEGATION.search(text) else "ㅋㅎ"
    return text + rng.choice(["", " "]) + rng.choice(letters) * rng.choice([2, 2, 3])


def _particles(text: str, morphemes: Sequence[Morpheme], rng: random.Random) -> str:
    """Drop one of the particles 이/가, 을/를, 은/는."""
    edits = [edit for at in range(1, len(morphemes)) if (edit := _without_particle(text, morphemes, at))]
    return rng.choice(edits).applied(text) if edits else text


def _without_particle(text: str, morphemes: Sequence[Morpheme], at: int) -> Edit | None:
    """The edit that drops a particle; None when the morpheme is no particle or has to stay."""
    host, one = morphemes[at - 1], morphemes[at]
    if one.tag not in _PARTICLES or not host.tag.startswith(_HOSTS) or not _is_followed(morphemes, at):
        return None
    surface = text[one.start : one.end]
    if host.tag == "NP" and host.end > one.start and surface in _SHORTENED:
        return Edit(one.start, one.end, _SHORTENED[surface])
    whole = host.end == one.start and surface in _PARTICLES[one.tag]
    return Edit(one.start, one.end, "") if whole and text[host.start : host.end] not in _OWNERS else None


def _is_followed(morphemes: Sequence[Morpheme], at: int) -> bool:
    """Whether the sentence continues after the particle and means the same without it (not 너는?, not 너를 위해)."""
    after = morphemes[at + 1] if at + 1 < len(morphemes) else None
    if after is None or after.word == morphemes[at].word or after.tag.startswith("S") or after.form in _FIXED:
        return False
    if morphemes[at].tag in ("JKO", "JKC") or morphemes[at - 1].tag.startswith(("J", "E")):
        return True
    # Subject and object can still be told apart where the verb takes no object, or the object keeps its particle.
    rest = morphemes[at + 1 :]
    verb = next((one for one in rest if one.tag.startswith(("V", "XSV", "XSA"))), None)
    if verb is None or not verb.tag.startswith(_TRANSITIVE_TAGS) or _INTRANSITIVE.fullmatch(verb.form):
        return True
    return any(one.tag == "JKO" for one in rest[: rest.index(verb)])


_BY_LETTERS: dict[Perturbation, Callable[[str, random.Random], str]] = {
    "typo": add_typo,
    "spacing": _spacing,
    "laughter": _laughter,
}
_BY_MORPHEMES: dict[Perturbation, Callable[[str, Sequence[Morpheme], random.Random], str]] = {
    "particles": _particles,
    "polite": lambda text, morphemes, _: polite(text, morphemes),
    "casual": lambda text, morphemes, _: casual(text, morphemes),
}
