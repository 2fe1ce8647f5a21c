"""A server and requests that no sane client sends: no 5xx, no stack trace, flat memory.

    python bench/malformed_requests.py --runs runs [--db postgresql://…] [--count 10000]

Bodies that are too large, broken, too deep or of wrong types; broken UTF-8 and HTTP; clients that send slowly or go
away in the middle of a stream. What its OpenAPI schema allows and does not allow is tried by schemathesis (pip
install it where it disturbs nothing: it brings 60 packages):

    schemathesis run http://127.0.0.1:8000/openapi.json --checks not_a_server_error --mode all
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from serve_load import start_server

PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models/daedap", "/v1/none"),
    *("/api/ask", "/api/corrections", "/api/corrections/preview", "/api/comparisons", "/api/owner/login"),
    *(
        "/api/replies/%00/vote",
        "/api/conversations/%ff%fe",
        "/api/comparisons/tally?first=1&second=99999999999999999999",
    ),
    *("/api/admin/runs/1", "/static/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/" + "a" * 5000, "/\u0000"),
)
METHODS = (*("POST",) * 15, "PUT", "GET", "DELETE", "OPTIONS", "HEAD", "BREW")
QUESTION = "안녕"
VALID: dict[str, Any] = {
    "model": "daedap",
    "messages": [{"role": "user", "content": QUESTION}],
    "prompt": QUESTION,
    "input": QUESTION,
    "question": QUESTION,
    "answer": QUESTION,
    "runs": [1, 2],
    "vote": "good",
    "winner": "left",
    "password": "x",
}
WRONG: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        10**40,
        1e308,
        -0.0,
        "",
        "\x00",
        "\ud800",
        "\u202e",
        "가" * 10_000,
        [],
        {},
        [[]],
        [None] * 100,
    ),
    *(
        {"role": "user"},
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": 1, "content": {}}],
        "../../x",
        "'--",
    ),
)
FIELDS = (*VALID, "n", "stop", "seed", "temperature", "top_p", "max_tokens", "stream", "stream_options", "scope", "id")
FIELDS = (*FIELDS, "conversation", "run", "reply", "dimensions", "encoding_format", "tool_choice", "response_format")


def body(rng: random.Random) -> bytes:
    """Something that claims to be JSON."""
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: json.dumps({**VALID, rng.choice(FIELDS): rng.choice(WRONG)}).encode("utf-8", "surrogatepass"),
        lambda: json.dumps({**VALID, **{rng.choice(FIELDS): rng.choice(WRONG) for _ in range(3)}}).encode(),
        lambda: json.dumps({**VALID, "stream": True, rng.choice(FIELDS): rng.choice(WRONG)}).encode(),
        lambda: json.dumps(VALID, ensure_ascii=False).encode()[: rng.randrange(100)],
        lambda: json.dumps(VALID, ensure_ascii=False).encode("utf-16"),
        lambda: json.dumps(VALID, ensure_ascii=False).encode("cp949"),
        lambda: bytes(rng.randrange(256) for _ in range(rng.randrange(300))),
        lambda: rng.choice((b"[", b'{"a":', b'[{"question":')) * rng.choice((100, 5_000, 70_000)),
        lambda: b'{"question": ' + b"9" * 5000 + b"}",
        lambda: b'{"question": NaN, "seed": Infinity}',
        lambda: b"x" * rng.choice((1 << 20, (1 << 20) + 1, 3 << 20)),
        lambda: b"",
    )
    return rng.choices(kinds, (8, 4, 4, 2, 1, 1, 2, 1, 1, 1, 0.1, 1))[0]()


def request(rng: random.Random) -> bytes:
    """A request, mostly with a head that is right."""
    if rng.random() < 0.05:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 400))) + b"\r\n\r\n"
    content = body(rng)
    host = rng.choices(("localhost", "evil.example", "", "[::1", "a" * 3000), (20, 1, 1, 1, 1))[0]
    kind = rng.choices(("application/json", "text/plain", "multipart/form-data", "\xff"), (20, 1, 1, 1))[0]
    length = rng.choices((str(len(content)), "-1", "1e3", "99999999999999999999", "١"), (30, 1, 1, 1, 1))[0]
    head = [f"{rng.choice(METHODS)} {rng.choice(PATHS)} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}"]
    if rng.random() < 0.1:
        head.append("Transfer-Encoding: chunked")
        content = rng.choice((b"zz\r\n", b"ffffffffffffffff\r\n", b"5\r\nabc", b"0\r\n\r\n"))
    else:
        head.append(f"Content-Length: {length}")
    if rng.random() < 0.1:
        head.append(
            rng.choice(("Cookie: daedap_client=" + "é" * 300, "Cookie: daedap_owner=\x01", "X: " + "y" * 70_000))
        )
    return "\r\n".join([*head, "", ""]).encode("utf-8", "replace") + content


def send(port: int, content: bytes, rng: random.Random) -> bytes:
    """The beginning of what comes back, unless the client goes away first; some send slowly, or never all of it."""
    manner = rng.choices(("whole", "pieces", "half", "gone"), (80, 5, 0.5, 15))[0]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        try:
            if manner == "pieces":
                for start in range(0, min(len(content), 400), 20):
                    client.sendall(content[start : start + 20])
                    time.sleep(0.001)
            client.sendall(content[: len(content) // 2] if manner == "half" else content)
            if manner == "gone":
                return b""
            return client.recv(65_536)
        except OSError:
            return b""


@dataclass
class Findings:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Requests that were answered with 5xx or a stack trace."""

    def try_out(self, port: int, turns: range, seed: int) -> None:
        """Send some requests; each turn has its own random numbers, so that it can be repeated."""
        for turn in turns:
            rng = random.Random(seed * 1_000_003 + turn)
            content = request(rng)
            answer = send(port, content, rng).decode("utf-8", "replace")
            status = re.match(r"HTTP/1\.1 (\d+)", answer)
            self.statuses[status[1] if status else "-"] += 1
            if (status and status[1].startswith("5")) or "Traceback" in answer:
                self.wrong.append(f"{turn}: {content[:300]!r} -> {answer[:500]!r}")


def main() -> None:
    """Read the command line; exit with 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--db")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    process, url, log = start_server(given.runs, given.db, "--timeout", "3")
    port, server, findings = int(url.rpartition(":")[2]), psutil.Process(process.pid), Findings()
    for tenth in range(10):
        turns = range(tenth * given.count // 10, (tenth + 1) * given.count // 10)
        threads = [threading.Thread(target=findings.try_out, args=(port, turns[n::8], given.seed)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(
            f"{turns.stop:6} requests, {server.memory_info().rss / 1e6:6.0f} MB, {dict(findings.statuses)}", flush=True
        )
    process.terminate()
    process.wait()
    usual = r"[A-Z]+ \S+ \d+ \d+ ms|reply [0-9a-f]+: |Invalid HTTP request received|The admin page"
    logged = [line.rstrip() for line in log if not re.match(usual, line)]
    print(*findings.wrong, *logged, sep="\n")
    sys.exit(bool(findings.wrong or logged))


if __name__ == "__main__":
    main()
