"""The server's processes: one, or several that share a socket; uvicorn runs them and stops them gently."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from daedap.config import AnswerOptions
from daedap.errors import SettingsError
from daedap.files import storage
from daedap.serve.app import build_app
from daedap.serve.channels.common import Channels
from daedap.serve.limits import prepare_limits
from daedap.serve.metrics import FOLDER_VARIABLE, forget_killed_processes
from daedap.serve.options import ServeOptions
from daedap.serve.protocol import DeadlineProtocol
from daedap.serve.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

PASSWORD = "owner-password"
"""The file beside the runs that keeps the owner's password, where none was given."""
_SECRET = "{channel}-secret"
"""The file beside the runs that keeps what stands in the address of a channel."""
_SETTINGS = "DAEDAP_SERVE"
"""The environment variable that passes the options to worker processes."""
_BACKLOG = 2048


def owner_password(options: ServeOptions, runs: Path) -> str:
    """The password that was given, or the one that was made at the first start; only the owner can read its file."""
    given = options.owner_password or os.environ.get("DAEDAP_OWNER_PASSWORD")
    return given or _kept(runs / PASSWORD)


def channel_secrets(options: ServeOptions, runs: Path) -> dict[str, str]:
    """What stands in the addresses of the channels, made at the first start and kept as the password is."""
    return {channel: _kept(runs / _SECRET.format(channel=channel)) for channel in options.channels}


def _kept(path: Path) -> str:
    """A random text that is made once and kept in a file that only its owner can read."""
    with storage(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)  # a bundle may be served where no run was made
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_urlsafe(18) + "\n", encoding="utf-8")
            temporary.replace(path)
        return path.read_text(encoding="utf-8").strip()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises SettingsError when the address can't be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            "--host {host} --port {port}: can't listen there ({error}).",
            "Another program may have it: try --port 8001.",
            host=host,
            port=port,
            error=error.strerror or error,
        ) from error


@dataclass(frozen=True)
class Served:
    """What is served, and how."""

    run: str
    runs: Path
    options: ServeOptions
    answer_options: AnswerOptions

    def app(self) -> ASGIApp:
        """The app of a process, its bot warm. Raises RunError, SettingsError and StorageError."""
        password = owner_password(self.options, self.runs)
        service = Service.open(self.run, self.runs, self.options, self.answer_options, password)
        channels = channel_secrets(self.options, self.runs)
        return build_app(service, Channels(service, channels) if channels else None)


def serve_one(app: ASGIApp, options: ServeOptions, listening: socket.socket) -> None:
    """Serve an app from this process until it receives a signal to stop."""
    uvicorn.Server(_config(app, options)).run(sockets=[listening])


def serve_many(served: Served, listening: socket.socket) -> None:
    """Serve from several processes until this one receives a signal to stop; one that dies is started again."""
    settings = {
        "run": served.run,
        "runs": str(served.runs),
        "serve": asdict(served.options),
        "answer": asdict(served.answer_options),
    }
    with (
        tempfile.TemporaryDirectory(prefix="daedap-metrics-") as folder,
        _variables({_SETTINGS: json.dumps(settings), FOLDER_VARIABLE: folder}),
    ):
        prepare_limits(folder)
        config = _config("daedap.serve.server:app_of_worker", served.options, factory=True)
        Multiprocess(config, sockets=[listening]).run()


def app_of_worker() -> ASGIApp:
    """The app of a worker process."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("daedap").setLevel(logging.INFO)
    forget_killed_processes()
    settings = json.loads(os.environ[_SETTINGS])
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings["serve"].items()
    }
    options = ServeOptions(**given)
    return Served(settings["run"], Path(settings["runs"]), options, AnswerOptions(**settings["answer"])).app()


def _config(app: ASGIApp | str, options: ServeOptions, *, factory: bool = False) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=factory,
        workers=options.workers,
        http=DeadlineProtocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=max(1, round(options.timeout)),
        timeout_graceful_shutdown=max(1, round(options.timeout)),
    )


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
