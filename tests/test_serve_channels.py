"""Messengers and other web pages: KakaoTalk, Naver TalkTalk, the widget."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import PAIRS
from serving import PASSWORD, log_in, runs_with
from starlette.testclient import TestClient

import daedap
from daedap.commands.serve import _channel_lines
from daedap.config import AnswerOptions
from daedap.errors import SettingsError
from daedap.runs import Run
from daedap.serve.app import build_app
from daedap.serve.channels.common import Answer, Channels, Message, choices_of, length, parts_of, post
from daedap.serve.channels.kakao import Buttons, may_call_back, skill_response
from daedap.serve.channels.naver import Event, Said, read_event, send_event
from daedap.serve.options import ServeOptions
from daedap.serve.security import RateLimit
from daedap.serve.server import channel_secrets
from daedap.serve.service import Service

KNOWN = PAIRS[3]
NOTICE = "AI가 답해요"
CALLBACK = "https://bot-api.kakao.com/v1/bots/abc/callback/def?token=1"
NOTE = "(뒤는 줄임)"


@dataclass
class Server:
    """A server with both channels, and what it has posted."""

    client: TestClient
    channels: Channels
    posted: list[Message] = field(default_factory=list)

    def kakao(self, utterance: Any, user: Any = "사용자", secret: str = "k-1", **more: Any) -> Any:
        body = json.dumps(skill_request(utterance, user, **more))
        return self.client.post(f"/channels/kakao/{secret}", content=body, headers={"Content-Type": "application/json"})

    def naver(self, secret: str = "n-1", **event: Any) -> Any:
        return self.client.post(f"/channels/naver/{secret}", json=event)

    def kept(self) -> list[dict[str, Any]]:
        """Everybody's conversations."""
        log_in(self.client)
        found: list[dict[str, Any]] = self.client.get("/api/admin/conversations").json()["conversations"]
        return found


def skill_request(utterance: Any, user: Any, **more: Any) -> dict[str, Any]:
    """The shape of a request, as it is recorded; the values are ours."""
    return {
        "intent": {"id": "i1", "name": "폴백 블록", "extra": {"reason": {"code": 1, "message": "OK"}}},
        "userRequest": {
            "timezone": "Asia/Seoul",
            "params": {"ignoreMe": "true", "surface": "Kakaotalk.plusfriend"},
            "block": {"id": "b1", "name": "폴백 블록"},
            "utterance": utterance,
            "lang": "ko",
            "user": {"id": user, "type": "botUserKey", "properties": {"plusfriendUserKey": "p1"}},
            **more,
        },
        "contexts": [],
        "bot": {"id": "bot1", "name": "대답"},
        "action": {"name": "대답", "clientExtra": None, "params": {}, "id": "a1", "detailParams": {}},
    }


@contextmanager
def opened(
    runs: Path, *, timeout: float = 4.0, per_minute: int = 0, sure: float | None = None, **options: Any
) -> Iterator[Server]:
    """`sure`: the probability from which on a known answer is given."""
    settings = ServeOptions(kakao=True, naver=True, **options)
    answering = AnswerOptions() if sure is None else AnswerOptions(direct_answer_threshold=sure)
    service = Service("latest", runs, settings, answering, PASSWORD)
    posted: list[Message] = []

    def keep(message: Message) -> str:
        posted.append(message)
        return ""

    channels = Channels(
        service, {"kakao": "k-1", "naver": "n-1"}, timeout=timeout, limit=RateLimit(per_minute), post=keep
    )
    app = build_app(service, channels)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield Server(client, channels, posted)


