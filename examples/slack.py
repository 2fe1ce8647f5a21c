"""A Slack slash command that is answered by daedap, by the standard library alone.

    daedap serve
    SLACK_SIGNING_SECRET=… python examples/slack.py        # port 3000, behind a proxy with https

At https://api.slack.com/apps: Slash Commands, a command like /ask with this server's address; the secret is under Basic
Information. DAEDAP_URL and DAEDAP_API_KEY name another server and its key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError
from urllib.parse import parse_qs
from urllib.request import Request, urlopen

DAEDAP = os.environ.get("DAEDAP_URL", "http://127.0.0.1:8000")
NOTICE = "AI가 답해요. 틀릴 수 있어요."
LATE = "대답을 찾지 못했어요. 잠시 뒤에 다시 물어봐 주세요."
PATIENCE = 2.5  # seconds: Slack waits for 3
LARGEST = 100_000  # bytes of a request


def is_from_slack(secret: str, timestamp: str, body: bytes, signature: str) -> bool:
    """Whether Slack has signed a request, within the last five minutes."""
    if not timestamp.isascii() or not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > 300:
        return False
    digest = hmac.new(secret.encode(), b"v0:" + timestamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(f"v0={digest}".encode(), signature.encode())


def answer_to(question: str) -> str:
    """daedap's answer, and the questions that it suggests."""
    asked = json.dumps({"model": "daedap", "messages": [{"role": "user", "content": question}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('DAEDAP_API_KEY', '')}"}
    try:
        with urlopen(Request(f"{DAEDAP}/v1/chat/completions", asked, headers), timeout=PATIENCE) as response:
            (choice,) = json.load(response)["choices"]
    except (URLError, TimeoutError):
        return LATE
    suggestions = choice.get("daedap", {}).get("suggestions", [])
    return "\n".join([choice["message"]["content"], *(f"• {one}" for one in suggestions)])


class SlashCommand(BaseHTTPRequestHandler):
    """Answers the one who asked; nobody else sees it."""

    def do_POST(self) -> None:
        """Answer a signed request."""
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(int(length)) if length.isdecimal() and int(length) <= LARGEST else b""
        names = ("X-Slack-Request-Timestamp", "X-Slack-Signature")
        timestamp, signature = (self.headers.get(name, "") for name in names)
        if not is_from_slack(os.environ["SLACK_SIGNING_SECRET"], timestamp, body, signature):
            self.send_error(401)
            return
        question = parse_qs(body.decode("utf-8", "replace")).get("text", [""])[0]
        text = f"{answer_to(question)}\n_{NOTICE}_" if question.strip() else NOTICE
        content = json.dumps({"response_type": "ephemeral", "text": text}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 3000), SlashCommand).serve_forever()
