from __future__ import annotations

import pytest
from conftest import PAIRS

from daedap.answer.encoder import Encoder
from daedap.answer.manners import _HELPLINE, Manners, built_in


@pytest.fixture(scope="module")
def manners() -> Manners:
    return Manners.built_in(Encoder.fit(PAIRS, 1))


@pytest.mark.parametrize("question", ["안녕", "고마워", "바보야"])
def test_courtesies_are_returned(manners: Manners, question: str) -> None:
    found = manners.answer(question, unless=0.2)
    assert found
    assert found.question == question
    assert manners.answer(question, unless=1.1) is None, "what the bot itself knows better goes first"


@pytest.mark.parametrize("question", ["죽고 싶어", "자살하고 싶다", "그냥 다 그만 살고 싶네요", "유서 쓰고 있어"])
def test_distress_is_answered_with_help(manners: Manners, question: str) -> None:
    found = manners.answer(question, unless=0.99)
    assert found
    assert _HELPLINE.search(found.answer)


@pytest.mark.parametrize("question", ["배고파 죽겠네", "환불 되나요?", "파이썬 정렬하는 법", ""])
def test_other_questions_are_left_to_the_bot(manners: Manners, question: str) -> None:
    assert manners.answer(question, unless=0.3) is None


def test_held_out_pairs_are_not_known(manners: Manners) -> None:
    hidden = {pair.id for pair in built_in() if pair.question == "안녕"}
    assert hidden
    without = Manners.built_in(manners.space.encoder, without=hidden)
    assert all(pair.question != "안녕" for pair in without.index.pairs)
