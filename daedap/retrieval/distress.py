"""People in distress, whom every bot answers with a helpline, whatever it was trained on."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from daedap.data.reader import built_in_pairs
from daedap.model.sentence_encoder import SentenceEncoder, built_in_encoder
from daedap.retrieval.lexical import LexicalIndex
from daedap.retrieval.query import Query
from daedap.types import Evidence, Float32Array, Pair

# A number ends before a Hangul letter, which is a word character: \b would not see it in "109에".
_HELPLINE = re.compile(r"(?<![\d-])(109|112|117|119|1303|1336|1342|1366|1388|1577-0199|1577-1389|1600-5500)(?![\d-])")
_DISTRESS = re.compile(
    r"자살|(?<!\S)자해|(?<![가-힣])유서(?! ?깊)|극단적(인)? ?선택"
    r"|죽고 ?(만 ?)?싶|죽어 ?버리|죽는 ?(생각|게 ?나[을아])|죽었으면 ?좋겠"
    r"|그만 ?살고|살기 ?싫|살고 ?싶지 ?않|살아서 ?뭐"
    r"|(사라지|없어지)고 ?싶|내가 ?(사라지|없어지)면|(삶을?|인생을?|목숨을?) ?(끝내고|끊고) ?싶"
    r"|목을? ?매[고달]|손목을? ?(긋|그[었어])|약을? ?(한꺼번에|통째로) ?(먹|삼)"
)
_AMBIGUOUS = re.compile(r"살 ?(이유|가치)[가도]? ?없|(?<![가-힣])다 ?끝내고 ?싶|뛰어내리")
"""May be about shopping, homework or sports, too: taken for distress unless the bot knows the question."""
_THRESHOLD = 0.65
"""Similarity from which a pair that offers help is answered: help too often does no harm."""


@dataclass(frozen=True)
class DistressHelp:
    """The built-in pairs that offer help."""

    index: LexicalIndex
    vectors: Float32Array
    """(pairs, width): sentence vectors of their questions."""

    @classmethod
    def built_in(cls, without: Collection[str] = (), encoder: SentenceEncoder | None = None) -> DistressHelp:
        """`without`: ids of pairs that are held out for a run's scores; `encoder`: by default the built-in one."""
        encoder = encoder or built_in_encoder()
        index = LexicalIndex.build([pair for pair in built_in_pairs() if _offers_help(pair) and pair.id not in without])
        return cls(index, encoder.encode([pair.question for pair in index.pairs]))

    def help(self, query: Query, score_to_beat: float) -> Evidence | None:
        """The pair to answer with, if it is more similar than the run's best pair, whose score is `score_to_beat`.

        Words of distress are answered however similar the pair is.
        """
        question, pairs = query.text, self.index.pairs
        similarities = (self.index.similarities([question])[0] + (self.vectors @ query.vector).clip(0)) / 2
        distress = bool(_DISTRESS.search(question)) or bool(_AMBIGUOUS.search(question) and score_to_beat < _THRESHOLD)
        if distress:
            similarities = np.where([_mentions_suicide(pair.question) for pair in pairs], similarities, -1.0)
        best = int(similarities.argmax())
        similarity = float(similarities[best].clip(0, 1))
        if not distress and similarity < max(_THRESHOLD, score_to_beat):
            return None
        return Evidence(pairs[best].question, pairs[best].answer, similarity)


def _offers_help(pair: Pair) -> bool:
    return bool(_HELPLINE.search(pair.answer))


def _mentions_suicide(question: str) -> bool:
    return bool(_DISTRESS.search(question) or _AMBIGUOUS.search(question))
