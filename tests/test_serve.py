"""The page's API: ask, vote, correct, look back, delete, compare; the admin page; who is let in."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PAIRS
from postgresql import DATABASES, database_url
from serving import PASSWORD, ask, log_in, runs_with, served, someone_else
from starlette.testclient import TestClient

from daedap.runs import Run

KNOWN = PAIRS[3]
STRANGE = "양자역학을 설명해 봐"


@pytest.fixture(scope="module")
def runs(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs_with(trained, tmp_path_factory.mktemp("serve"), copies=2)


@pytest.fixture(scope="module", params=DATABASES)
def server(request: pytest.FixtureRequest, runs: Path) -> Iterator[TestClient]:
    with served(runs, requests_per_minute=0, db=database_url(request)) as client:
        yield client


@pytest.fixture
def client(server: TestClient) -> TestClient:
    """A new visitor."""
    someone_else(server)
    return server


def events(text: str) -> list[tuple[str, Any]]:
    """Name and data of each event of a stream."""
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)
    return [(name, json.loads(data)) for name, data in found]


def test_info(client: TestClient) -> None:
    info = client.get("/api/info").json()
    assert (info["run"], info["language"], info["ai_notice"], info["stores"], info["owner"]) == (
        2,
        "ko",
        True,
        True,
        False,
    )
    assert len(info["examples"]) == 4
    assert info["pairs"] == len(PAIRS), "held-out rows are known, too"
    assert client.get("/ready").json() == {"status": "ready", "run": 2}


def test_a_conversation_is_kept_and_belongs_to_who_had_it(client: TestClient) -> None:
    first = ask(client, KNOWN.question)
    assert (first["answer"], first["source"], first["run"]) == (KNOWN.answer, "retrieved", 2)
    assert first["evidence"]["question"] == KNOWN.question
    second = ask(client, STRANGE, conversation=first["conversation"])
    assert second["source"] == "fallback"
    url = f"/api/conversations/{first['conversation']}"
    assert [reply["id"] for reply in client.get(url).json()["replies"]] == [first["id"], second["id"]]
    (listed,) = client.get("/api/conversations").json()["conversations"]
    assert (listed["title"], listed["replies"]) == (KNOWN.question, 2)

    mine = client.cookies["daedap_client"]
    someone_else(client)
    for refused in (
        client.get(url),
        client.delete(url),
        client.post("/api/ask", json={"question": "뭐래?", "conversation": first["conversation"]}),
        client.put(f"/api/replies/{first['id']}/vote", json={"vote": "bad"}),
        client.post("/api/corrections", json={"reply": first["id"], "answer": "다른 말"}),
    ):
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/api/conversations").json() == {"conversations": []}

    client.cookies.clear()
    client.cookies.set("daedap_client", mine)
    assert client.delete(url).json() == {"deleted": 1}
    assert client.get(url).status_code == 404


def test_a_stream_is_the_same_reply_in_pieces(client: TestClient) -> None:
    answer = client.post("/api/ask", json={"question": KNOWN.question, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "daedap_client" in answer.cookies
    (start, started), *texts, (done, reply) = events(answer.text)
    assert (start, done) == ("start", "done")
    assert "".join(data["text"] for _, data in texts) == reply["answer"] == KNOWN.answer
    assert started == {"id": reply["id"], "conversation": reply["conversation"], "run": 2}
    assert client.get(f"/api/conversations/{reply['conversation']}").json()["replies"] == [reply]


def test_the_same_id_is_answered_once(client: TestClient) -> None:
    once = ask(client, KNOWN.question, id="0123456789abcdef")
    assert ask(client, KNOWN.question, id="0123456789abcdef") == once
    assert client.get("/api/conversations").json()["conversations"][0]["replies"] == 1


def test_votes(client: TestClient) -> None:
    reply = ask(client, KNOWN.question)
    for vote in ("bad", "good", None):
        assert client.put(f"/api/replies/{reply['id']}/vote", json={"vote": vote}).json()["vote"] == vote
        assert client.get(f"/api/conversations/{reply['conversation']}").json()["replies"][0]["vote"] == vote
    assert client.put(f"/api/replies/{reply['id']}/vote", json={"vote": "perhaps"}).status_code == 400


def test_a_visitors_correction_waits_for_the_owner(client: TestClient) -> None:
    reply = ask(client, "주차장이 있습니까")
    lesson = {"id": "11111111-aaaa", "reply": reply["id"], "answer": "지하에 있어요. 010-1234-5678", "scope": "exact"}
    received = client.post("/api/corrections", json=lesson).json()
    assert received["effective"] is False
    assert received["lesson"]["answer"] == "지하에 있어요. ***-****-****"
    assert (received["lesson"]["state"], received["lesson"]["masked"]) == ("pending", True)
    assert client.post("/api/corrections", json=lesson).json() == received, "a repeated request teaches nothing new"
    assert ask(client, "주차장이 있습니까")["source"] != "lesson"
    assert client.get("/api/admin/lessons").status_code == 401

    log_in(client)
    (waiting,) = client.get("/api/admin/lessons?state=pending").json()["lessons"]
    assert (waiting["reply"], waiting["origin"], waiting["was"]) == (reply["id"], "visitor", reply["answer"])
    accepted = client.post(f"/api/admin/lessons/{waiting['id']}/accept", json={"answer": "지하 2층이요."}).json()
    assert (accepted["state"], accepted["replaces"]) == ("accepted", waiting["id"])
    now = ask(client, "주차장이 있습니까?")
    assert (now["answer"], now["source"], now["lesson"]) == ("지하 2층이요.", "lesson", accepted["id"])
    assert client.post(f"/api/admin/lessons/{waiting['id']}/undo", json={}).status_code == 409

    client.post(f"/api/admin/lessons/{accepted['id']}/undo", json={})
    assert ask(client, "주차장이 있습니까")["source"] != "lesson"
    states = {one["id"]: one for one in client.get("/api/admin/lessons").json()["lessons"]}
    assert states[waiting["id"]]["state"] == "pending", "the visitor's own words wait again"
    assert (states[accepted["id"]]["state"], states[accepted["id"]]["hits"]) == ("undone", 1)
    assert client.post(f"/api/admin/lessons/{waiting['id']}/reject", json={}).json()["state"] == "rejected"


def test_the_owners_correction_is_in_force_at_once(client: TestClient) -> None:
    log_in(client)
    reply = ask(client, KNOWN.question)
    correction = {"reply": reply["id"], "answer": "이제는 달라요.", "scope": "similar"}
    shown = client.post("/api/corrections/preview", json=correction).json()
    assert shown["conflict"] == {"kind": "row", "question": KNOWN.question, "answer": KNOWN.answer, "id": None}
    assert {"known", "asked"} == {caught["kind"] for caught in shown["catches"]}
    assert shown["near"]
    assert client.get("/api/admin/lessons?state=accepted").json() == {"lessons": []}, "a preview teaches nothing"
    taught = client.post("/api/corrections", json=correction).json()
    assert taught["effective"] is True
    now = ask(client, KNOWN.question)
    assert (now["answer"], now["source"]) == ("이제는 달라요.", "lesson")
    chat = {"messages": [{"role": "user", "content": KNOWN.question}]}
    (choice,) = client.post("/v1/chat/completions", json=chat).json()["choices"]
    assert choice["daedap"]["lesson"] == taught["lesson"]["id"]
    client.post(f"/api/admin/lessons/{taught['lesson']['id']}/undo", json={})
    assert ask(client, KNOWN.question)["answer"] == KNOWN.answer


def test_visitors_do_not_see_what_others_asked(client: TestClient) -> None:
    ask(client, "아무개의 비밀 질문")
    someone_else(client)
    shown = client.post("/api/corrections/preview", json={"question": "아무개의 비밀 질문", "answer": "네"}).json()
    assert shown["catches"] == []


def test_what_was_not_understood_is_grouped_and_sorted(client: TestClient) -> None:
    for question in ("적립금 양도 되나요", "적립금 양도되나요?", "적립금 양도 가능한가요?", "ㅁㄴㅇㄹ 와이파이"):
        ask(client, question)
    log_in(client)
    groups = client.get("/api/admin/unanswered").json()["groups"]
    assert [group["count"] for group in groups] == sorted((group["count"] for group in groups), reverse=True)
    mine = next(group for group in groups if group["question"].startswith("적립금"))
    assert mine["count"] == 3
    assert mine["reason"] == "fallback"
    asked = [one["question"] for one in mine["questions"]]
    assert client.post("/api/admin/unanswered/dismiss", json={"questions": asked}).json() == {"dismissed": 2}
    left = client.get("/api/admin/unanswered").json()["groups"]
    assert not any(group["question"].startswith("적립금") for group in left)


def test_two_runs_are_compared_blindly(client: TestClient) -> None:
    shown = client.post("/api/comparisons", json={"question": KNOWN.question, "runs": [1, 2]}).json()
    assert shown["same"] is True
    assert "run" not in json.dumps({**shown, "id": ""}), "nothing tells which run is which"
    received = client.put(f"/api/comparisons/{shown['id']}", json={"winner": "left"}).json()
    assert {received["left"], received["right"]} == {1, 2}
    assert received["winner"] == received["left"]
    assert sum(received["tally"]["wins"]) == 1
    assert client.get("/api/comparisons/tally?first=1&second=2").json() == received["tally"]
    someone_else(client)
    assert client.put(f"/api/comparisons/{shown['id']}", json={"winner": "right"}).status_code == 404


def test_other_runs_can_be_asked(client: TestClient) -> None:
    assert [run["number"] for run in client.get("/api/runs").json()["runs"]] == [2, 1]
    assert ask(client, KNOWN.question, run=1)["run"] == 1
    assert client.post("/api/ask", json={"question": "?", "run": 9}).status_code == 404
    assert client.post("/api/ask", json={"question": "?", "run": "../../etc"}).status_code == 400


def test_the_admin_page(client: TestClient) -> None:
    reply = ask(client, STRANGE)
    for path in ("overview", "runs", "runs/1", "conversations", "unanswered", "lessons", "lessons.csv", "audit"):
        assert client.get(f"/api/admin/{path}").status_code == 401
    wrong = client.post("/api/owner/login", json={"password": "모름"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "unauthorized")
    log_in(client)
    assert client.get("/api/info").json()["owner"] is True
    overview = client.get("/api/admin/overview").json()
    assert overview["replies"] == sum(overview["sources"].values()) > 0
    assert [run["state"] for run in client.get("/api/admin/runs").json()["runs"]] == ["complete"] * 2
    run = client.get("/api/admin/runs/1").json()
    assert run["curves"]["train"]
    assert run["scores"]["bot"]["all"]
    talks = client.get("/api/admin/conversations?only=fallback&limit=1&text=양자").json()
    assert talks["conversations"][0]["id"] == reply["conversation"]
    client.get(f"/api/admin/conversations/{reply['conversation']}")
    entries = client.get("/api/admin/audit").json()["entries"]
    assert entries[0]["action"] == "read_conversation"
    assert {"login", "login_failed"} <= {entry["action"] for entry in entries}
    assert "양자" not in json.dumps(entries, ensure_ascii=False)
    client.post("/api/owner/logout", json={})
    assert client.get("/api/admin/overview").status_code == 401


def test_wrong_passwords_are_limited(runs: Path) -> None:
    with served(runs) as client:
        statuses = [client.post("/api/owner/login", json={"password": "x"}).status_code for _ in range(7)]
        assert statuses == [401] * 5 + [429] * 2
        assert client.post("/api/owner/login", json={"password": PASSWORD}).status_code == 429


# ---- who is let in ----


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "192.168.0.7"])
def test_another_host_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/info", "/v1/models", "/health", "/nowhere"):
        refused = client.get(path, headers={"Host": host})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_this_machine_is_known(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    for path in ("/api/ask", "/v1/chat/completions", "/api/owner/login"):
        refused = client.post(path, json={}, headers=headers)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("path", "kept"),
    [("/", "no-cache"), ("/admin", "no-cache"), ("/static/page.js", "no-cache"), ("/api/info", "no-store")],
)
def test_how_long_browsers_keep_it(client: TestClient, path: str, kept: str) -> None:
    first = client.get(path)
    assert (first.status_code, first.headers["cache-control"]) == (200, kept)
    if kept == "no-cache":
        again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert again.headers["cache-control"] == kept


def test_pages_that_are_allowed(runs: Path) -> None:
    origin, chat = "https://shop.example", {"messages": [{"role": "user", "content": "안녕"}]}
    with served(runs, allowed_origins=(origin, "https://other.example"), allowed_hosts=("chat.example",)) as client:
        before = client.options("/v1/chat/completions", headers={"Origin": origin, "Host": "chat.example"})
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (204, origin)
        answer = client.post("/v1/chat/completions", json=chat, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        assert "Origin" in answer.headers["vary"]
        assert client.post("/api/ask", json={"question": "?"}, headers={"Origin": origin}).status_code == 403


def test_a_public_server_wants_a_key(runs: Path) -> None:
    with served(runs, host="0.0.0.0", api_key="하나, two") as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "two"},
            {"Authorization": "Basic two"},
        ):
            refused = client.get("/v1/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert client.get("/v1/models", headers={"Authorization": "Bearer two"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer two", "Host": "x.example"}).status_code == 403
        assert client.get("/health", headers={"Host": "192.168.0.7:8000"}).status_code == 200
        assert client.get("/api/info").json()["choose_run"] is False
        assert len(client.get("/api/runs").json()["runs"]) == 1
        assert client.post("/api/ask", json={"question": "?", "run": 1}).status_code == 403
        assert client.post("/api/comparisons", json={"question": "?", "runs": [1, 2]}).status_code == 403
        log_in(client)
        assert ask(client, KNOWN.question, run=1)["run"] == 1


def test_who_asks_too_often_is_told_when_to_come_back(runs: Path) -> None:
    with served(runs, requests_per_minute=3) as client:
        statuses = [client.get("/api/runs").status_code for _ in range(5)]
        assert statuses == [200] * 3 + [429] * 2
        assert int(client.get("/api/runs").headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200


BROKEN: list[tuple[dict[str, Any], int]] = [
    ({"content": b"{"}, 400),
    ({"content": b"\xff\xfe{}"}, 400),
    ({"content": b"[" * 100_000}, 400),
    ({"content": b'{"question": ' + b'{"a":' * 50_000}, 400),
    ({"content": b"null"}, 400),
    ({"content": b"[]"}, 400),
    ({"content": b'"text"'}, 400),
    ({"json": {"question": None}}, 400),
    ({"json": {"question": 7}}, 400),
    ({"json": {"question": ""}}, 400),
    ({"json": {"question": " \n"}}, 400),
    ({"json": {"question": "가" * 2001}}, 400),
    ({"content": b'{"question": "\\ud800"}'}, 400),
    ({"json": {"question": "?", "conversation": "../x"}}, 400),
    ({"json": {"question": "?", "run": 10**30}}, 400),
    ({"json": {"question": "?", "run": 1.5}}, 400),
    ({"content": b"x" * (1 << 20) + b"x"}, 413),
    ({"content": b'{"question": "?"}', "headers": {"Content-Type": "text/plain"}}, 415),
]


@pytest.mark.parametrize(("request_", "status"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_broken_is_refused(client: TestClient, request_: dict[str, Any], status: int) -> None:
    request_ = {**request_, "headers": {"Content-Type": "application/json", **request_.get("headers", {})}}
    for path in ("/api/ask", "/v1/chat/completions"):
        refused = client.post(path, **request_)
        assert refused.status_code == status
        assert refused.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "path",
    [
        "/api/comparisons/tally?first=1&second=-60572299791459511698172191496478916608",
        "/api/admin/conversations?text=%00",
        "/api/admin/conversations?before=%00",
        "/api/conversations/%00",
        "/api/admin/runs/99999999999999999999999",
    ],
)
def test_values_that_no_database_holds(client: TestClient, path: str) -> None:
    app: Any = client.app
    client.cookies.set("daedap_owner", app.app.state.service.sessions.begin())
    assert client.get(path).status_code < 500


def test_a_failure_has_the_shape_of_all_errors(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("카나리아")

    app: Any = client.app
    app.app.router.add_api_route("/fails", fail)
    failed = client.get("/fails")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal")
    assert "카나리아" not in failed.text + caplog.text
    assert "failed: RuntimeError at test_serve.py" in caplog.text


@pytest.mark.parametrize("text", ["\\u0000 안녕", "😀" * 300, "<script>alert(1)</script>", "'; DROP TABLE replies"])
def test_strange_texts_are_just_texts(client: TestClient, text: str) -> None:
    body = f'{{"question": "{text}"}}'.encode()
    reply = client.post("/api/ask", content=body, headers={"Content-Type": "application/json"}).json()
    assert reply["answer"]
    kept = client.get(f"/api/conversations/{reply['conversation']}").json()
    assert kept["replies"][0]["question"] == reply["question"]


def test_every_response_says_what_a_page_may_load(client: TestClient) -> None:
    for path in ("/", "/api/info", "/v1/nothing", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_logs_hold_no_text(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    canary = "카나리아가 노래한다 010-9999-8888"
    with caplog.at_level(logging.DEBUG):
        reply = ask(client, canary)
        client.post("/api/corrections", json={"reply": reply["id"], "answer": f"{canary}!"})
        client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": canary}]})
        client.post("/api/ask", json={"question": canary, "run": canary})
        client.get(f"/api/admin/conversations?text={canary}")
    received = "\n".join(
        one.getMessage() for one in caplog.records if not one.name.startswith("httpx")
    )  # the client's own
    assert f"reply {reply['id']}: {len(canary)} characters" in received
    assert "카나리아" not in received
    assert "9999" not in received


def test_metrics(client: TestClient) -> None:
    ask(client, KNOWN.question)
    page = client.get("/metrics").text
    assert 'daedap_replies_total{source="retrieved"}' in page
    assert 'daedap_requests_total{route="/api/ask",status="200"}' in page


# ---- what is kept ----


def test_without_a_store_nothing_is_kept(trained: Run, tmp_path: Path) -> None:
    runs = runs_with(trained, tmp_path)
    with served(runs, store=False) as client:
        reply = ask(client, "아주 특별한 문장이에요")
        assert reply["conversation"] is None
        assert client.put(f"/api/replies/{reply['id']}/vote", json={"vote": "bad"}).status_code == 404
        assert client.get("/api/conversations").json() == {"conversations": []}
    assert all("특별한".encode() not in path.read_bytes() for path in runs.glob("daedap.db*"))


def test_programs_are_kept_only_where_wanted(trained: Run, tmp_path: Path) -> None:
    runs, chat = runs_with(trained, tmp_path), {"messages": [{"role": "user", "content": STRANGE}]}
    for store_api, count in ((False, 0), (True, 1)):
        with served(runs, store_api=store_api) as client:
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
            log_in(client)
            assert len(client.get("/api/admin/conversations").json()["conversations"]) == count
