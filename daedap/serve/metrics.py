"""Prometheus metrics: few, and right with several worker processes, which share them through files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What one process counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter("daedap_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self.replies = Counter("daedap_replies", "Replies by source.", ["source"], registry=own)
        self.seconds = Histogram("daedap_reply_seconds", "From question to reply.", buckets=_SECONDS, registry=own)
        self.batch = Histogram(
            "daedap_batch_size", "Questions per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.waiting = Gauge("daedap_waiting", "Questions that wait.", multiprocess_mode="livesum", registry=own)

    def page(self) -> bytes:
        """All of them in Prometheus' text format; of all workers, where there are several."""
        registry = self._registry
        if os.environ.get(FOLDER_VARIABLE):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget_process() -> None:
    """This process ends: what it is busy with counts no more."""
    if os.environ.get(FOLDER_VARIABLE):
        mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def forget_killed_processes() -> None:
    """What workers were busy with that were killed counts no more; called as another one takes the place of one."""
    for file in Path(os.environ[FOLDER_VARIABLE]).glob("gauge_live*_*.db"):
        match = re.search(r"_(\d+)\.db$", file.name)
        if match and not psutil.pid_exists(int(match[1])):
            mark_process_dead(int(match[1]))  # type: ignore[no-untyped-call]
