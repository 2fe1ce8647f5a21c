from __future__ import annotations

import csv
import random
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from daedap.config import PERTURBATIONS, Perturbation
from daedap.korean.perturb import NEGATION, _strokes, _typed, perturb, perturb_each
from daedap.korean.text import analyse, comparison_form, speech_level

SHARED = Path(__file__).parents[2] / "shared" / "data" / "chatbot"
TYPED = re.compile(r"[가-힣ㄱ-ㅎㅏ-ㅣ\x20-\x7e…‘’“”~]*")
DENIED = {"안/MAG", "못/MAG", "않/VX", "없/VA", "아니/VCN", "말/VX", "모르/VV", "싫/VA", "못하/VX"}


def disturbed(question: str, kind: Perturbation, times: int = 40) -> set[str]:
    return {perturb(question, kind, random.Random(seed)) for seed in range(times)}


POLITE = {
    "뭐 해": "뭐 해요",
    "12시 땡!": "12시 땡!",
    "피곤하다": "피곤해요",
    "먹었어?": "먹었어요?",
    "할까": "할까요",
    "뭐 하니?": "뭐 해요?",
    "아무리 기다려도 안돌아오나봐": "아무리 기다려도 안돌아오나봐요",
    "밥 먹었니?": "밥 먹었어요?",
    "힘이 드니": "힘이 들어요",
    "이름이 뭐야": "이름이 뭐예요",
    "꿈은 선생님이야": "꿈은 선생님이에요",
    "나는 학생이다": "저는 학생이에요",
    "그게 아니야": "그게 아니에요",
    "내일 갈 거야": "내일 갈 거예요",
    "좋은 친구였다": "좋은 친구였어요",
    "날씨가 참 춥다": "날씨가 참 추워요",
    "너무 예쁘다ㅠㅠ": "너무 예뻐요ㅠㅠ",
    "왜 이렇게 춥냐": "왜 이렇게 추워요",
    "내가 잘못했나": "제가 잘못했나요",
    "날 좋아하는 걸까?": "절 좋아하는 걸까요?",
    "난 안 가": "전 안 가요",
    "나한테 왜 그래": "저한테 왜 그래요",
    "점심 먹자": "점심 먹어요",
    "오늘은 쉬어야겠다": "오늘은 쉬어야겠어요",
    "운동해야지": "운동해야죠",
    "어떻게 해야 하지?": "어떻게 해야 하죠?",
    "그렇구나": "그렇군요",
    "맛있더라": "맛있더라고요",
    "비가 오는데": "비가 오는데요",
    "병원에 가려고": "병원에 가려고요",
    "언제쯤 괜찮아지려나": "언제쯤 괜찮아지려나요",
    "책을 읽으려고": "책을 읽으려고요",
    "하지 마": "하지 마요",
    "울지 마라": "울지 마세요",
    "밥 먹었음": "밥 먹었어요",
    "장난 아님": "장난 아니에요",
    "시간표 망함": "시간표 망함",
    "나 배고파. 뭐 먹지?": "저 배고파요. 뭐 먹죠?",
    "배고프당ㅎㅎ": "배고파요ㅎㅎ",
    "보고싶어": "보고싶어요",
    "안녕": "안녕하세요",
    "이제 안녕": "이제 안녕",
    "너는 누구야": "너는 누구야",
    "지금 몇 시예요?": "지금 몇 시예요?",
    "고백할걸": "고백할걸",
    "나를 위해": "나를 위해",
    "": "",
}
CASUAL = {
    "뭐 해요": "뭐 해",
    "지금 몇 시예요?": "지금 몇 시야?",
    "꿈은 선생님이에요": "꿈은 선생님이야",
    "저는 학생입니다": "나는 학생이야",
    "이거 썸인가요?": "이거 썸이야?",
    "시간 있나요?": "시간 있어?",
    "헤어진지 한달 되었습니다": "헤어진지 한달 되었어",
    "정말 힘듭니다": "정말 힘들어",
    "어떡하죠ㅠㅠ": "어떡하지ㅠㅠ",
    "어디 가세요?": "어디 가?",
    "잘 지내시죠?": "잘 지내지?",
    "점심 드셨어요?": "점심 먹었어?",
    "많이 드세요": "많이 먹어",
    "뭐 만드세요?": "뭐 만들어?",
    "많이 힘드세요?": "많이 힘들어?",
    "알려 주세요.": "알려 줘.",
    "제가 이상한 건가요?": "내가 이상한 거야?",
    "절 좋아할까요": "날 좋아할까",
    "같이 갑시다": "같이 가자",
    "안녕하세요": "안녕",
    "감사합니다": "고마워",
    "밤에 잠이 너무 안와여": "밤에 잠이 너무 안와",
    "저 사람 누구예요?": "저 사람 누구야?",
    "할머니께서 오셨어요": "할머니께서 오셨어요",
    "그게 아니에요": "그게 아니야",
    "뭐 해": "뭐 해",
    "매우 중요": "매우 중요",
}
PARTICLES = {
    "답장이 없어": {"답장 없어"},
    "밥을 먹었어": {"밥 먹었어"},
    "난 배고파": {"나 배고파"},
    "이건 뭐야": {"이거 뭐야"},
    "허리가 계속 아파": {"허리 계속 아파"},
    "나는 밥을 먹었어": {"나 밥을 먹었어", "나는 밥 먹었어"},
    "내가 바보야": {"내가 바보야"},
    "누가 그래": {"누가 그래"},
    "너는?": {"너는?"},
    "너를 위해 살게": {"너를 위해 살게"},
    "그 애가 좋아해?": {"그 애가 좋아해?"},
    "그녀가 좋아하는 사람": {"그녀가 좋아하는 사람"},
    "이게 뭐야": {"이게 뭐야"},
    "나만 몰라": {"나만 몰라"},
    "할 걸 그랬어": {"할 걸 그랬어"},
}


