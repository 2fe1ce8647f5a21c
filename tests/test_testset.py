from __future__ import annotations

from daedap.evaluation.testset import candidate_questions, candidates, other_questions
from daedap.korean.text import comparison_form
from daedap.types import Pair

NOUNS = tuple("밥물술옷집차책꽃별달해눈비강산길말글꿈손발귀코입목")
TEST = [Pair(f"{noun} 좋아해?", f"{noun}이라면 좋지요.", str(i % 3)) for i, noun in enumerate(NOUNS)]


def test_gold_and_nineteen_others() -> None:
    for pair, offered in zip(TEST, candidates(TEST), strict=True):
        assert offered[0] == pair.answer
        assert len({comparison_form(text) for text in offered}) == len(offered) == 20


def test_row_order_does_not_matter() -> None:
    assert candidates(TEST[::-1]) == candidates(TEST)[::-1]
    assert other_questions(TEST[::-1]) == other_questions(TEST)[::-1]


def test_pairs_get_different_choices_of_their_own() -> None:
    assert len({frozenset(offered) for offered in candidates(TEST)}) > 20
    again = [Pair("다른 질문", "다른 답"), *TEST[1:]]  # another test set of the same size
    kept = sum(len({*a} & {*b}) for a, b in zip(candidates(again)[1:], candidates(TEST)[1:], strict=True)) / 24
    assert kept > 15  # 16 of 20 would be left to chance


def test_spellings_of_one_answer_are_never_both_offered() -> None:
    spelled = [*TEST, Pair("밥 먹자", "밥이라면좋지요!!"), Pair("술 줘", " 술이라면 좋지요")]
    for offered in candidates(spelled):
        assert len({comparison_form(text) for text in offered}) == 20
    assert candidates(spelled)[25][0] == "밥이라면좋지요!!"


def test_a_small_test_set_offers_all_it_has() -> None:
    few = [Pair("가", "네"), Pair("나", "네."), Pair("다", "아니요"), Pair("라", "글쎄요")]
    assert [len(offered) for offered in candidates(few)] == [3, 3, 3, 3]
    assert set(candidates(few)[2]) == {"네", "아니요", "글쎄요"}
    assert candidates(few[:1]) == [("네",)]


def test_questions_are_offered_as_answers_are() -> None:
    asked = [*TEST, Pair("밥 좋아해!", "글쎄요")]  # another spelling of the first one
    for pair, offered in zip(asked, candidate_questions(asked), strict=True):
        assert offered[0] == pair.question
        assert len({comparison_form(text) for text in offered}) == len(offered) == 20
    assert candidate_questions(asked[::-1]) == candidate_questions(asked)[::-1]
    assert len({frozenset(offered) for offered in candidate_questions(asked)}) > 20
    assert candidate_questions(TEST[:1]) == [(TEST[0].question,)]


def test_another_question_has_the_same_label_and_another_form() -> None:
    labels = {pair.question: pair.label for pair in TEST}
    for pair, other in zip(TEST, other_questions(TEST), strict=True):
        assert other is not None
        assert other != pair.question
        assert labels[other] == pair.label


def test_another_label_only_when_there_is_no_other() -> None:
    alone = [Pair("잘 자", "네", "9"), Pair("잘자!", "네네", "9"), Pair("배고파", "드세요", "0")]
    assert other_questions(alone) == ["배고파", "배고파", other_questions(alone)[2]]
    assert other_questions(alone)[2] in {"잘 자", "잘자!"}
    assert other_questions(alone[:2]) == [None, None]
