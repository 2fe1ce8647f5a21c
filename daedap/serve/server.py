"""The server's processes: one, or several that share a socket; uvicorn runs them and stops them gently.

Each connection has a deadline for the head of a request, and an end when it breaks the protocol: uvicorn waits for the
head for ever, as long as a byte comes now and then, and a thousand such clients would take all connections. The body's
deadline is kept by security.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from daedap.config import AnswerOptions
from daedap.errors import SettingsError
from daedap.files import storage_errors
from daedap.serve.app import build_app
from daedap.serve.channels.common import Channels
from daedap.serve.observability import FOLDER_VARIABLE, forget_killed_processes
from daedap.serve.options import ServeOptions
from daedap.serve.security import prepare_limits
from daedap.serve.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

PASSWORD = "owner-password"
"""The file beside the runs that keeps the owner's password, where none was given."""


def owner_password(options: ServeOptions, runs: Path) -> str:
    """The password that was given, or the one that was made at the first start; only the owner can read its file."""
    given = options.owner_password or os.environ.get("DAEDAP_OWNER_PASSWORD")
    return given or _kept(runs / PASSWORD)


def channel_secrets(options: ServeOptions, runs: Path) -> dict[str, str]:
    """What stands in the addresses of the channels, made at the first start and kept as the password is."""
    return {channel: _kept(runs / f"{channel}-secret") for channel in options.channels}


def _kept(path: Path) -> str:
    """A random text that is made once and kept in a file that only its owner can read."""
    with storage_errors(path):
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
        return socket.create_server((host, port), family=family, backlog=2048)
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
        service = Service(self.run, self.runs, self.options, self.answer_options, password)
        channels = channel_secrets(self.options, self.runs)
        return build_app(service, Channels(service, channels) if channels else None)


def serve_one(app: ASGIApp, options: ServeOptions, listening: socket.socket) -> None:
    """Serve an app from this process until it receives a signal to stop."""
    uvicorn.Server(_config(app, options)).run(sockets=[listening])


def serve_many(served: Served, listening: socket.socket) -> None:
    """Serve from several processes until this one receives a signal to stop; one that dies is started again."""
    with tempfile.TemporaryDirectory(prefix="daedap-metrics-") as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            prepare_limits(folder)
            config = _config(partial(_app_of_worker, served), served.options, factory=True)
            Multiprocess(config, sockets=[listening]).run()
        finally:
            del os.environ[FOLDER_VARIABLE]


def _app_of_worker(served: Served) -> ASGIApp:
    """The app of a worker process, to which `served` is passed on by pickle."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("daedap").setLevel(logging.INFO)
    forget_killed_processes()
    return served.app()


def _config(app: Callable[..., Any], options: ServeOptions, *, factory: bool = False) -> uvicorn.Config:
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


class DeadlineProtocol(H11Protocol):
    """A connection whose next request must have begun, its head complete, within the keep-alive time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request, and look at the clock."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; where no answer fits, after HEAD or another answer, uvicorn would log a traceback."""
        try:
            super().send_400_response(msg)
        except LocalProtocolError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        if self._deadline:
            self._deadline.cancel()

    def _watch(self) -> None:
        """Start the clock while a head is incomplete, stop it when a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._deadline:
                self._deadline.cancel()
            self._deadline = None
        elif not self._deadline:
            self._deadline = self.loop.call_later(self.config.timeout_keep_alive, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()
