"""Conversion of a text between casual (반말) and polite speech (해요체).

Endings that only gain or lose 요 are edited in place, whatever the spelling around them. Where the verb has to be
conjugated, Kiwi generates the form, and only if it also reproduces the original spelling. The rest of the text, its
negation included, is unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from daedap.korean.text import Morpheme, is_closed, join

# Forms as in Kiwi's output: an ending that merges with its verb begins with a conjoining final, ᆫ ᆯ ᆷ ᆸ.
_TAKES_YO = re.compile(
    "[어아애네나]|[ᆯ을](?:까|게|래)|[ᆫ은는]가|[ᆫ는]?대|래|재|[ᆫ은는던]데|까|으?니까|[어라]서|고|구|지만|잖아|거든|[는더]?군"
    "|(?:[ᆫ는]?다|으?라|[느으]?냐|자|더라)[고구]|[ᆫ는]?다[니네]|라[니네]|(?:으|ᆯ|을)?려[고구나]"
)
"""먹어 → 먹어요, 먹을까 → 먹을까요."""
_REPLACED = re.compile("(?:[어아]야)?(지)|[는ᆫ]?(구나|구만|구먼)|(더라)")
_POLITE_ENDINGS = {"지": "죠", "구나": "군요", "구만": "군요", "구먼": "군요", "더라": "더라고요"}
_DECLARATIVE = re.compile("[ᆫ는]?다|[느으]?냐|으?니|자")
"""먹는다, 먹니, 먹자 → 먹어요."""
_NOMINAL = re.compile("ᆷ|음")
"""Noun endings of notes: 먹었음 → 먹었어요."""
_FORMAL = re.compile("(?:ᆸ|습)니[다까]|ᆸ시오|으?세요|으?셔요|[ᆫ은는]가요|나요|[에예]요")
"""갑니다, 가세요, 가나요 → 가."""
_HONORED = {"안녕하세요": "안녕", "계세요": "있어", "드세요": "먹어", "주무세요": "자", "감사합니다": "고마워"}
_HONORED |= {"감사해요": "고마워", "죄송합니다": "미안해", "죄송해요": "미안해"}
"""Polite words whose casual form is a different word."""
_HONORED_VERBS = {"드시": "먹", "계시": "있", "주무시": "자"}

_TENSES = ("었", "았", "었었", "았었", "겠")
_HUMBLE = {"나": "저", "내": "제", "난": "전", "날": "절"}
_FAMILIAR = {humble: familiar for familiar, humble in _HUMBLE.items()}
_YOU = ("너", "니", "네", "너희")
_GREETINGS = {"안녕": "안녕하세요", "응": "네", "그래": "그래요"}
_NO_SENTENCE = ("위하", "대하", "통하")
"""나를 위해 looks like the end of a sentence but is none."""


class Edit(NamedTuple):
    """Replacement of a range of a text."""

    start: int
    end: int
    new: str

    def overlaps(self, other: Edit) -> bool:
        """Whether the ranges overlap."""
        return self.start < other.end and other.start < self.end

    def applied(self, text: str) -> str:
        """The text with the replacement."""
        return text[: self.start] + self.new + text[self.end :]


def polite(text: str, morphemes: Sequence[Morpheme]) -> str:
    """The text in 해요체, with 저 for 나. A text with 너 is returned unchanged: 너 does not occur in 해요체."""
    if any(one.form in _YOU and one.tag in ("NP", "MM") for one in morphemes):
        return text
    return _edited(text, morphemes, _polite_end, _HUMBLE)


def casual(text: str, morphemes: Sequence[Morpheme]) -> str:
    """The text in 반말, with 나 for 저. A text with the honorific 께서 is returned unchanged."""
    if any(one.form == "께서" for one in morphemes):
        return text
    return _edited(text, morphemes, _casual_end, _FAMILIAR)


@dataclass(frozen=True)
class _End:
    """The final ending of a sentence."""

    text: str
    morphemes: Sequence[Morpheme]
    at: int
    """Index of the ending among the morphemes."""

    @property
    def form(self) -> str:
        """The ending, including a 요 that Kiwi tags separately; 여 is normalized to 요."""
        return re.sub("여$", "요", self.morphemes[self.at].form) + ("요" if self._has_yo else "")

    @property
    def stop(self) -> int:
        """End offset in the text."""
        return self.morphemes[self.at + self._has_yo].end

    @property
    def elongated(self) -> bool:
        """Whether a consonant is appended in playful spelling: 배고프당."""
        return any(other.tag == "Z_CODA" for other in self.morphemes[self.at + 1 : self.at + 2])

    @property
    def stem(self) -> int:
        """Index of its verb, adjective or 이다, before tense, honorific or 어야; `at` when there is none."""
        at = self.at - 1
        while at >= 0 and (self.morphemes[at].tag == "EP" or self.morphemes[at].form in ("어야", "야")):
            at -= 1
        return at if at >= 0 and self.morphemes[at].tag.startswith(("V", "XSV", "XSA")) else self.at

    @property
    def has_tense(self) -> bool:
        """Whether a noun ending has a known tense: marked, stative, or a question. Of a note like 감 it is unknown."""
        stem, name = self.morphemes[self.stem], self.morphemes[self.stem - 1].tag
        state = stem.tag.startswith(("VA", "VC")) or stem.form == "않" or (stem.tag == "XSA" and name != "NNB")
        return state or self.at - self.stem > 1 or self.text[self.stop : self.stop + 1] == "?"

    @property
    def is_honorific(self) -> bool:
        """Whether the honorific 시 precedes it."""
        return any(one.form.endswith("시") for one in self.morphemes[self.stem : self.at] if one.tag in ("EP", "VV"))

    def replaced(self, old: str, new: str) -> Edit | None:
        """The edit that replaces its last letters, if they are `old`."""
        matches = self.text[: self.stop].endswith(old)
        return Edit(self.stop - len(old), self.stop, new) if matches else None

    def conjugated(self, new: str) -> Edit | None:
        """The edit to another ending, without 시; None where Kiwi does not reproduce the original spelling."""
        if self.stem == self.at:
            return None
        stem, between = self.morphemes[self.stem], self.morphemes[self.stem + 1 : self.at]
        familiar = stem._replace(form=_HONORED_VERBS.get(stem.form, stem.form))
        kept = [one for one in between if one.form not in ("시", "으시")]
        if stem.tag in ("VCP", "VCN") and new in ("어", "어요") and not kept:
            return self._copula(polite=new == "어요")
        if kept == between and kept[-1:] and kept[-1].form in _TENSES and familiar == stem:
            return Edit(self.morphemes[self.at].start, self.stop, new)  # 었 and 겠 never merge with the ending
        # From the first morpheme that overlaps the stem, or determines the spelling of 이다.
        first = self.stem - (self.stem > 0 and stem.tag == "VCP")
        while first > 0 and self.morphemes[first - 1].end > self.morphemes[first].start:
            first -= 1
        before, start = self.morphemes[first : self.stem], self.morphemes[first].start
        spelled, typed = join(self.morphemes[first : self.at + 1 + self._has_yo]), self.text[start : self.stop]
        if spelled[: len(spelled) - self.elongated] != typed[: len(typed) - self.elongated]:
            return None
        ending = self.morphemes[self.at]._replace(form=new, tag="EF")
        return Edit(start, self.stop, join([*before, familiar, *kept, ending]))

    def _copula(self, *, polite: bool) -> Edit:
        """The ending of 이다 or 아니다: 이에요 and 이야 after a consonant, 예요 and 야 after a vowel."""
        stem = self.morphemes[self.stem]
        if stem.tag == "VCN":
            return Edit(stem.start, self.stop, stem.form + ("에요" if polite else "야"))
        noun = self.morphemes[self.stem - 1]
        merged = noun.end > stem.start  # 걸까: 거 + 이 + ᆯ까
        start, prefix = (noun.start, noun.form) if merged else (stem.start, "")
        name = prefix or self.text[:start]
        closed = is_closed(name) or (not "가" <= name[-1:] <= "힣" and stem.end > stem.start)
        copula = ("이에요" if closed else "예요") if polite else ("이야" if closed else "야")
        return Edit(start, self.stop, prefix + copula)

    @property
    def _has_yo(self) -> bool:
        return any(other[:2] == ("요", "JX") for other in self.morphemes[self.at + 1 : self.at + 2])


def _polite_end(end: _End) -> Edit | None:
    if end.form in _GREETINGS:
        return end.replaced(end.form, _GREETINGS[end.form])
    if match := _REPLACED.fullmatch(end.form):
        ending = match[match.lastindex or 0]
        return end.replaced(ending, _POLITE_ENDINGS[ending])
    if _TAKES_YO.fullmatch(end.form):
        return None if end.elongated else Edit(end.stop, end.stop, "요")
    if end.form in ("라", "어라") and end.morphemes[end.stem].form in ("말", "주"):
        return end.conjugated("세요")
    copula = end.form == "야" and end.morphemes[end.stem].tag in ("VCP", "VCN")
    plain = copula or _DECLARATIVE.fullmatch(end.form) or (_NOMINAL.fullmatch(end.form) and end.has_tense)
    return end.conjugated("어요") if plain else None


def _casual_end(end: _End) -> Edit | None:
    word = re.split("[^가-힣]", end.text[: end.stop])[-1]  # 드세요, but not 만드세요
    if word in _HONORED:
        return end.replaced(word, _HONORED[word])
    if _FORMAL.fullmatch(end.form):
        return end.conjugated("어")
    if end.form in ("ᆸ시다", "읍시다"):
        return end.conjugated("자")
    if end.form in ("죠", "지요"):
        return end.conjugated("지") if end.is_honorific else end.replaced("죠", "지") or end.replaced("지요", "지")
    if end.form.endswith("요"):
        return end.conjugated(end.form[:-1]) if end.is_honorific else Edit(end.stop - 1, end.stop, "")
    return None


def _edited(
    text: str, morphemes: Sequence[Morpheme], change: Callable[[_End], Edit | None], pronouns: dict[str, str]
) -> str:
    ends = [_End(text, morphemes, at) for at in range(len(morphemes)) if _ends(morphemes, at)]
    edits = [edit for end in ends if (edit := change(end))]
    if not edits:
        return text
    starts = [one.start for one in morphemes if one[:2] in (("나", "NP"), ("저", "NP"), ("내", "MM"), ("제", "MM"))]
    replaced = [Edit(at, at + 1, pronouns[text[at]]) for at in starts if text[at] in pronouns]
    edits += [edit for edit in replaced if not any(map(edit.overlaps, edits))]
    for edit in sorted(edits, reverse=True):  # last first: the offsets of the others stay valid
        text = edit.applied(text)
    return text


def _ends(morphemes: Sequence[Morpheme], at: int) -> bool:
    """Whether a sentence ends there: a final ending, a connective ending that nothing follows, or a greeting."""
    one = morphemes[at]
    following = morphemes[at + 1] if at + 1 < len(morphemes) else None
    if one.tag == "EF":
        if following is None or following.word != one.word:
            return True
        return following.tag.startswith(("S", "W", "Z_CODA")) or following[:2] == ("요", "JX")
    if one.tag == "EC":
        last = following is None or following.tag in ("SF", "SE", "SW", "W_EMOJI", "Z_CODA")
        return last and morphemes[at - 1].form not in _NO_SENTENCE
    return one.tag == "IC" and one.form in _GREETINGS and (at == 0 or one.form != "안녕")
