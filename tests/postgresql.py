"""A PostgreSQL server for tests, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
"""Parameters of a fixture, whose tests run with both."""


def database_url(request: pytest.FixtureRequest) -> str | None:
    """Of an empty database of the fixture's kind; None: the file beside the runs."""
    if request.param == "sqlite":
        return None
    return new_database(request.getfixturevalue("postgresql"), f"daedap-{uuid.uuid4().hex}")


def account() -> dict[str, Any]:
    """PostgreSQL refuses to be run by root."""
    import pwd  # not on Windows

    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    return {"user": next(name for name in ("postgres", "nobody") if name in names), "cwd": "/"}


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The URL of its database `postgres`."""
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("PostgreSQL is not installed")
    who = account()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # not under tmp_path, which is for its owner only
    if "user" in who:
        shutil.chown(folder, who["user"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    initdb = ["initdb", "-D", str(folder / "data"), "-U", "daedap", "-A", "trust", "-E", "UTF8", "--no-locale"]
    subprocess.run([*initdb, "--no-sync"], check=True, capture_output=True, **who)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    start = ["pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", options, "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, **who)
    try:
        yield f"postgresql://daedap@127.0.0.1:{port}/postgres"
    finally:
        stop = ["pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop"]
        subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, **who)
        shutil.rmtree(folder)


def new_database(server: str, name: str) -> str:
    """The URL of an empty database on a server."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.rpartition("/")[0] + f"/{name}"
