from __future__ import annotations

import pytest
from queries import encoded

from daedap.data.reader import built_in_pairs
from daedap.retrieval.distress import _HELPLINE, DistressHelp, _mentions_suicide


@pytest.fixture(scope="module")
def distress_help() -> DistressHelp:
    return DistressHelp.built_in()


@pytest.mark.parametrize("question", ["죽고 싶어", "자살하고 싶다", "그냥 다 그만 살고 싶네요", "유서 쓰고 있어"])
def test_distress_is_answered_with_help(distress_help: DistressHelp, question: str) -> None:
    found = distress_help.help(encoded(question)[0], score_to_beat=0.99)
    assert found
    assert _HELPLINE.search(found.answer)


def test_every_built_in_mention_of_suicide_gets_its_own_answer(distress_help: DistressHelp) -> None:
    for pair in built_in_pairs():
        if _mentions_suicide(pair.question):
            found = distress_help.help(encoded(pair.question)[0], score_to_beat=0.99)
            assert found
            assert _HELPLINE.search(found.answer)
            assert found.answer == pair.answer
    assert sum(_mentions_suicide(pair.question) for pair in built_in_pairs()) > 25


def test_what_may_mean_something_else_is_left_to_a_bot_that_knows_it(distress_help: DistressHelp) -> None:
    for question in ("더는 살 이유가 없어", "이제 다 끝내고 싶어", "옥상에서 뛰어내리고 싶어"):
        found = distress_help.help(encoded(question)[0], score_to_beat=0.4)
        assert found
        assert _HELPLINE.search(found.answer)
    assert distress_help.help(encoded("이 제품 살 이유 없죠?")[0], score_to_beat=0.7) is None


BUSINESS = ["지각 사유서 양식 어디 있어요?", "유서 깊은 절 추천해 줘", "담배를 다 끊고 싶어", "구독 다 끊고 싶어요"]


@pytest.mark.parametrize("answer", ["109에 전화해 주세요.", "112나 119", "정신건강 위기상담 1577-0199에도"])
def test_a_helpline_is_seen_before_a_particle(answer: str) -> None:
    assert _HELPLINE.search(answer)


@pytest.mark.parametrize("text", ["스타트업에 투자해볼까?", "숙제 다 했어", "2109년", "010-1109-1191", *BUSINESS])
def test_what_is_no_distress_and_no_helpline(text: str) -> None:
    assert not _mentions_suicide(text)
    assert not _HELPLINE.search(text)


@pytest.mark.parametrize("question", ["배고파 죽겠네", "환불 되나요?", "파이썬 정렬하는 법", ""])
def test_other_questions_are_left_to_the_bot(distress_help: DistressHelp, question: str) -> None:
    assert distress_help.help(encoded(question)[0], score_to_beat=0.3) is None


def test_held_out_pairs_are_not_known() -> None:
    hidden = {pair.id for pair in built_in_pairs() if pair.question == "죽고 싶어"}
    assert hidden
    without = DistressHelp.built_in(without=hidden)
    assert all(pair.question != "죽고 싶어" for pair in without.index.pairs)
