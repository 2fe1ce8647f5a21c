"""The queue and the limits by themselves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from daedap.serve.batcher import Batcher
from daedap.serve.errors import ApiError
from daedap.serve.observability import FOLDER_VARIABLE, Metrics, forget_killed_processes
from daedap.serve.security import RateLimit, prepare_limits

Job = str


def with_batcher(compute: Callable[[Sequence[Job]], Sequence[Any]], test: Callable[..., Any], **options: Any) -> Any:
    """Run a test with a queue that is being emptied."""

    async def run() -> Any:
        batcher: Batcher[Job, Any] = Batcher(compute, **{"limit": 100, **options})
        task = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(test(batcher), 30)
        finally:
            task.cancel()

    return asyncio.run(run())


def test_questions_that_wait_are_answered_together() -> None:
    batches: list[Sequence[Job]] = []

    def compute(jobs: Sequence[Job]) -> Sequence[str]:
        batches.append(jobs)
        return [f"{job}!" for job in jobs]

    async def many(batcher: Batcher[Job, Any]) -> list[str]:
        return list(await asyncio.gather(*(batcher.submit("one", f"{n}", 30) for n in range(50))))

    assert with_batcher(compute, many, at_once=20) == [f"{n}!" for n in range(50)], "each gets its own"
    assert len(batches) == 3


def test_clients_take_turns() -> None:
    order: list[Job] = []

    async def greedy(batcher: Batcher[Job, Any]) -> None:
        first = [batcher.submit("greedy", f"g{n}", 30) for n in range(6)]
        await asyncio.gather(*first, batcher.submit("modest", "m", 30))

    def compute(jobs: Sequence[Job]) -> Sequence[str]:
        order.extend(jobs)
        return jobs

    with_batcher(compute, greedy, at_once=2)
    assert order[:2] == ["g0", "m"]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    free = threading.Event()

    def compute(jobs: Sequence[Job]) -> Sequence[str]:
        free.wait(30)
        return jobs

    async def crowd(batcher: Batcher[Job, Any]) -> list[Any]:
        tasks = [asyncio.create_task(batcher.submit("one", "a", 30))]
        await asyncio.sleep(0.05)  # it is being computed
        tasks += [asyncio.create_task(batcher.submit("one", "b", 30)) for _ in range(4)]
        await asyncio.sleep(0)
        free.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    *_, last = found = with_batcher(compute, crowd, limit=3)
    assert found[:4] == ["a", "b", "b", "b"]
    assert (last.status, last.code) == (429, "too_busy")
    assert int(last.response().headers["retry-after"]) >= 1


def test_one_that_waits_too_long_is_not_answered() -> None:
    async def late(batcher: Batcher[Job, Any]) -> None:
        with pytest.raises(ApiError) as refused:
            await batcher.submit("one", "a", -1)
        assert refused.value.status == 503

    with_batcher(lambda jobs: jobs, late)


def test_one_that_is_computed_too_long_is_not_waited_for() -> None:
    free = threading.Event()

    def compute(jobs: Sequence[Job]) -> Sequence[str]:
        free.wait(30)
        return jobs

    async def slow(batcher: Batcher[Job, Any]) -> str:
        both = [batcher.submit("one", "a", 0.05), batcher.submit("two", "b", 0.05)]
        refused = await asyncio.gather(*both, return_exceptions=True)
        assert [error.status for error in refused if isinstance(error, ApiError)] == [503, 503]
        free.set()
        return str(await batcher.submit("one", "c", 30))

    assert with_batcher(compute, slow, at_once=1) == "c", "the queue goes on"


def test_results_that_are_missing_fail_their_jobs_alone() -> None:
    async def both(batcher: Batcher[Job, Any]) -> str:
        with pytest.raises(RuntimeError, match="0 results for 1 jobs"):
            await batcher.submit("one", "lost", 30)
        return str(await batcher.submit("one", "good", 30))

    assert with_batcher(lambda jobs: [job for job in jobs if job != "lost"], both) == "good"


def test_a_failure_does_not_stop_the_queue() -> None:
    def compute(jobs: Sequence[Job]) -> Sequence[Any]:
        if "bad" in jobs:
            raise RuntimeError("no")
        return jobs

    async def both(batcher: Batcher[Job, Any]) -> str:
        with pytest.raises(RuntimeError):
            await batcher.submit("one", "bad", 30)
        answer: str = await batcher.submit("one", "good", 30)
        return answer

    assert with_batcher(compute, both) == "good"


def test_limits_are_for_each_client() -> None:
    limit = RateLimit(2)
    limit.take("a")
    limit.take("a")
    with pytest.raises(ApiError):
        limit.take("a")
    limit.take("b")
    unlimited = RateLimit(0)
    for _ in range(1000):
        unlimited.take("a")


def test_workers_share_limits_and_what_a_killed_one_was_busy_with_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    prepare_limits(str(tmp_path))
    killed = """
import os
from daedap.serve.observability import Metrics
from daedap.serve.security import RateLimit
metrics = Metrics()
metrics.waiting.set(5)
metrics.replies.labels("lesson").inc()
RateLimit(2, "requests").take("a")
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    assert b"daedap_waiting 5.0" in Metrics().page()
    forget_killed_processes()
    page = Metrics().page()
    assert b"daedap_waiting 5.0" not in page
    assert b'daedap_replies_total{source="lesson"} 1.0' in page, "what it has done counts on"
    limit = RateLimit(2, "requests")
    limit.take("a")
    with pytest.raises(ApiError) as refused:
        limit.take("a")
    assert refused.value.retry_after
    assert 0 < refused.value.retry_after <= 30
    RateLimit(2, "logins").take("a")
