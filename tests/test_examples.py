"""The examples, against stand-ins of the messenger and of the service."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from nacl.signing import SigningKey

EXAMPLES = Path(__file__).parent.parent / "examples"
UPDATES = [
    {"update_id": 7, "message": {"chat": {"id": 1}, "text": "/start"}},
    {"update_id": 8, "message": {"chat": {"id": 1}, "text": "배송 언제?"}},
    {"update_id": 9, "message": {"chat": {"id": 2}, "photo": []}},
    {"update_id": 10, "message": {"chat": {"id": 2}, "text": "고장"}},
    {"update_id": 11, "message": {"chat": {"id": 3}, "text": "음"}},
]


class StandIn(BaseHTTPRequestHandler):
    """Telegram, Discord and daedap on one port."""

    sent: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, received = 200, self.received(body)
        if received is None:
            status = 503
        content = json.dumps(received).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def received(self, body: dict[str, Any]) -> Any:
        if self.path == "/bot1:a/getUpdates":
            return {"ok": True, "result": [each for each in UPDATES if int(str(each["update_id"])) >= body["offset"]]}
        if self.path in ("/bot1:a/sendMessage", "/applications/12/commands"):
            self.sent.append({**body, "from": self.headers.get("Authorization")})
            return {"ok": True}
        assert self.path == "/v1/chat/completions"
        question = body["messages"][-1]["content"]
        suggestions = ["배송은 언제 오나요?"] if question == "음" else []
        choice = {"message": {"content": f"{question}!"}, "daedap": {"suggestions": suggestions}}
        return None if question == "고장" else {"choices": [choice]}

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    StandIn.sent.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_telegram(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_URL", url)
    telegram = example("telegram")
    assert telegram.poll(f"{url}/bot1:a", 0) == 12
    assert telegram.poll(f"{url}/bot1:a", 12) == 12
    start, answer, unsure = StandIn.sent
    assert start["text"] == telegram.NOTICE
    assert answer == {"chat_id": 1, "text": "배송 언제?!", "from": None}
    assert (unsure["chat_id"], unsure["reply_markup"]["keyboard"]) == (3, [[{"text": "배송은 언제 오나요?"}]])


def test_slack(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_URL", url)
    monkeypatch.setenv("SLACK_SIGNING_SECRET", "비밀")
    slack = example("slack")
    with ThreadingHTTPServer(("127.0.0.1", 0), slack.SlashCommand) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"

        def command(text: str, *, at: float | None = None, secret: str = "비밀") -> dict[str, Any]:
            body, stamp = urlencode({"command": "/ask", "text": text}).encode(), str(int(at or time.time()))
            signed = hmac.new(secret.encode(), b"v0:" + stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
            headers = {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={signed}"}
            with urlopen(Request(address, body, headers)) as response:
                received: dict[str, Any] = json.load(response)
                return received

        assert command("음")["text"] == f"음!\n• 배송은 언제 오나요?\n_{slack.NOTICE}_"
        assert command("고장")["text"].startswith(slack.LATE)
        assert command("")["text"] == slack.NOTICE
        for forged in ({"secret": "남의 것"}, {"at": time.time() - 400}):
            with pytest.raises(HTTPError, match="401"):
                command("음", **forged)
        server.shutdown()


def test_discord(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, stranger = SigningKey.generate(), SigningKey.generate()
    for name, value in {
        "DAEDAP_URL": url,
        "DISCORD_URL": url,
        "DISCORD_APPLICATION": "12",
        "DISCORD_TOKEN": "t",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISCORD_PUBLIC_KEY", key.verify_key.encode().hex())
    discord = example("discord")
    discord.register()
    (command,) = StandIn.sent
    assert (command["name"], command["from"]) == ("ask", "Bot t")
    with ThreadingHTTPServer(("127.0.0.1", 0), discord.Interactions) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"

        def interact(interaction: dict[str, Any], signed_by: SigningKey = key) -> dict[str, Any]:
            body, stamp = json.dumps(interaction).encode(), str(int(time.time()))
            signature = signed_by.sign(stamp.encode() + body).signature.hex()
            headers = {"X-Signature-Timestamp": stamp, "X-Signature-Ed25519": signature}
            with urlopen(Request(address, body, headers)) as response:
                received: dict[str, Any] = json.load(response)
                return received

        def asked(question: str) -> str:
            options = [{"name": "question", "type": 3, "value": question}]
            received = interact({"type": 2, "data": {"name": "ask", "options": options}})
            assert (received["type"], received["data"]["allowed_mentions"]) == (4, {"parse": []})
            return str(received["data"]["content"])

        assert interact({"type": 1}) == {"type": 1}
        assert asked("음") == f"음!\n• 배송은 언제 오나요?\n-# {discord.NOTICE}"
        assert asked("고장").startswith(discord.LATE)
        assert asked(" ") == discord.NOTICE
        assert len(asked("가" * 4000)) <= 2000
        with pytest.raises(HTTPError, match="401"):
            interact({"type": 1}, stranger)
        server.shutdown()
