"""What the server logs and counts: ids, lengths, times, sources; never what people write, nor who they are.

The Prometheus metrics are few, and right with several worker processes, which share them through files.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_log = logging.getLogger("daedap.serve")
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder of what workers share."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def log_failure(error: BaseException) -> None:
    """Log where a failure happened. Not its message: that may quote the text that caused it."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    _log.error("failed: %s at %s", type(error).__name__, places)


def log_request(method: str, route: str, status: int, seconds: float) -> None:
    """One line for each request; `route` is the pattern of the path, without the ids in it."""
    _log.info("%s %s %d %.0f ms", method, route, status, 1000 * seconds)


def log_undelivered(reason: str) -> None:
    """An answer that was sent later, and that a channel's platform did not take."""
    _log.error("a late answer was not taken: %s", reason)


def log_reply(id: str, question: str, source: str, milliseconds: int) -> None:
    """One line for each reply."""
    _log.info("reply %s: %d characters, %s, %d ms", id, len(question), source, milliseconds)


class Metrics:
    """What one process counts."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter("daedap_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self.replies = Counter("daedap_replies", "Replies by source.", ["source"], registry=own)
        self.seconds = Histogram("daedap_reply_seconds", "From question to reply.", buckets=_SECONDS, registry=own)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch = Histogram("daedap_batch_size", "Questions per batch.", buckets=sizes, registry=own)
        self.waiting = Gauge("daedap_waiting", "Questions that wait.", multiprocess_mode="livesum", registry=own)

    def page(self) -> bytes:
        """All of them in Prometheus' text format; of all workers, where there are several."""
        registry = self._registry
        if os.environ.get(FOLDER_VARIABLE):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget_process() -> None:
    """Remove this process's gauges as it exits."""
    if os.environ.get(FOLDER_VARIABLE):
        mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def forget_killed_processes() -> None:
    """Remove the gauges of workers that were killed; called as another one replaces them."""
    for file in Path(os.environ[FOLDER_VARIABLE]).glob("gauge_live*_*.db"):
        match = re.search(r"_(\d+)\.db$", file.name)
        if match and not psutil.pid_exists(int(match[1])):
            mark_process_dead(int(match[1]))  # type: ignore[no-untyped-call]
