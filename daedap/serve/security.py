"""What stands before the routes: who may ask from where, how much, how slowly and how often; headers of all responses.

Plain ASGI, so that it holds for streams and unknown paths too.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from weakref import finalize

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from daedap.serve.errors import ApiError
from daedap.serve.observability import FOLDER_VARIABLE, Metrics, log_failure, log_request
from daedap.serve.options import LOOPBACK, ServeOptions

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT = 1 << 20
"""Bytes of a request."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_CORS = {
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Max-Age": "600",
}
_LIMITS = "limits.sqlite"
"""In the folder that the workers share."""
_FORGET_AFTER = 10_000
"""Requests after which clients whose pause was long enough are forgotten."""
_TAKE = """
INSERT INTO clients VALUES (:client, :now + :pause)
ON CONFLICT (client) DO UPDATE SET free = max(free, :now) + :pause WHERE max(free, :now) + :pause <= :now + 60.0001
"""  # a ten-thousandth of a second, so that rounding takes no request away


@dataclass(frozen=True)
class Guard:
    """The outermost layer of the app."""

    app: ASGIApp
    options: ServeOptions
    request_limit: RateLimit
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then pass it on with limits on how slowly it may come and its response be taken."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.options)
        started = time.perf_counter()
        try:
            await self._answer(exchange)
        except _TooSlowError:
            pass  # whoever does not read is let go; the log tells
        except Exception as error:
            log_failure(error)
            if not exchange.status:
                await exchange.respond(ApiError(500, "internal", "Something went wrong here.").response())
        finally:
            route = getattr(scope.get("route"), "path", "-")
            self.metrics.requests.labels(route, exchange.status).inc()
            log_request(scope["method"], route, exchange.status, time.perf_counter() - started)

    async def _answer(self, exchange: _Exchange) -> None:
        headers = Headers(scope=exchange.scope)
        try:
            self._check_host(headers)
            cross = self._check_origin(headers, exchange.scope)
            if exchange.scope["method"] == "OPTIONS" and cross:
                await exchange.respond(Response(status_code=204))
                return
            self._check_client(headers, exchange.scope)
            if exchange.scope["method"] not in _READS:
                _check_body(headers)
                await exchange.read_body()
            await self.app(exchange.scope, exchange.receive, exchange.send)
        except ApiError as error:
            if exchange.status:
                raise
            await exchange.respond(error.response())

    def _check_host(self, headers: Headers) -> None:
        """Refuse names that are not this server's: a page of another site may have let its own name point here."""
        try:
            host = (urlsplit(f"//{headers.get('host', '')}").hostname or "").rstrip(".")
        except ValueError:
            host = ""
        known = host in {*LOOPBACK, self.options.host, *self.options.allowed_hosts}
        if not known and not (self.options.is_public and _is_address(host)):  # an address can't be rebound
            raise ApiError(403, "forbidden", "This server is not known by that name: see --allowed-hosts.")

    def _check_origin(self, headers: Headers, scope: Scope) -> bool:
        """Refuse pages of other sites; returns whether it is one that is allowed."""
        origin, path = headers.get("origin"), scope["path"]
        if origin and origin in self.options.allowed_origins and path.startswith("/v1/"):
            scope["daedap.origin"] = origin
            return True
        foreign = origin is not None and origin.partition("://")[2] != headers.get("host")
        site = headers.get("sec-fetch-site", "none")
        if scope["method"] not in _READS and (foreign or site not in ("none", "same-origin")):
            raise ApiError(403, "forbidden", "Pages of other sites may not call this: see --allowed-origins.")
        return False

    def _check_client(self, headers: Headers, scope: Scope) -> None:
        """Refuse a missing or wrong API key, and clients that ask too often."""
        keys, path = self.options.api_keys, scope["path"]
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if path.startswith("/v1/") and keys and not (scheme.lower() == "bearer" and _is_one_of(given.strip(), keys)):
            raise ApiError(401, "invalid_api_key", "The API key is missing or wrong.")
        address = (scope.get("client") or ("", 0))[0]
        scope["daedap.client"] = given.strip() if keys and path.startswith("/v1/") else address
        if path.startswith(("/v1/", "/api/")):
            self.request_limit.take(scope["daedap.client"])


def _is_one_of(given: str, keys: Sequence[str]) -> bool:
    same = [hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()) for key in keys]
    return any(same)  # after all were compared, so that the time tells nothing


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_body(headers: Headers) -> None:
    """Refuse what is too large, or no JSON, before it is read."""
    length = headers.get("content-length")
    if length and (not length.isdecimal() or int(length) > BODY_LIMIT):
        raise ApiError(413, "too_large", f"The request is larger than {BODY_LIMIT} bytes.")
    has_body = length not in (None, "0") or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body and kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "Send JSON: Content-Type: application/json.")