@pytest.mark.parametrize(("question", "said"), POLITE.items())
def test_polite(question: str, said: str) -> None:
    assert disturbed(question, "polite", 2) == {said}


@pytest.mark.parametrize(("question", "said"), CASUAL.items())
def test_casual(question: str, said: str) -> None:
    assert disturbed(question, "casual", 2) == {said}


@pytest.mark.parametrize(("question", "allowed"), PARTICLES.items())
def test_particles(question: str, allowed: set[str]) -> None:
    assert disturbed(question, "particles") == allowed


@pytest.mark.parametrize(
    ("question", "slips"),
    [
        ("했어", {"햇어", "헸어", "행어", "햌어", "했ㅇ어", "해ㅆ어", "했ㅓ어", "했어ㅓ", "해어"}),
        ("왜 안돼", {"왜 안되"}),
        ("괜찮아", {"괜찬아", "괸찮아", "괘찮아"}),
        ("좋아", {"조아", "졸아", "좋ㅇ아"}),
        ("어떻게", {"어떠게", "어덯게", "어떻개"}),
    ],
)
def test_typical_slips_are_among_them(question: str, slips: set[str]) -> None:
    found = disturbed(question, "typo", 600)
    assert len(slips & found) > len(slips) / 2, found
    assert question not in found


def test_a_slip_is_made_on_the_keyboard() -> None:
    for word in ("안녕하세요", "괜찮아", "꿇었닭값읊없뷁", "왜그래웬", "각사", "닭이"):
        assert _typed(_strokes(word)) == word
    assert _typed("ㄱㅏㄱㅅㅏ") == "각사"
    assert _typed("ㅎㅐㅐㅆㅇㅓ") == "해ㅐㅆ어"
    for ours in ("ㄱㄴ", "ㅏㅏ", "ㄸ"):
        assert _typed(ours) == ours


def test_no_slip_without_hangul_or_in_a_negation() -> None:
    for question in ("OK?", "12:30", "ㅋㅋ", "", "안 말못"):
        assert disturbed(question, "typo", 5) == {question}


def test_spacing() -> None:
    assert disturbed("오늘 날씨 어때?", "spacing", 3) == {"오늘날씨어때?"}
    assert disturbed("배고파", "spacing") == {"배 고파", "배고 파"}
    assert disturbed("Galaxy S 24 5 개", "spacing", 3) == {"Galaxy S 24 5개"}
    assert disturbed("응?", "spacing", 3) == {"응?"}


