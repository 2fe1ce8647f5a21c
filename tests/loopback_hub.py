"""The hub's API as far as its client needs it, on the loopback interface: commit, file list and files of a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Hub:
    """Where it listens, and what it was asked for."""

    address: str
    requests_seen: list[str]


@contextmanager
def serve_hub(root: Path) -> Iterator[Hub]:
    """A hub whose models are the folders OWNER/NAME of `root`."""
    requests_seen: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, root, requests_seen)) as server:
        Thread(target=server.serve_forever).start()
        yield Hub(f"http://127.0.0.1:{server.server_port}", requests_seen)
        server.shutdown()


def hub_environment(address: str, cache: Path) -> dict[str, str]:
    """For a new process, as huggingface_hub reads its variables when it is imported."""
    own = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    own |= {"DAEDAP_LANG": "en", "PYTHONIOENCODING": "utf-8"}
    return {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))} | own


class _Handler(BaseHTTPRequestHandler):
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
                {
                    "type": "file",
                    "path": file.relative_to(folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": _etag(file),
                }
                for file in sorted(folder.rglob("*"))
                if file.is_file()
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