@pytest.fixture(scope="module")
def runs(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs_with(trained, tmp_path_factory.mktemp("channels"))


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    with opened(runs) as opened_server:
        yield opened_server


def said(response: Any) -> str:
    """The text of an answer to KakaoTalk."""
    assert response.status_code == 200
    body = response.json()
    assert body["version"] == "2.0"
    return "\n".join(output["simpleText"]["text"] for output in body["template"]["outputs"])


# ---- texts ----


@pytest.mark.parametrize(
    "text", ["짧아요.", "문장이에요. " * 400, "가" * 5000, "😀" * 1200, "첫째.\n\n" + "둘째예요 " * 300, " \n"]
)
@pytest.mark.parametrize(("size", "count"), [(1000, 3), (100, 1), (40, 2)])
def test_long_texts_are_parted(text: str, size: int, count: int) -> None:
    parts = parts_of(text, size, count, NOTE)
    assert 1 <= len(parts) <= count
    assert all(0 < length(part) <= size for part in parts)
    whole = "".join("".join(parts).split())
    if length(text.strip()) <= size * count // 2:
        assert whole == ("".join(text.split()) or "…"), "nothing is lost"
    elif NOTE in parts[-1]:
        assert "".join(text.split()).startswith(whole.removesuffix("".join(f"…{NOTE}".split())))
    assert (length(text.strip()) > size * count) <= (NOTE in parts[-1])


def test_a_text_is_parted_after_a_sentence() -> None:
    assert parts_of("하나예요. 둘이에요. 셋이에요.", 14, 3, NOTE) == ["하나예요. 둘이에요.", "셋이에요."]


def test_labels_hold_their_question_or_its_number() -> None:
    short, long = "배송은 언제 오나요?", "주문을 취소하면 환불은 며칠 뒤에 되나요?"
    assert [choice.label for choice in choices_of([short], 14)] == [short]
    choices = choices_of([short, long], 14)
    assert [choice.question for choice in choices] == [short, long]
    assert [choice.label for choice in choices] == ["1. 배송은 언제 오나요?", "2. 주문을 취소하면 환…"]
    assert all(length(choice.label) <= 14 for choice in choices)


def test_an_answer_in_the_words_of_each_platform() -> None:
    answer = Answer("혹시 이 질문인가요?", ("배송은 언제 오나요?", "환불은요?"))
    assert skill_response(answer, Buttons(NOTE)) == {
        "version": "2.0",
        "template": {
            "outputs": [{"simpleText": {"text": "혹시 이 질문인가요?"}}],
            "quickReplies": [
                {"label": "배송은 언제 오나요?", "action": "message", "messageText": "배송은 언제 오나요?"},
                {"label": "환불은요?", "action": "message", "messageText": "환불은요?"},
            ],
        },
    }
    content = send_event(answer, NOTE)["textContent"]
    assert content["text"] == "혹시 이 질문인가요?\n\n1. 배송은 언제 오나요?\n2. 환불은요?"
    first, second = content["quickReply"]["buttonList"]
    assert first == {"type": "TEXT", "data": {"title": "1. 배송은 언제…", "code": "배송은 언제 오나요?"}}
    assert second["data"] == {"title": "2. 환불은요?", "code": "환불은요?"}


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        (CALLBACK, True),
        ("https://kakao.com/x", True),
        ("https://kakao.com:443/x", True),
        ("http://bot-api.kakao.com/x", False),
        ("https://evilkakao.com/x", False),
        ("https://kakao.com.evil.example/x", False),
        ("https://kakao.com@evil.example/x", False),
        ("https://evil.example@kakao.com/x", False),
        ("https://kakao.com:8443/x", False),
        ("https://kakao.com:x/", False),
        ("https://169.254.169.254/latest", False),
        ("https://[::1/", False),
        ("https://evil.example./x", False),
        ("https://kakao.com/a b", False),
        ("file:///etc/passwd", False),
        ("", False),
        (None, False),
    ],
)
def test_where_a_late_answer_may_go(url: str | None, allowed: bool) -> None:
    assert may_call_back(url, ("kakao.com", ".kakaoenterprise.com", "")) is allowed


# ---- KakaoTalk ----


def test_kakao_conversations_are_kept_for_each_person(server: Server) -> None:
    first = said(server.kakao(f"{KNOWN.question}\n", "가영"))
    assert first == f"{NOTICE}. 틀릴 수 있어요.\n\n{KNOWN.answer}"
    assert said(server.kakao("안녕하세요", "가영")).count(NOTICE) == 0
    assert NOTICE in said(server.kakao(KNOWN.question, "나영"))
    mine = [each for each in server.kept() if each["title"] == KNOWN.question]
    assert sorted(each["replies"] for each in mine) == [1, 2]


def test_kakao_gets_the_same_answer_to_the_same_event(server: Server) -> None:
    before = sum(each["replies"] for each in server.kept())
    first = server.kakao("두 번 온 질문", "다영")
    assert server.kakao("두 번 온 질문", "다영").json() == first.json()
    assert sum(each["replies"] for each in server.kept()) == before + 1


def test_suggestions_are_quick_replies_with_whole_questions(runs: Path) -> None:
    with opened(runs, sure=1.0, kakao_block="b9") as server:
        body = server.kakao(KNOWN.question.replace(" ", "  ") + " 응?", "라영").json()
        asked = [reply["messageText"] for reply in body["template"]["quickReplies"]]
        assert 0 < len(asked) <= 3
        assert set(asked) <= {pair.question for pair in server.channels.service.bots.current.retriever.index.pairs}
        (reply,) = {reply["extra"]["reply"] for reply in body["template"]["quickReplies"]}
        assert server.channels.service.conversations.reply(reply)
        assert {(reply["action"], reply["blockId"]) for reply in body["template"]["quickReplies"]} == {("block", "b9")}


def test_only_channels_that_were_asked_for_answer(runs: Path) -> None:
    service = Service("latest", runs, ServeOptions(), AnswerOptions(), PASSWORD)
    with TestClient(build_app(service, Channels(service, {"kakao": "k-1"})), base_url="http://localhost") as client:
        assert client.post("/channels/naver/k-1", json={"event": "open", "user": "u"}).status_code == 404


def test_quick_replies_vote_on_their_reply(runs: Path) -> None:
    with opened(runs, channel_votes=True, kakao_block="b9") as server:
        conversations = server.channels.service.conversations

        def ask(question: str, user: str) -> list[dict[str, Any]]:
            replies: list[dict[str, Any]] = server.kakao(question, user).json()["template"]["quickReplies"]
            return replies

        def press(button: dict[str, Any], user: str) -> str:
            request = skill_request(button["messageText"], user)
            request["action"]["clientExtra"] = button["extra"]
            return said(server.client.post("/channels/kakao/k-1", json=request))

        good, bad = ask(KNOWN.question, "투표1")
        first = good["extra"]["reply"]
        latest = ask("안녕하세요", "투표1")[0]["extra"]["reply"]

        def votes() -> list[str | None]:
            found = [conversations.reply(reply) for reply in (first, latest)]
            return [one.vote for one in found if one]

        assert "고마워요" in press(good, "투표1")
        assert "고마워" not in press(bad, "투표2"), "nobody votes on another's reply"
        assert votes() == ["good", None]
        assert "살펴볼게요" in said(server.kakao(bad["label"], "투표1")), "a label alone is for the latest reply"
        assert votes() == ["good", "bad"]
        other = [{"reply": 1}, {"reply": "x" * 99}, {"reply": first, "vote": "best"}, {"vote": "bad"}]
        for broken in (None, 7, [], *other):
            request = skill_request(KNOWN.question, "투표3")
            request["action"]["clientExtra"] = broken
            assert KNOWN.answer in said(server.client.post("/channels/kakao/k-1", json=request))


def test_naver_votes_by_button(runs: Path) -> None:
    with opened(runs, channel_votes=True) as server:
        answer = server.naver(event="send", user="v", textContent={"text": KNOWN.question}).json()
        good, bad = [button["data"] for button in answer["textContent"]["quickReply"]["buttonList"]]
        assert max(length(button["title"]) for button in (good, bad)) <= 10
        for button in (good, bad):
            pressed = {"text": button["title"], "code": button["code"], "inputType": "button"}
            assert "textContent" in server.naver(event="send", user="v", textContent=pressed).json()
        stored = server.channels.service.conversations.reply(bad["code"].rsplit(":", 1)[1])
        assert stored
        assert stored.vote == "bad"
        foreign = server.naver(event="send", user="other", textContent={**pressed, "code": good["code"]})
        assert "글로" in foreign.json()["textContent"]["text"]


