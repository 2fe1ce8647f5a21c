"""Servers for tests: in this process, over a trained run that lies in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from daedap.config import AnswerOptions
from daedap.runs import Run
from daedap.serve.app import build_app
from daedap.serve.options import ServeOptions
from daedap.serve.service import Service

PASSWORD = "열려라 참깨"


def runs_with(run: Run, folder: Path, *, copies: int = 1) -> Path:
    """A folder of runs that holds this one under the numbers 1, 2, …; the database will lie beside them."""
    runs = folder / "runs"
    runs.mkdir()
    for number in range(1, copies + 1):
        (runs / f"{number:04d}").symlink_to(run.folder.resolve(), target_is_directory=True)
    return runs


@contextmanager
def served(runs: Path, **options: Any) -> Iterator[TestClient]:
    """A client of a server; its cookies make it one visitor."""
    service = Service("latest", runs, ServeOptions(**options), AnswerOptions(), PASSWORD)
    with TestClient(build_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def log_in(client: TestClient) -> None:
    """Become the owner."""
    assert client.post("/api/owner/login", json={"password": PASSWORD}).json() == {"owner": True}


def someone_else(client: TestClient) -> None:
    """Become a visitor who was never here."""
    client.cookies.clear()


def ask(client: TestClient, question: str, **more: Any) -> dict[str, Any]:
    """A reply."""
    answer = client.post("/api/ask", json={"question": question, **more})
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply
