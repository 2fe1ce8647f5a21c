"""The hub on this machine: models in folders `owner/name`, served and downloaded as by a user."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"
LOADING = """
import sys
from daedap.errors import BaseError
from daedap.model.base import load_base
for name in sys.argv[1:]:
    try:
        base = load_base(name)
        print(base.licence, base.digest, type(base.model).__name__)
    except BaseError as error:
        print(error)
"""


def load_apart(names: list[str], endpoint: str, place: Path) -> dict[str, str]:
    """In a new process: huggingface_hub reads its environment variables when imported."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(place / "cache"), "NO_PROXY": "127.0.0.1"}
    own |= {"DAEDAP_LANG": "en", "PYTHONIOENCODING": "utf-8"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", LOADING, *names]
    result = subprocess.run(command, env=environment | own, capture_output=True, encoding="utf-8", check=True)
    return dict(zip(names, result.stdout.splitlines(), strict=True))


class Hub(BaseHTTPRequestHandler):
    """The hub's API as far as its client needs it: commit, file list and files of a model."""

    def __init__(self, root: Path, requests_seen: list[str], *rest: Any) -> None:
        self.root, self.requests_seen = root, requests_seen
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.requests_seen.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        kind, _, name = path.removeprefix("api/models/").partition("/resolve/" if "/resolve/" in path else "/tree/")
        folder = self.root / kind.partition("/revision/")[0]
        if not folder.is_dir():
            self._send(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            self._send_file(folder / name.partition("/")[2])
        else:
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
                for file in sorted(folder.iterdir())
            ]
            about = {"id": kind, "sha": SHA, "siblings": [{"rfilename": file["path"]} for file in files]}
            self._send(json.dumps(files if "/tree/" in path else about).encode())

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _send_file(self, file: Path) -> None:
        self._send(file.read_bytes(), 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": SHA})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No output."""


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve_hub(root: Path) -> Iterator[SimpleNamespace]:
    requests_seen: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, requests_seen)) as server:
        Thread(target=server.serve_forever).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", requests_seen=requests_seen)
        server.shutdown()
