from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from daedap.korean.text import (
    WIDTH,
    KiwiWordVectors,
    analyse,
    comparison_form,
    compatibility_jamo,
    is_closed,
    join,
    kiwi,
    morphemes,
    nfc,
    speech_level,
    strip_emoticons,
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("오늘 뭐 해ㅋㅋㅋ", "오늘뭐해"),
        ("ㅠㅠ 힘들어ㅠ.ㅠ!", "힘들어"),
        ("ㅋㅋㅋㅋ", "ㅋㅋ"),
        ("크크 웃겨", "크크웃겨"),
        ("", ""),
    ],
)
def test_laughter_and_tears_are_not_the_question(text: str, left: str) -> None:
    assert strip_emoticons(text) == left


def test_nfc_joins_what_a_mac_takes_apart() -> None:
    apart = unicodedata.normalize("NFD", "한글을 써요")
    assert apart != "한글을 써요"
    assert nfc(apart) == "한글을 써요"


@pytest.mark.parametrize("text", ["ㅋㅋㅋ", "ㅠㅠ", "ㅎㅎ 그래ㅜㅜ", "ㄱㄱ", "ㅇㅇ", "ㄳ", "ㅏㅑㅓㅕ", "ㅉㅉ ㅃㅃ"])
def test_jamo_that_nfkc_changed_come_back(text: str) -> None:
    changed = unicodedata.normalize("NFKC", text)
    assert changed != text
    assert compatibility_jamo(changed) == text


def test_jamo_leave_whole_syllables_alone() -> None:
    assert compatibility_jamo("가나다 abc 123 😀") == "가나다 abc 123 😀"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("오늘 날씨 어때?", "오늘날씨어때"),
        ("ＡＢＣ 마트", "abc마트"),
        ("웃겨 ㅋㅋ", "웃겨ㅋㅋㅋㅋㅋ!!"),
        (unicodedata.normalize("NFD", "한글"), "한글"),
        ("ㅠㅠ", unicodedata.normalize("NFKC", "ㅠㅠㅠ")),
    ],
)
def test_the_same_question_has_the_same_form(one: str, other: str) -> None:
    assert comparison_form(one) == comparison_form(other)


@pytest.mark.parametrize(
    ("one", "other"), [("밥 먹었어", "밥 먹었니"), ("?", "!"), ("ㅋ", "ㅋㅋ"), ("1시", "2시"), ("", "?")]
)
def test_another_question_has_another_form(one: str, other: str) -> None:
    assert comparison_form(one) != comparison_form(other)


def test_the_form_of_a_form_is_itself() -> None:
    for text in ("오늘 날씨 어때?", "ㅋㅋㅋㅋ 웃겨", "...", "ＡＢＣ", "", "😀 😀"):
        assert comparison_form(comparison_form(text)) == comparison_form(text)


@pytest.mark.parametrize(
    "text",
    [
        "맛있게 드세요.",
        "그렇습니다!",
        "가실까요?",
        "저도 그래요ㅎㅎ",
        "그렇죠~",
        "어서 오십시오",
        "맞아용",
        "하셨습니까?",
        "안 돼요 ㅠㅠ",
        "좋아요 ^^",
    ],
)
def test_polite(text: str) -> None:
    assert speech_level(text) == "polite"


@pytest.mark.parametrize(
    "text", ["밥 먹었어", "그래", "자동차가 필요", "다음 주 수요", "매우 중요", "하자!", "", "ㅋㅋ"]
)
def test_casual(text: str) -> None:
    assert speech_level(text) == "casual"


def test_morphemes_carry_their_tags() -> None:
    assert morphemes("밥을 먹었다") == ["밥/NNG", "을/JKO", "먹/VV", "었/EP", "다/EF"]
    assert morphemes("") == []


def test_morphemes_have_their_places() -> None:
    (found,) = analyse(["난 밥을 먹었어"])
    assert [(one.form, one.tag) for one in found][:4] == [("나", "NP"), ("ᆫ", "JX"), ("밥", "NNG"), ("을", "JKO")]
    assert [(one.start, one.end, one.word) for one in found][:4] == [(0, 1, 0), (0, 1, 0), (2, 3, 1), (3, 4, 1)]
    assert [*analyse([])] == []


@pytest.mark.parametrize("text", ["춥다", "이름이 뭐예요?", "잘 지내셨어요", "네가 아니었다"])
def test_joined_morphemes_are_spelled_as_before(text: str) -> None:
    (found,) = analyse([text])
    assert join(found) == text


def test_join_conjugates() -> None:
    (found,) = analyse(["춥다"])
    assert join([found[0], found[1]._replace(form="어요")]) == "추워요"


@pytest.mark.parametrize(("text", "closed"), [("밥", True), ("물가", False), ("닭", True), ("SNS", False), ("", False)])
def test_closed_syllables(text: str, closed: bool) -> None:
    assert is_closed(text) is closed


# ---- word vectors ----

WORDS = ["사랑", "애정", "행복", "컴퓨터", "밥"]


@pytest.fixture(scope="module")
def word_vectors() -> KiwiWordVectors:
    return KiwiWordVectors.recover()


def numbers(words: list[str]) -> list[int]:
    return [found[0].morpheme_id for found in analyse(words)]


def test_the_vectors_give_kiwis_own_cosines_back(word_vectors: KiwiWordVectors) -> None:
    asked = numbers(WORDS)
    vectors = word_vectors.vectors(asked)
    for one in asked:
        assert vectors[one].shape == (WIDTH,)
        assert np.linalg.norm(vectors[one]) == pytest.approx(1, abs=1e-2)
        for other in asked:
            cosine = kiwi().morpheme_similarity(one, other)
            assert float(vectors[one] @ vectors[other]) == pytest.approx(cosine, abs=5e-3)


def test_what_means_alike_is_near(word_vectors: KiwiWordVectors) -> None:
    love, affection, _, computer, _ = numbers(WORDS)
    found = word_vectors.vectors([love, affection, computer])
    assert found[love] @ found[affection] > found[love] @ found[computer] + 0.2


def test_words_without_a_vector_are_left_out(word_vectors: KiwiWordVectors) -> None:
    assert word_vectors.vectors([-1, 10**6]) == {}
    assert word_vectors.vectors([]) == {}
