"""What every bot can answer, whatever it learned: greetings, thanks, insults, and people in distress."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daedap.data.reader import open_source, rows
from daedap.retrieval.encoder import BiEncoder, PairEmbeddings
from daedap.retrieval.lexical import LexicalIndex
from daedap.types import Evidence, Pair

STARTER = Path(__file__).parent.parent / "data" / "starter.csv"
"""The built-in pairs."""
# A number ends before a Hangul letter, which is a word character: \b would not see it in "109에".
_HELPLINE = re.compile(r"(?<![\d-])(109|112|117|119|1303|1336|1342|1366|1388|1577-0199|1577-1389|1600-5500)(?![\d-])")
_COURTESY = re.compile(
    r"(안녕|반가|반갑|하이|ㅎㅇ|고마|고맙|감사|땡큐|미안|죄송|잘 ?가|바보|멍청|꺼져|닥쳐|재수 ?없|짜증나게)"
)
_DISTRESS = re.compile(
    r"자살|(?<!\S)자해|(?<![가-힣])유서(?! ?깊)|극단적(인)? ?선택"
    r"|죽고 ?(만 ?)?싶|죽어 ?버리|죽는 ?(생각|게 ?나[을아])|죽었으면 ?좋겠"
    r"|그만 ?살고|살기 ?싫|살고 ?싶지 ?않|살아서 ?뭐"
    r"|(사라지|없어지)고 ?싶|내가 ?(사라지|없어지)면|(삶을?|인생을?|목숨을?) ?(끝내고|끊고) ?싶"
    r"|목을? ?매[고달]|손목을? ?(긋|그[었어])|약을? ?(한꺼번에|통째로) ?(먹|삼)"
)
_PERHAPS = re.compile(r"살 ?(이유|가치)[가도]? ?없|(?<![가-힣])다 ?끝내고 ?싶|뛰어내리")
"""May be said of things to buy, homework or sports, too: heard as distress unless a bot knows the question."""
_SURE, _CARING = 0.75, 0.65
"""Similarity from which a courtesy is returned, and from which distress is heard: help too often harms nobody."""


@dataclass(frozen=True)
class SmallTalk:
    """Built-in pairs that stand behind what a bot has learned."""

    index: LexicalIndex
    space: PairEmbeddings

    @classmethod
    def built_in(cls, encoder: BiEncoder, without: Collection[str] = ()) -> SmallTalk:
        """Those of the starter pairs that are about manners, where a run's encoder puts them.

        `without` these ids: what a run was trained to answer without having seen it must not be known from here.
        """
        polite = [pair for pair in built_in() if _helps(pair) or _COURTESY.search(pair.question)]
        pairs = [pair for pair in polite if pair.id not in without]
        return cls(LexicalIndex.build(pairs), PairEmbeddings.of(encoder, pairs))

    def answer(self, question: str, unless: float) -> Evidence | None:
        """The pair to answer with, if there is one nearer than what the bot itself knows, `unless` so similar.

        Distress is answered even if nothing is near.
        """
        letters = self.index.similarities([question])[0]
        both = (letters + self.space.asked @ self.space.encoder.questions([question])[0]) / 2
        distress = bool(_DISTRESS.search(question)) or bool(_PERHAPS.search(question) and unless < _CARING)
        if distress:
            both = np.where([_helps(pair) and _speaks_of_dying(pair.question) for pair in self.index.pairs], both, -1.0)
        best = int(both.argmax())
        pair, similarity = self.index.pairs[best], float(both[best].clip(0, 1))
        enough = _CARING if _helps(pair) else _SURE
        sure = distress or similarity >= max(enough, unless)  # whoever speaks of dying is never told something else
        return Evidence(pair.question, pair.answer, similarity) if sure else None


def built_in() -> list[Pair]:
    """All built-in pairs."""
    return [row for row in rows(open_source(STARTER)) if isinstance(row, Pair)]


def _helps(pair: Pair) -> bool:
    return bool(_HELPLINE.search(pair.answer))


def _speaks_of_dying(question: str) -> bool:
    return bool(_DISTRESS.search(question) or _PERHAPS.search(question))