class _TooSlowError(Exception):
    """A client that does not take its response."""


class _Exchange:
    """One request and its response, with limits on size and time."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, options: ServeOptions) -> None:
        self.scope, self.status = scope, 0
        self._receive, self._send = receive, send
        self._timeout, self._frames = options.timeout, options.embed_origins
        self._body: bytes | None = None

    async def read_body(self) -> None:
        """Take in the request. Raises ApiError when it is too large (413) or too slow (408).

        Before the app is called: FastAPI would turn an error while it reads into one of its own.
        """
        try:
            self._body = await asyncio.wait_for(self._whole_body(), self._timeout)
        except asyncio.TimeoutError as error:
            raise ApiError(408, "too_slow", "The request took too long to arrive.") from error

    async def _whole_body(self) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await self._receive()
            body += message.get("body", b"")
            if len(body) > BODY_LIMIT:
                raise ApiError(413, "too_large", f"The request is larger than {BODY_LIMIT} bytes.")
            more = message.get("more_body", False)
        return bytes(body)

    async def receive(self) -> Message:
        """The whole request, then whatever the connection tells."""
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def respond(self, response: Response) -> None:
        """Answer without the app."""
        await response(self.scope, self.receive, self.send)

    async def send(self, message: Message) -> None:
        """Send a part of the response. Raises _TooSlowError when the client does not take it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_headers(MutableHeaders(raw=message.setdefault("headers", [])))
        try:
            await asyncio.wait_for(self._send(message), self._timeout)
        except asyncio.TimeoutError as error:
            raise _TooSlowError from error

    def _add_headers(self, headers: MutableHeaders) -> None:
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        path = self.scope["path"]
        if path == "/" and self._frames:
            policy = _HEADERS["Content-Security-Policy"]
            allowed = f"ancestors {' '.join(self._frames)}"
            headers["Content-Security-Policy"] = policy.replace("ancestors 'none'", allowed)
            del headers["X-Frame-Options"]  # it knows no list
        if path.startswith(("/api/", "/v1/", "/channels/")):
            headers.setdefault("Cache-Control", "no-store")
        elif path in ("/", "/admin") or path.startswith("/static/"):
            # asked for anew each time (mostly answered with 304): modules of two versions don't understand each other
            headers.setdefault("Cache-Control", "no-cache")
        if origin := self.scope.get("daedap.origin"):
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")
            headers.update(_CORS)


@dataclass
class RateLimit:
    """Requests per minute and client, as many at once after a pause: the generic cell rate algorithm. 0: no limit.

    `free` in the table is the theoretical arrival time, at most a minute ahead. Several workers share these times in a
    file, which needn't survive them.
    """

    per_minute: int
    name: str | None = None
    """Under which the workers of a server share it; without, it is this process' own."""
    _lock: Lock = field(default_factory=Lock)
    _taken: int = 0

    def take(self, client: str) -> None:
        """Count a request. Raises ApiError (429) when it is one too many."""
        if not self.per_minute:
            return
        pause, now = 60 / self.per_minute, time.monotonic()  # that clock is the same for all processes of a machine
        key = blake2b(f"{self.name} {client}".encode("utf-8", "replace"), digest_size=16).digest()
        try:
            wait = self._wait(key, pause, now)
        except sqlite3.Error as error:  # a full disk must not lock everybody out
            log_failure(error)
            return
        if wait > 0:
            raise ApiError(429, "too_busy", "Too many requests. Try again soon.", retry_after=wait)

    def _wait(self, client: bytes, pause: float, now: float) -> float:
        """Count a request unless it is one too many; seconds until it is not, or 0."""
        with self._lock:
            self._taken += 1
            if self._taken % _FORGET_AFTER == 0:
                self._times.execute("DELETE FROM clients WHERE free < ?", [now])
            if self._times.execute(_TAKE, {"client": client, "pause": pause, "now": now}).rowcount:
                return 0.0
            row = self._times.execute("SELECT free FROM clients WHERE client = ?", [client]).fetchone()
            return max(0.0, row[0] + pause - 60 - now) if row else 0.0

    @cached_property
    def _times(self) -> sqlite3.Connection:
        folder = os.environ.get(FOLDER_VARIABLE)
        where = Path(folder) / _LIMITS if folder and self.name else ":memory:"
        connection = _open_times(where)
        finalize(self, connection.close)
        return connection


def _open_times(where: str | Path) -> sqlite3.Connection:
    """The table of clients; a worker that is killed while it writes does not damage it."""
    connection = sqlite3.connect(where, timeout=1, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE IF NOT EXISTS clients (client BLOB PRIMARY KEY, free REAL) WITHOUT ROWID")
    return connection


def prepare_limits(folder: str) -> None:
    """Make the file that workers share, before they start: made by several at once, it would be locked for some."""
    _open_times(Path(folder) / _LIMITS).close()