def test_votes_need_a_store(runs: Path) -> None:
    with opened(runs, channel_votes=True, store=False) as server:
        assert "quickReplies" not in server.kakao(KNOWN.question, "아영").json()["template"]


@pytest.mark.parametrize("store", [True, False])
def test_one_process_of_several_works_on_an_event(runs: Path, store: bool) -> None:
    """Two servers of one database get the same events, at once and in both orders."""
    question = f"{KNOWN.question}{'!' * store}"
    with opened(runs, store=store) as one, opened(runs, store=store) as other:

        def replies() -> int:
            return sum(each["replies"] for each in one.kept())

        before = replies()
        with ThreadPoolExecutor(2) as threads:
            received = list(threads.map(lambda server: server.kakao(question, "둘").json(), (one, other)))
        assert KNOWN.answer in str(received[0])
        assert received[0] == received[1]
        typed: dict[str, Any] = {"event": "send", "user": "둘", "textContent": {"text": question}}
        assert KNOWN.answer in one.naver(**typed).json()["textContent"]["text"]
        assert other.naver(**typed).content == b"", "the first one has answered"
        assert replies() == before + 2 * store


def test_late_answers_are_posted_by_one_process(runs: Path) -> None:
    with opened(runs, timeout=0.0) as one, opened(runs, timeout=0.0) as other:
        for server in (one, other):
            assert server.kakao("늦은 질문", callbackUrl=CALLBACK).json()["useCallback"]
        for server in (one, other):
            server.kakao("늦은 질문", callbackUrl=CALLBACK)  # by now it may be answered at once
    assert len(one.posted + other.posted) == 1


def test_a_late_answer_is_posted_once(runs: Path) -> None:
    with opened(runs, timeout=0.0) as server:
        promise = server.kakao(KNOWN.question, callbackUrl=CALLBACK).json()
        assert promise == {"version": "2.0", "useCallback": True, "data": {"text": promise["data"]["text"]}}
        for _ in range(2):
            server.kakao(KNOWN.question, callbackUrl=CALLBACK)  # by now it may be answered at once
        elsewhere = said(server.kakao("안녕", callbackUrl="https://evil.example/x"))
        assert (
            elsewhere
            == said(server.kakao("안녕?"))
            == "대답을 찾는 데 시간이 걸리고 있어요. 잠시 뒤에 다시 물어봐 주세요."
        )
        assert server.naver(event="send", user="u", textContent={"text": "안녕"}).json()["event"] == "send"
    (message,) = server.posted
    assert message.url == CALLBACK
    assert message.body["template"]["outputs"][0]["simpleText"]["text"].endswith(KNOWN.answer)


@pytest.mark.parametrize(
    ("utterance", "received"), [("", "글로"), (" \n ", "글로"), ("가" * 2001, "짧게"), ("\0", ""), ("\ud800", "")]
)
def test_utterances_that_are_no_questions_get_an_answer(server: Server, utterance: str, received: str) -> None:
    assert received in said(server.kakao(utterance, "마영"))


def test_who_asks_too_often_is_told_so(runs: Path) -> None:
    with opened(runs, per_minute=3) as server:
        answers = [said(server.kakao(f"안녕 {number}", "바영")) for number in range(4)]
        assert [number for number, text in enumerate(answers) if "많은 분이" in text] == [3]
        assert "많은 분이" not in said(server.kakao("안녕", "사영"))


def test_who_was_put_off_may_ask_the_same_again(runs: Path) -> None:
    with opened(runs, per_minute=1) as server:
        server.kakao("안녕", "자영")
        assert "많은 분이" in said(server.kakao(KNOWN.question, "자영"))
    with opened(runs) as server:
        assert KNOWN.answer in said(server.kakao(KNOWN.question, "자영"))


