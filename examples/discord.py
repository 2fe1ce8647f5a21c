"""A Discord slash command that is answered by daedap. Besides the standard library it takes PyNaCl, for the signatures.

    pip install pynacl
    daedap serve
    DISCORD_APPLICATION=123 DISCORD_TOKEN=… python examples/discord.py register    # once: the command /ask
    DISCORD_PUBLIC_KEY=… python examples/discord.py        # port 3000, behind a proxy with https

At https://discord.com/developers/applications: General Information has the application's id, its public key and the
place for this server's address (Interactions Endpoint URL); Bot has the token. DAEDAP_URL and DAEDAP_API_KEY name
another server and its key.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

DISCORD = os.environ.get("DISCORD_URL", "https://discord.com/api/v10")
DAEDAP = os.environ.get("DAEDAP_URL", "http://127.0.0.1:8000")
NOTICE = "AI가 답해요. 틀릴 수 있어요."
LATE = "대답을 찾지 못했어요. 잠시 뒤에 다시 물어봐 주세요."
PATIENCE = 2.5  # seconds: Discord waits for 3
LARGEST = 100_000  # bytes of a request
LONGEST = 1900  # characters: Discord takes 2,000
COMMAND = {
    "name": "ask",
    "description": "궁금한 것을 물어보세요.",
    "options": [{"name": "question", "description": "질문", "type": 3, "required": True}],
}


def call(url: str, body: dict[str, Any], authorization: str, timeout: float) -> Any:
    """POST JSON, and read JSON."""
    headers = {"Content-Type": "application/json", "Authorization": authorization, "User-Agent": "DiscordBot (daedap)"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=timeout) as response:
        return json.load(response)


def is_from_discord(key: str, timestamp: str, body: bytes, signature: str) -> bool:
    """Whether Discord has signed a request. It tries with wrong signatures, too, before it takes an address."""
    try:
        VerifyKey(bytes.fromhex(key)).verify(timestamp.encode() + body, bytes.fromhex(signature))
    except (ValueError, BadSignatureError):
        return False
    return True


def answer_to(question: str) -> str:
    """daedap's answer, and the questions that it suggests."""
    asked = {"model": "daedap", "messages": [{"role": "user", "content": question}]}
    key = f"Bearer {os.environ.get('DAEDAP_API_KEY', '')}"
    try:
        (choice,) = call(f"{DAEDAP}/v1/chat/completions", asked, key, PATIENCE)["choices"]
    except (URLError, TimeoutError):
        return LATE
    suggestions = choice.get("daedap", {}).get("suggestions", [])
    return "\n".join([choice["message"]["content"][:LONGEST], *(f"• {one}" for one in suggestions)])[:LONGEST]


def response_to(interaction: dict[str, Any]) -> dict[str, Any]:
    """What Discord shows: 1 is its ping and our pong, 4 a message; flag 64: nobody else sees it, and 4: no previews."""
    if interaction["type"] == 1:
        return {"type": 1}
    given = interaction.get("data", {}).get("options", [])
    questions = [option["value"] for option in given if option["name"] == "question"]
    text = f"{answer_to(questions[0])}\n-# {NOTICE}" if questions and questions[0].strip() else NOTICE
    return {"type": 4, "data": {"content": text, "flags": 64 | 4, "allowed_mentions": {"parse": []}}}


class Interactions(BaseHTTPRequestHandler):
    """Answers the one who asked."""

    def do_POST(self) -> None:
        """Answer a signed request."""
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(int(length)) if length.isdecimal() and int(length) <= LARGEST else b""
        timestamp, signature = (self.headers.get(f"X-Signature-{name}", "") for name in ("Timestamp", "Ed25519"))
        if not is_from_discord(os.environ["DISCORD_PUBLIC_KEY"], timestamp, body, signature):
            self.send_error(401)
            return
        content = json.dumps(response_to(json.loads(body))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def register() -> None:
    """Tell Discord about the command."""
    application, token = os.environ["DISCORD_APPLICATION"], os.environ["DISCORD_TOKEN"]
    call(f"{DISCORD}/applications/{application}/commands", COMMAND, f"Bot {token}", 30)


if __name__ == "__main__":
    if sys.argv[1:] == ["register"]:
        register()
    else:
        ThreadingHTTPServer(("127.0.0.1", 3000), Interactions).serve_forever()
