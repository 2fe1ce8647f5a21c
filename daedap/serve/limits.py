"""How often a client may ask, and how often a password may be guessed: one count for all worker processes."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from weakref import finalize

from daedap.serve.errors import ApiError
from daedap.serve.logs import log_failure
from daedap.serve.metrics import FOLDER_VARIABLE

_FILE = "limits.sqlite"
"""In the folder that the workers share."""
_FORGET_AFTER = 10_000
"""Requests after which clients whose pause was long enough are forgotten."""
_TAKE = """
INSERT INTO clients VALUES (:client, :now + :pause)
ON CONFLICT (client) DO UPDATE SET free = max(free, :now) + :pause WHERE max(free, :now) + :pause <= :now + 60.0001
"""  # a ten-thousandth of a second, so that rounding takes no request away


@dataclass
class RateLimit:
    """So many a minute and client; as many at once after a pause. 0: no limit.

    Each request moves the time at which its client would be free of debt; that may lie a minute ahead. Where there are
    several workers, they share these times in a file, which needn't survive them.
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
            result = self._times.execute("SELECT free FROM clients WHERE client = ?", [client]).fetchone()
            return max(0.0, result[0] + pause - 60 - now) if result else 0.0

    @cached_property
    def _times(self) -> sqlite3.Connection:
        folder = os.environ.get(FOLDER_VARIABLE)
        where = Path(folder) / _FILE if folder and self.name else ":memory:"
        connection = open_times(where)
        finalize(self, connection.close)
        return connection


def open_times(where: str | Path) -> sqlite3.Connection:
    """The table of clients; a worker that is killed while it writes does not damage it."""
    connection = sqlite3.connect(where, timeout=1, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE IF NOT EXISTS clients (client BLOB PRIMARY KEY, free REAL) WITHOUT ROWID")
    return connection


def prepare_limits(folder: str) -> None:
    """Make the file that workers share, before they start: made by several at once, it would be locked for some."""
    open_times(Path(folder) / _FILE).close()
