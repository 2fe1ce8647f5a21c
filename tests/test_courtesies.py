from __future__ import annotations

import json
from copy import copy
from pathlib import Path

import pytest

from daedap.retrieval.bot import Bot
from daedap.retrieval.courtesies import LONGEST, courtesy_of, phrases
from daedap.retrieval.hybrid import HybridRetriever
from daedap.runs import Run
from daedap.types import Lesson, Pair

FAQS = Path(__file__).parent.parent / "data" / "faq"

SAID = {
    "greeting": [
        "안녕",
        "안녕하세용~",
        "안뇽!!",
        "하이루 방가방가",
        "ㅎㅇㅎㅇ",
        "안녕하세요 좋은 아침입니다^^",
        "Hello",
    ],
    "good_day": ["굿모닝", "좋은 아침이에요!"],
    "opening": ["저기요 질문 있어요", "문의드립니다"],
    "praise": ["최고예요", "와 굿굿"],
    "goodnight": ["잘자", "안녕히 주무세요~", "좋은 밤 되세요"],
    "laughter": ["ㅋㅋㅋㅋ", "하하하하"],
    "thanks": [
        "고마웡",
        "감사합니당ㅎㅎ",
        "ㄱㅅㄱㅅ",
        "땡큐!",
        "답변 정말 감사합니다",
        "친절하게 알려 주셔서 고마워요",
        "네 감사합니다",
    ],
    "goodbye": ["수고하세요~", "ㅂㅂ", "바이바이", "안녕히 계세요", "다음에 또 올게요", "네 안녕히 계세요"],
    "apology": ["미안", "죄송합니다", "ㅈㅅㅈㅅ", "앗 sorry", "잘못 눌렀어요"],
    "agreement": ["네", "넵넵", "ㅇㅋ", "오케이", "아 그렇군요", "알겠습니다!", "👍"],
    "no": ["아니", "아니요 그거 말고요", "ㄴㄴ", "그런 뜻이 아니에요"],
    "identity": ["너 누구야?", "넌 이름이 뭐야", "혹시 사람이세요?", "너 로봇이지", "안녕? 이름이 뭐예요"],
    "help": ["도와줘", "도움말", "뭘 물어볼 수 있어?", "무슨 질문을 할 수 있나요?"],
    "insult": ["바보", "야 이 멍청이야", "시발", "ㅅㅂ", "꺼져라 봇아"],
}
QUESTIONS = [
    "안녕하세요, 배송비는 얼마예요?",
    "감사 편지를 같이 넣어 줄 수 있나요?",
    "네이버페이 되나요?",
    "아니면 다른 색도 있어요?",
    "미안하다는 카드 있나요",
    "사람이 많은 시간은 언제예요?",
    "최고 인기 메뉴가 뭐예요?",
    "수고비도 받나요?",
    "이름이 바뀌었는데 어떻게 하나요?",
    "ㅠㅠ",
    "?",
    "",
    "메뉴",
    "어음",
    "노아",
    "네오",
    "바이오",
    "하이네",
    "노예",
    "아예",
    "안녕 " * 40,
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in SAID.items() for text in texts])
def test_a_message_of_set_phrases_is_a_courtesy(kind: str, text: str) -> None:
    courtesy = courtesy_of(text)
    assert courtesy
    assert courtesy.name == kind


@pytest.mark.parametrize("text", QUESTIONS)
def test_a_question_is_none_whatever_it_begins_with(text: str) -> None:
    assert courtesy_of(text) is None


def test_no_question_of_280_faqs_is_taken_for_one() -> None:
    names = ("question", "words", "casual", "messy", "long")
    files = sorted(FAQS.glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    questions = [row[name] for row in rows for name in names if row.get(name) and not row.get("out_of_scope")]
    assert len(questions) > 20_000
    assert [text for text in questions if courtesy_of(text)] == []


@pytest.mark.parametrize("kind", phrases()["kinds"], ids=lambda kind: str(kind["name"]))
def test_each_kind_has_its_replies(kind: dict[str, str]) -> None:
    assert kind["ko"].endswith((".", "!", "?"))
    assert kind["en"].isascii()


def test_phrases_repeated_to_no_end_take_no_time() -> None:
    for phrase in ("아", "네", "어", "ㅂㅂ", "ㅇㅇ", "너는", "하이", "no"):
        assert courtesy_of((phrase * LONGEST)[: LONGEST - 1] + "뷁") is None


def bot_with(*more: Pair) -> Bot:
    """A bot in memory that knows the FAQ of a bookstore, and more."""
    lines = (FAQS / "57_bookstore.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "answer" in row]
    pairs = [*(Pair(row["question"], row["answer"]) for row in rows), *more]
    return Bot(Run(Path("in memory")), HybridRetriever.build(pairs))


@pytest.fixture(scope="module")
def bookstore() -> Bot:
    return bot_with()


@pytest.mark.parametrize("text", ["안뇽하세용", "ㅎㅇ", "하이루", "방가방가"])
def test_a_greeting_is_returned_by_what_the_bot_knows_best(bookstore: Bot, text: str) -> None:
    assert bookstore.reply(text).text == "안녕하세요! 무엇을 도와드릴까요?"
    own = bot_with(Pair("안녕하세요", "어서 오세요, 솔빛 서점입니다."), Pair("영업 시간이요", "아홉 시부터예요."))
    assert own.reply(text).text == "어서 오세요, 솔빛 서점입니다."
    own.teach([Lesson("1", "반가워요", "안녕하세요, 대답이에요.", "similar")])
    reply = own.reply(text)
    assert (reply.text, reply.source) == ("안녕하세요, 대답이에요.", "lesson")
    assert own.reply("감사합니당").text == courtesy_reply("감사합니다"), "a courtesy of another kind"


def test_a_sure_lesson_comes_before_a_built_in_courtesy(bookstore: Bot) -> None:
    bot = copy(bookstore)
    bot.teach([Lesson("1", "상담원인가요 상담사인가요", "상담원은 1번을 눌러 주세요.", "similar")])
    assert bot.reply("상담사인가요?").source == "lesson"
    assert bookstore.reply("상담사인가요?").text.startswith("저는 사람이 아니라")


def test_a_name_made_of_phrases_is_looked_up() -> None:
    names = ["노아", "네오", "바이오", "어음", "하이네"]
    bot = bot_with(*(Pair(f"{name} 시리즈는 몇 권까지 나왔나요?", f"{name}은 열 권이에요.") for name in names))
    for name in names:
        assert bot.reply(name).text != courtesy_reply("네"), name
        assert courtesy_of(name) is None


def test_a_bot_whose_file_is_english_answers_in_english() -> None:
    assert courtesy_reply("thanks", korean=False) == "You are welcome. Just ask if there is anything else."


def courtesy_reply(text: str, *, korean: bool = True) -> str:
    courtesy = courtesy_of(text)
    assert courtesy
    return courtesy.reply(korean=korean).answer
