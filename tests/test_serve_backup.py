"""Backup and restore with the commands of docs/deploy.md, while a server runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PAIRS
from postgresql import new_database
from serving import ask, log_in, runs_with, served

from daedap.runs import Run

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parent.parent / "docs" / "deploy.md"
KNOWN = PAIRS[7]


def command(program: str, names: dict[str, str]) -> list[str]:
    """A command of the guide, with other names."""
    (found,) = re.findall(rf"`({program} [^`]+)`", GUIDE.read_text(encoding="utf-8"))
    for name, other in names.items():
        assert name in found
        found = found.replace(name, other)
    return shlex.split(found)


def run(words: list[str]) -> None:
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_sqlite(trained: Run, tmp_path: Path) -> None:
    runs, copy = runs_with(trained, tmp_path), tmp_path / "backup.db"
    with served(runs) as client:
        reply = ask(client, KNOWN.question)
        run(command("sqlite3", {"runs/daedap.db": str(runs / "daedap.db"), "backup.db": str(copy)}))
        later, visitor = ask(client, KNOWN.question), client.cookies["daedap_client"]
        assert (runs / "daedap.db-wal").stat().st_size
    (tmp_path / "elsewhere").mkdir()
    other = runs_with(trained, tmp_path / "elsewhere")
    shutil.copy(copy, other / "daedap.db")
    with served(other) as client:
        client.cookies.set("daedap_client", visitor)
        assert client.get(f"/api/conversations/{reply['conversation']}").json()["replies"] == [reply]
        assert client.get(f"/api/conversations/{later['conversation']}").status_code == 404


def test_postgresql(trained: Run, tmp_path: Path, postgresql: str) -> None:
    runs, dump = runs_with(trained, tmp_path), str(tmp_path / "daedap.dump")
    first, second = (new_database(postgresql, f"backup-{name}") for name in ("first", "second"))
    with served(runs, db=first) as client:
        log_in(client)
        reply = ask(client, KNOWN.question)
        taught = client.post("/api/corrections", json={"reply": reply["id"], "answer": "달라요."}).json()["lesson"]
        run(command("pg_dump", {"daedap.dump": dump, "$DAEDAP_DB": first}))
        visitor = client.cookies["daedap_client"]
    for _ in range(2):  # into an empty database, and over what is there
        run(command("pg_restore", {"daedap.dump": dump, "$DAEDAP_DB": second}))
        with served(runs, db=second) as client:
            client.cookies.set("daedap_client", visitor)
            assert client.get(f"/api/conversations/{reply['conversation']}").json()["replies"] == [reply]
            answer = ask(client, KNOWN.question)
            assert (answer["answer"], answer["lesson"]) == ("달라요.", taught["id"]), "its lessons are in force"