BROKEN: list[dict[str, Any]] = [
    {"content": b"{"},
    {"content": b"\xff\xfe"},
    {"content": b"[" * 100_000},
    {"content": b"null"},
    {"content": b""},
    {"json": []},
    {"json": {}},
    {"json": {"userRequest": None, "event": 7}},
    {"json": {"userRequest": {"utterance": 7, "user": {"id": "u"}}, "event": None}},
    {"json": {"userRequest": {"utterance": "?", "user": None}, "event": "send", "user": {}}},
    {"json": {"userRequest": {"utterance": "?", "user": {"id": ""}}, "event": "send", "textContent": "글"}},
    {"json": {"userRequest": {"utterance": "?", "user": {"id": "u" * 501}}, "event": "e" * 101}},
    {"json": {"userRequest": {"utterance": "?", "user": {"id": "u"}, "callbackUrl": 1}, "event": ["send"]}},
    {"content": b'{"userRequest": {"utterance": NaN, "user": {"id": "u"}}, "event": Infinity}'},
    {"content": b"x" * (1 << 20) + b"x"},
    {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
]


@pytest.mark.parametrize("request_", BROKEN, ids=range(len(BROKEN)))
def test_what_is_broken_is_refused(server: Server, request_: dict[str, Any]) -> None:
    request_ = {**request_, "headers": {"Content-Type": "application/json", **request_.get("headers", {})}}
    for path in ("/channels/kakao/k-1", "/channels/naver/n-1"):
        refused = server.client.post(path, **request_)
        assert 400 <= refused.status_code < 500
        assert refused.json()["error"]["message"]


ODD: list[Any] = [
    None,
    True,
    0,
    -1.5,
    1 << 70,
    "",
    "\ud800",
    "\0",
    "가" * 3000,
    [],
    [[]],
    {},
    {"": None},
    "send",
    "vphone",
]


def mutated(value: Any, rng: random.Random) -> Any:
    """The same with something odd in one place, or with a part left out."""
    if not isinstance(value, dict) or not value or rng.random() < 0.2:
        return rng.choice(ODD)
    key = rng.choice(sorted(value))
    return (
        {**value, key: mutated(value[key], rng)} if rng.random() < 0.9 else {k: v for k, v in value.items() if k != key}
    )


def test_mutated_events_never_make_the_server_fail(server: Server) -> None:
    rng, statuses = random.Random(0), set[int]()
    content = {"text": "안녕", "code": "daedap:good:1", "inputType": "button"}
    event = {"event": "send", "user": "변이", "standby": False, "textContent": content, "options": {"inflow": "list"}}
    pressed = {**skill_request("안녕", "변이", callbackUrl=CALLBACK)}
    pressed["action"]["clientExtra"] = {"reply": "1", "vote": "good"}
    for number in range(120):
        channel, body = ("kakao", pressed) if number % 2 else ("naver", event)
        received = server.client.post(
            f"/channels/{channel}/{channel[0]}-1",
            content=json.dumps(mutated(body, rng)),
            headers={"Content-Type": "application/json"},
        )
        statuses.add(received.status_code)
    assert statuses <= {200, 400}


@pytest.mark.parametrize("secret", ["k-2", "n-1", "K-1", "%EA%B0%80", "k-1%00"])
def test_the_secret_is_asked_for(server: Server, secret: str) -> None:
    assert server.kakao("?", secret=secret).status_code == 404
    assert server.client.get("/channels/kakao/k-1").status_code == 405


# ---- Naver TalkTalk ----


@pytest.mark.parametrize(
    "event",
    [
        {"event": "leave", "user": "u"},
        {"event": "friend", "user": "u", "options": {"set": "on"}},
        {"event": "echo", "user": "u", "echoedEvent": "send", "textContent": {"text": KNOWN.question}},
        {"event": "action", "user": "u", "options": {"action": "typingOn"}},
        {"event": "profile", "user": "u", "options": {"nickname": "별명"}},
        {"event": "send", "textContent": {"text": "누구한테?"}},
        {"event": "send", "user": "u", "standby": True, "textContent": {"text": "상담원과 이야기 중"}},
        {"event": "나중에 생길 사건", "user": "u"},
    ],
)
def test_events_that_are_not_answered(server: Server, event: dict[str, Any]) -> None:
    response = server.naver(**event)
    assert (response.status_code, response.content) == (200, b"")


def test_naver_greets_and_answers(server: Server) -> None:
    options = {"inflow": "list", "referer": "https://talk.naver.com/", "friend": False, "under14": False}
    greeting = server.naver(event="open", user="n가영", options=options).json()
    text = greeting["textContent"]["text"]
    assert text.startswith(NOTICE)
    assert len(greeting["textContent"]["quickReply"]["buttonList"]) == 3
    typed = {"text": KNOWN.question, "inputType": "typing"}
    answer = server.naver(event="send", user="n가영", textContent=typed).json()
    assert answer == {"event": "send", "textContent": {"text": KNOWN.answer}}
    pressed = {"text": "1. 첫 질문…", "code": PAIRS[5].question, "inputType": "button"}
    pushed = server.naver(event="send", user="n가영", textContent=pressed)
    assert pushed.json()["textContent"]["text"] == PAIRS[5].answer
    again = server.naver(event="send", user="n가영", textContent=pressed)
    assert (again.status_code, again.content) == (200, b""), "it was answered"
    picture = server.naver(event="send", user="n가영", imageContent={"imageUrl": "http://example.com/a.jpg"})
    assert "글로" in picture.json()["textContent"]["text"]


def test_telephone_numbers_are_not_kept(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(runs) as server, caplog.at_level(logging.DEBUG):
        received = server.naver(
            event="send", user="u", textContent={"text": "010-5555-7777", "inputType": "vphone"}
        ).json()
        assert "저장하지" in received["textContent"]["text"]
    assert "5555" not in caplog.text
    assert all(b"010-5555-7777" not in path.read_bytes() for path in runs.glob("daedap.db*"))
    event = {"event": "send", "user": "u", "textContent": {"text": "5", "inputType": "vphone"}}
    assert read_event(Event.model_validate(event)) == Said("telephone")


def test_late_answers_to_naver_are_sent_with_the_token(runs: Path) -> None:
    with opened(runs, timeout=0.0, naver_token="ct_우리") as server:
        for _ in range(2):
            response = server.naver(event="send", user="al-1", textContent={"text": KNOWN.question})
            assert (response.status_code, response.content) == (200, b"")
    (message,) = server.posted
    assert (message.url, message.headers) == (
        "https://gw.talk.naver.com/chatbot/v1/event",
        {"Authorization": "ct_우리"},
    )
    assert (message.body["user"], message.body["event"]) == ("al-1", "send")
    assert message.body["textContent"]["text"].endswith(KNOWN.answer)


# ---- what both share ----


def test_nothing_is_kept_without_a_store(trained: Run, tmp_path: Path) -> None:
    runs = runs_with(trained, tmp_path)
    with opened(runs, store=False) as server:
        assert NOTICE in said(server.kakao("아주 특별한 문장"))
        assert NOTICE not in said(server.kakao("또 특별한 문장"))
        server.naver(event="send", user="u", textContent={"text": "특별한 문장"})
        assert server.kept() == []
    assert all("특별한".encode() not in path.read_bytes() for path in runs.glob("daedap.db*"))


def test_the_notice_can_be_left_out(runs: Path) -> None:
    with opened(runs, ai_notice=False) as server:
        assert said(server.kakao(KNOWN.question)) == KNOWN.answer


def test_logs_and_metrics_hold_neither_text_nor_secret(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        server.kakao("카나리아가 노래한다", "사람123")
    received = "\n".join(one.getMessage() for one in caplog.records if not one.name.startswith("httpx"))
    assert "/channels/kakao/{secret} 200" in received
    for hidden in ("카나리아", "사람123", "k-1"):
        assert hidden not in received + server.client.get("/metrics").text


def test_an_event_is_worked_on_once_and_then_forgotten(server: Server) -> None:
    async def twice() -> tuple[bool, bool, int, int]:
        calls: list[int] = []
        channels = Channels(server.channels.service, {})  # and the service does not run: the database can't be asked

        async def work() -> Answer:
            calls.append(1)
            await asyncio.sleep(0)
            return Answer("네")

        first, new = channels.once(("같은", "사건"), work)
        second, again = channels.once(("같은", "사건"), work)
        other, _ = channels.once(("다른", "사건"), work)
        answers = await asyncio.gather(first.answer, second.answer, other.answer)
        return new, again, len(calls), len(answers)

    assert asyncio.run(twice()) == (True, False, 2, 3)


class Platform(BaseHTTPRequestHandler):
    """Takes what is posted; redirects, refuses or accepts as the path says."""

    taken: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.path, body))
        self.send_response(302 if self.path.startswith("/moved") else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b'{"success": false, "resultCode": "01"}' if self.path == "/refused" else b"ok")

    def log_message(self, *arguments: Any) -> None:
        pass


def test_posting_follows_no_redirect_and_hears_a_refusal() -> None:
    with HTTPServer(("127.0.0.1", 0), Platform) as listening:
        for _ in range(3):
            threading.Thread(target=listening.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{listening.server_port}"
        received = [post(Message(url + path, {"글": "네"})) for path in ("/fine?a=1", "/moved", "/refused")]
    assert received == ["", "status 302", "code 01"]
    assert [path for path, _ in Platform.taken] == ["/fine?a=1", "/moved", "/refused"]
    assert json.loads(Platform.taken[0][1]) == {"글": "네"}


def test_secrets_are_made_once_and_told(tmp_path: Path) -> None:
    options = ServeOptions(kakao=True, naver=True, allowed_hosts=("chat.example.com",))
    made = channel_secrets(options, tmp_path)
    assert channel_secrets(options, tmp_path) == made
    assert min(map(len, made.values())) >= 20
    assert made["kakao"] != made["naver"]
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    first, second = _channel_lines(options, "http://127.0.0.1:8000", made)
    assert first.endswith(f": https://chat.example.com/channels/kakao/{made['kakao']}")
    assert second.endswith(f": https://chat.example.com/channels/naver/{made['naver']}")
    assert channel_secrets(ServeOptions(), tmp_path) == {}
    assert "--allowed-hosts" in _channel_lines(ServeOptions(kakao=True), "http://127.0.0.1:8000", made)[-1]


# ---- other web pages ----


def test_only_listed_pages_may_show_the_chat(runs: Path) -> None:
    shop = "https://shop.example"
    with opened(runs, embed_origins=(shop, "https://*.shop.example")) as server:
        page = server.client.get("/").headers
        assert f"frame-ancestors {shop} https://*.shop.example; " in page["content-security-policy"]
        assert "x-frame-options" not in page
        for path in ("/admin", "/api/info", "/static/page.js"):
            other = server.client.get(path).headers
            assert "frame-ancestors 'none'" in other["content-security-policy"]
            assert other["x-frame-options"] == "DENY"
        server.client.cookies.clear()
        cookie = server.client.get("/api/info").headers["set-cookie"]
        assert re.search(r"SameSite=none; Secure; Partitioned$", cookie), cookie


def test_without_a_list_nobody_may(server: Server) -> None:
    assert "frame-ancestors 'none'" in server.client.get("/").headers["content-security-policy"]
    server.client.cookies.clear()
    assert "SameSite=lax" in server.client.get("/api/info").headers["set-cookie"]


@pytest.mark.parametrize("origin", ["*", "https://a.example/x", "https://a.example; script-src *", "a.example", "null"])
def test_origins_are_checked(origin: str) -> None:
    with pytest.raises(SettingsError):
        ServeOptions(embed_origins=(origin,))


def test_the_widget_is_served_and_opens_this_servers_page(server: Server) -> None:
    script = server.client.get("/static/widget.js")
    assert (script.status_code, script.headers["content-type"].split(";")[0]) == (200, "text/javascript")
    guide = Path(daedap.__file__).parent.parent / "docs" / "serving.md"
    received = set(re.findall(r"`(data-[a-z-]+)`", guide.read_text(encoding="utf-8")))
    (names,) = re.findall(r"const \{ (.*?) \} = script\.dataset", script.text)
    assert received == {
        "data-" + re.sub("[A-Z]", lambda found: f"-{found[0].lower()}", name) for name in names.split(", ")
    }
