"""The server as a process: the official client, slow clients, kills, two servers with one database."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from conftest import PAIRS, daedap_process
from postgresql import DATABASES, database_url
from serving import PASSWORD, runs_with

from daedap.database.connection import Database
from daedap.database.conversations import ConversationStore
from daedap.database.lessons import LessonStore
from daedap.runs import Run

pytestmark = pytest.mark.slow

KNOWN = PAIRS[20]


class Server:
    """`daedap serve`, at a port of its own."""

    def __init__(self, runs: Path, *options: str) -> None:
        words = ["serve", "--runs", str(runs), "--port", "0", *options]
        words += [] if "--requests-per-minute" in options else ["--requests-per-minute", "0"]
        environment = {**os.environ, "DAEDAP_LANG": "en", "DAEDAP_OWNER_PASSWORD": PASSWORD}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daedap", *words], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr
        self.log: list[str] = []
        found = None
        while found is None:
            line = self.process.stderr.readline()
            assert line, "".join(self.log)
            self.log.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        self.port = int(found[1])
        self.url = found[0]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        self.log.extend(self.process.stderr)

    def end(self, how: int = signal.SIGTERM) -> None:
        """Stop it, and with SIGKILL its workers, too, which would live on."""
        if self.process.poll() is None:
            workers = psutil.Process(self.process.pid).children() if how == signal.SIGKILL else []
            self.process.send_signal(how)
            for worker in workers:
                worker.kill()
        self.process.wait(60)
        self._reader.join(10)
        assert self.process.stderr
        self.process.stderr.close()


@contextmanager
def running(runs: Path, *options: str) -> Iterator[Server]:
    server = Server(runs, *options)
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)


@contextmanager
def visitor(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def eventually(true: Callable[[], bool]) -> None:
    """Wait until it is so; a minute means never."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runs = runs_with(trained, tmp_path_factory.mktemp("process"))
    with running(runs, "--timeout", "3") as server:
        yield server


def test_the_official_client(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    messages: Any = [{"role": "developer", "content": "짧게"}, {"role": "user", "content": KNOWN.question}]
    received = client.chat.completions.create(model="daedap", messages=messages)
    assert received.choices[0].message.content == KNOWN.answer
    assert received.usage
    assert received.choices[0].model_extra
    assert received.choices[0].model_extra["daedap"]["source"] == "retrieved"

    usage: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="daedap", messages=messages, stream=True, stream_options=usage))
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == KNOWN.answer
    assert chunks[-1].usage

    assert client.responses.create(model="daedap", input=KNOWN.question).output_text == KNOWN.answer
    events = list(client.responses.create(model="daedap", input=KNOWN.question, stream=True))
    assert events[-1].type == "response.completed"
    assert client.completions.create(model="daedap", prompt=KNOWN.question).choices[0].text == KNOWN.answer
    assert [model.id for model in client.models.list()] == ["daedap", "daedap-1"]
    assert len(client.embeddings.create(model="daedap-encoder", input=["가", "나"]).data) == 2
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(openai.BadRequestError, match="plain text"):
        client.chat.completions.create(model="daedap", messages=messages, response_format={"type": "json_object"})


def test_langchain(server: Server) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="pip install langchain-openai, which brings 30 packages")
    where: Any = {"base_url": f"{server.url}/v1", "api_key": "unused", "max_retries": 0}
    bot = langchain.ChatOpenAI(model="daedap", temperature=0.3, seed=1, max_tokens=100, **where)
    received = bot.invoke([("system", "짧게"), ("user", "안녕"), ("assistant", "네"), ("user", KNOWN.question)])
    assert (received.content, received.response_metadata["finish_reason"]) == (KNOWN.answer, "stop")
    assert "".join(chunk.content for chunk in bot.stream(KNOWN.question)) == KNOWN.answer
    assert [one.content for one in bot.batch([KNOWN.question, PAIRS[21].question])] == [KNOWN.answer, PAIRS[21].answer]
    responses = langchain.ChatOpenAI(model="daedap", use_responses_api=True, **where)
    assert responses.invoke(KNOWN.question).text == KNOWN.answer
    assert langchain.OpenAI(model="daedap", **where).invoke(KNOWN.question) == KNOWN.answer
    vectors = langchain.OpenAIEmbeddings(model="daedap-encoder", check_embedding_ctx_length=False, **where)
    assert len(vectors.embed_documents(["가", "나"])) == 2


def test_the_llm_command(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="pip install llm")
    model = f"- model_id: 봇\n  model_name: daedap\n  api_base: {server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(model, encoding="utf-8")
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "PYTHONUTF8": "1"}
    for options in ((), ("--no-stream", "-s", "짧게", "-o", "temperature", "0.5", "-o", "seed", "3"), ("-c",)):
        words = [sys.executable, "-m", "llm", "-m", "봇", "--key", "unused", *options, KNOWN.question]
        ended = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", check=False)
        assert ended.stdout.strip() == KNOWN.answer, ended.stderr


