"""People in distress, whom every bot answers with a helpline, whatever it was trained on; and courtesies."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from daedap.data.reader import built_in_pairs
from daedap.model.sentence_encoder import SentenceEncoder, built_in_encoder
from daedap.retrieval.courtesies import courtesy_of
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
class SmallTalk:
    """What a bot answers beside what its run knows: help for people in distress, and courtesies."""

    index: LexicalIndex
    """The built-in pairs that offer help."""
    vectors: Float32Array
    """(pairs, width): sentence vectors of their questions."""
    korean: bool = True
    """The language of the replies to courtesies; helplines are Korean."""

    @classmethod
    def built_in(
        cls, without: Collection[str] = (), encoder: SentenceEncoder | None = None, *, korean: bool = True
    ) -> SmallTalk:
        """`without`: ids of pairs that are held out for a run's scores; `encoder`: by default the built-in one."""
        encoder = encoder or built_in_encoder()
        index = LexicalIndex.build([pair for pair in built_in_pairs() if _offers_help(pair) and pair.id not in without])
        return cls(index, encoder.encode([pair.question for pair in index.pairs]), korean)

    def answer(self, query: Query, known: Sequence[Evidence], score_to_beat: float) -> Evidence | None:
        """The pair to answer with; None where the message is neither.

        Words of distress are answered by a pair that offers help, however similar; other messages if such a pair is
        more similar than the run's best one, whose score is `score_to_beat`. A courtesy is answered by the run's own
        pair for the same kind if it is among the best, `known`.
        """
        return self._help(query, score_to_beat) or self._courtesy(query.text, known)

    def _help(self, query: Query, score_to_beat: float) -> Evidence | None:
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

    def _courtesy(self, question: str, known: Sequence[Evidence]) -> Evidence | None:
        courtesy = courtesy_of(question)
        own = (one for one in known if courtesy_of(one.question) == courtesy)
        return next(own, courtesy.reply(korean=self.korean)) if courtesy else None


def _offers_help(pair: Pair) -> bool:
    return bool(_HELPLINE.search(pair.answer))


def _mentions_suicide(question: str) -> bool:
    return bool(_DISTRESS.search(question) or _AMBIGUOUS.search(question))