def test_laughter() -> None:
    assert disturbed("눈물이 난다 ㅠㅠ", "laughter", 3) == {"눈물이 난다"}
    assert disturbed("ㅋㅋ 너 진짜 웃기다ㅎ", "laughter", 3) == {"너 진짜 웃기다"}
    assert disturbed("ㅋㅋㅋ", "laughter", 3) == {"ㅋㅋㅋ"}
    assert all(re.fullmatch("어제 헤어졌어 ?[ㅠㅜ]{2,3}", said) for said in disturbed("어제 헤어졌어", "laughter"))
    assert all(re.fullmatch("뭐 해\\? ?[ㅋㅎ]{2,3}", said) for said in disturbed("뭐 해?", "laughter"))


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_many_at_once_are_as_one_by_one(kind: Perturbation) -> None:
    questions = ["내가 밥을 안 먹었어?", "오늘 뭐 해요?", "12시 땡!", "배고파ㅋㅋ"] * 3
    at_once = [*perturb_each(questions, kind, [random.Random(n) for n in range(12)])]
    assert at_once == [perturb(question, kind, random.Random(n)) for n, question in enumerate(questions)]


def test_all_kinds_are_named() -> None:
    assert get_args(Perturbation) == PERTURBATIONS


# ---- 500 real questions --------------------------------------------------------------------------------------------


@cache
def real() -> tuple[str, ...]:
    file = SHARED / "ChatbotData.csv"
    if not file.exists():
        pytest.skip(f"needs ChatbotData.csv in {SHARED}")
    with file.open(encoding="utf-8", newline="") as rows:
        questions = [row["Q"].strip() for row in csv.DictReader(rows)]
    return tuple(random.Random(0).sample(questions, 500))


@cache
def real_disturbed(kind: Perturbation) -> tuple[str, ...]:
    return tuple(perturb_each(real(), kind, [random.Random(n) for n in range(len(real()))]))


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_what_comes_out_is_text_that_people_type(kind: Perturbation) -> None:
    for question, said in zip(real(), real_disturbed(kind), strict=True):
        assert said.strip() == said != ""
        assert unicodedata.is_normalized("NFC", said)
        assert TYPED.fullmatch(said) or not TYPED.fullmatch(question), said
        assert abs(len(said) - len(question)) <= max(4, question.count(" "))


@pytest.mark.parametrize("kind", [kind for kind in PERTURBATIONS if kind != "spacing"])
def test_no_negation_is_lost_or_made(kind: Perturbation) -> None:
    for question, said in zip(real(), real_disturbed(kind), strict=True):
        if kind in ("typo", "laughter"):
            assert NEGATION.findall(said) == NEGATION.findall(question), said
        else:
            assert denials(said) == denials(question), f"{question} → {said}"


def test_spacing_changes_nothing_else() -> None:
    for question, said in zip(real(), real_disturbed("spacing"), strict=True):
        assert comparison_form(said) == comparison_form(question)


def denials(text: str) -> int:
    return sum(f"{one.form}/{one.tag}" in DENIED for one in next(analyse([text])))


def test_each_kind_finds_enough_to_change() -> None:
    assert changed("typo") == 1
    assert changed("laughter") == 1
    assert changed("spacing") > 0.95
    morphemes = [*analyse(real())]
    ended = [
        speech_level(question) == "casual" and any(one.tag == "EF" for one in found[-3:])
        for question, found in zip(real(), morphemes, strict=True)
    ]
    assert changed("polite", ended) > 0.9
    assert changed("casual", [speech_level(question) == "polite" for question in real()]) > 0.85
    particles = {"이/JKS", "가/JKS", "을/JKO", "를/JKO", "은/JX", "는/JX", "ᆫ/JX", "이/JKC", "가/JKC"}
    have = [any(f"{one.form}/{one.tag}" in particles for one in found) for found in morphemes]
    assert changed("particles", have) > 0.5


def changed(kind: Perturbation, among: list[bool] | None = None) -> float:
    pairs = zip(real(), real_disturbed(kind), among or [True] * len(real()), strict=True)
    counted = [question != said for question, said, counts in pairs if counts]
    return sum(counted) / len(counted)


def test_polite_and_back() -> None:
    there = [*perturb_each(real(), "polite", [random.Random(0)] * len(real()))]
    back = [*perturb_each(there, "casual", [random.Random(0)] * len(there))]
    moved = [
        (question, polite, casual)
        for question, polite, casual in zip(real(), there, back, strict=True)
        if question != polite
    ]
    assert sum(question == casual for question, _, casual in moved) > 0.7 * len(moved)