def test_the_page_and_the_admin_page_are_there(server: Server) -> None:
    with visitor(server) as client:
        for path in ("/", "/admin"):
            assert client.get(path).headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HT",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /api/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{",
    ],
)
def test_slow_senders_are_let_go(server: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        slow.sendall(sent)
        answer = slow.recv(1000)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> list[str]:
    """Options that name an empty database."""
    url = database_url(request)
    return ["--db", url] if url else []


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_broken_http_leaves_no_stack_trace(server: Server, method: str) -> None:
    head = f"{method} /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(head.encode() + b"zz\r\n")
        while client.recv(1000):
            pass
    with visitor(server) as sane:
        assert sane.get("/health").status_code == 200
    assert not [line for line in server.log if "Traceback" in line or "Fatal" in line]


def test_what_is_acknowledged_survives_a_kill(trained: Run, tmp_path: Path, database: list[str]) -> None:
    runs = runs_with(trained, tmp_path)
    for moment in (3, 11):
        server, kept = Server(runs, *database), list[dict[str, Any]]()
        taught: list[str] = []

        def talk() -> None:
            with visitor(server) as client:  # noqa: B023
                try:
                    for number in range(10_000):
                        reply = client.post("/api/ask", json={"question": f"{KNOWN.question} {number}"}).json()
                        client.put(f"/api/replies/{reply['id']}/vote", json={"vote": "bad"}).raise_for_status()
                        lesson = {"reply": reply["id"], "answer": "다르게"}
                        received = client.post("/api/corrections", json=lesson).json()
                        kept.append({**reply, "vote": "bad"})  # noqa: B023
                        taught.append(received["lesson"]["id"])  # noqa: B023
                except httpx2.TransportError:
                    pass  # killed

        talkers = [threading.Thread(target=talk) for _ in range(3)]
        for talker in talkers:
            talker.start()
        eventually(lambda: len(kept) >= moment)  # noqa: B023
        server.end(signal.SIGKILL)
        for talker in talkers:
            talker.join()
        opened = Database.open(database[1] if database else None, runs)
        store, lessons = ConversationStore(opened), {one.id for one in LessonStore(opened).all()}
        assert [asdict(one) for reply in kept if (one := store.reply(reply["id"]))] == kept
        assert set(taught) <= lessons
        if opened.is_sqlite:
            with opened.read() as connection:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        opened.close()


def test_two_servers_and_one_database(trained: Run, tmp_path: Path, database: list[str]) -> None:
    """No sticky sessions: every request may go to either."""
    runs = runs_with(trained, tmp_path)
    with running(runs, *database) as first, running(runs, *database) as second:
        with visitor(first) as here, visitor(second) as there:
            here.post("/api/owner/login", json={"password": PASSWORD}).raise_for_status()
            here.get("/api/info").raise_for_status()  # which makes it a visitor
            there.cookies = here.cookies
            correction = {"question": KNOWN.question, "answer": "새 대답"}
            assert there.post("/api/corrections", json=correction).json()["effective"] is True, "the owner at both"
            asked = here.post("/api/ask", json={"question": KNOWN.question}).json()

            def answer() -> dict[str, Any]:
                talk = {"question": KNOWN.question, "conversation": asked["conversation"]}
                reply: dict[str, Any] = here.post("/api/ask", json=talk).json()
                return reply

            eventually(lambda: answer()["answer"] == "새 대답")
            vote = there.put(f"/api/replies/{asked['id']}/vote", json={"vote": "good"})
            assert vote.status_code == 200
            replies = there.get(f"/api/conversations/{asked['conversation']}").json()["replies"]
            assert (replies[0]["vote"], replies[-1]["source"]) == ("good", "lesson")
            hits = there.get("/api/admin/lessons").json()["lessons"][0]["hits"]
            assert hits == sum(reply["source"] == "lesson" for reply in replies)
        assert not [line for line in first.log + second.log if "failed" in line]


def test_workers_count_together(trained: Run, tmp_path: Path) -> None:
    """Limits, and metrics, which stay right when a worker is killed."""
    runs = runs_with(trained, tmp_path)
    with running(runs, "--workers", "2", "--requests-per-minute", "3") as server:
        statuses = [httpx2.get(f"{server.url}/api/runs", timeout=60).status_code for _ in range(16)]
        assert sorted(statuses) == [200] * 3 + [429] * 13

        def counted() -> bool:
            received = httpx2.get(f"{server.url}/metrics", timeout=60).text
            return (
                'daedap_requests_total{route="/api/runs",status="200"} 3.0' in received
                and 'daedap_requests_total{route="-",status="429"} 13.0' in received
                and "daedap_waiting 0.0" in received
            )

        assert counted()
        workers = psutil.Process(server.process.pid).children()
        answering = [one for one in workers if "resource_tracker" not in " ".join(one.cmdline())]
        assert len(answering) == 2
        answering[0].kill()
        psutil.wait_procs(answering[:1], 60)
        eventually(counted)


def test_a_new_run_is_taken_and_a_stop_is_gentle(trained: Run, tmp_path: Path) -> None:
    runs = runs_with(trained, tmp_path)
    with running(runs, "--watch") as server, visitor(server) as client:
        assert client.get("/ready").json()["run"] == 1
        (runs / "0002").symlink_to(trained.folder.resolve(), target_is_directory=True)
        eventually(lambda: client.get("/ready").json()["run"] == 2)
        with client.stream("POST", "/api/ask", json={"question": KNOWN.question, "stream": True}) as answer:
            server.process.send_signal(signal.SIGTERM)
            text = answer.read().decode()
        assert "event: done" in text
        client.close()
        server.end()
    assert not [line for line in server.log if "Traceback" in line or "failed" in line]


def test_what_can_not_be_served_is_told(trained: Run, tmp_path: Path) -> None:
    runs = runs_with(trained, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        for options, received in (
            (["--host", "0.0.0.0"], "without a key"),
            (["--port", port], "can't listen there"),
            (["--watch", "--run", "1"], "Use --run latest"),
            (["--run", "7"], "no such run"),
            (["--port", "70000"], "must lie between"),
        ):
            ended = daedap_process("serve", "--runs", str(runs), *options, folder=tmp_path)
            assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
            assert received in ended.stderr
