"""Questions of many clients are answered together: a bounded queue, fair to each client, emptied in batches.

While a batch is computed the next one gathers, so that nobody waits for company: a lone question is answered at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from daedap.serve.errors import ApiError

Job = TypeVar("Job")
Result = TypeVar("Result")
_AT_ONCE = 64


@dataclass(eq=False)
class _Waiting(Generic[Job, Result]):
    job: Job
    deadline: float
    """On the event loop's clock."""
    result: asyncio.Future[Result]


@dataclass
class Batcher(Generic[Job, Result]):
    """A queue and the one thread that empties it. Clients take turns: one that asks much delays only itself."""

    compute: Callable[[Sequence[Job]], Sequence[Result | Exception]]
    """A result or an exception for each job; called in a thread of its own, once at a time."""
    limit: int
    """Most jobs that wait."""
    at_once: int = _AT_ONCE
    on_batch: Callable[[int, float], None] = lambda jobs, seconds: None
    """Told of each batch: how many jobs, how many seconds."""
    _waiting: dict[Hashable, deque[_Waiting[Job, Result]]] = field(default_factory=dict)
    """By client, in the order of their turns."""
    _count: int = 0
    _in_progress: int = 0
    _seconds_per_job: float = 0.05
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return self._count

    async def submit(self, client: Hashable, job: Job, timeout: float) -> Result:
        """The job's result. Raises ApiError when too many wait (429) or it was not done in time (503)."""
        if self._count >= self.limit:
            wait = math.ceil(self._count * self._seconds_per_job)
            raise ApiError(429, "too_busy", "Too many questions are waiting. Try again soon.", retry_after=wait)
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Job, Result] = _Waiting(job, loop.time() + timeout, loop.create_future())
        self._waiting.setdefault(client, deque()).append(waiting)
        self._count += 1
        self._wake.set()
        return await waiting.result  # a client that goes away cancels it; the batch then leaves it out

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="bot") as thread:
            while True:
                await self._wake.wait()
                if batch := self._take(loop.time()):
                    started, self._in_progress = time.perf_counter(), len(batch)
                    result = await loop.run_in_executor(thread, self._compute, [each.job for each in batch])
                    self._deliver(batch, result, time.perf_counter() - started)
                    self._in_progress = 0

    async def drain(self) -> None:
        """Wait until no job is queued or in progress."""
        while self._count or self._in_progress:
            await asyncio.sleep(0.01)

    def _compute(self, jobs: Sequence[Job]) -> Sequence[Result | Exception]:
        try:
            return self.compute(jobs)
        except Exception as error:  # whatever it is, others must not wait for ever
            return [error] * len(jobs)

    def _take(self, now: float) -> list[_Waiting[Job, Result]]:
        """The next batch: one job of each client in turn, until it is full."""
        batch: list[_Waiting[Job, Result]] = []
        while self._waiting and len(batch) < self.at_once:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            each = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind all others
            self._count -= 1
            if each.result.done():  # cancelled
                continue
            if now > each.deadline:
                late = ApiError(503, "too_late", "The question was not answered in time.", retry_after=5)
                each.result.set_exception(late)
                continue
            batch.append(each)
        if not self._waiting:
            self._wake.clear()
        return batch

    def _deliver(
        self, batch: Sequence[_Waiting[Job, Result]], found: Sequence[Result | Exception], seconds: float
    ) -> None:
        self._seconds_per_job = 0.8 * self._seconds_per_job + 0.2 * seconds / len(batch)
        self.on_batch(len(batch), seconds)
        for each, result in zip(batch, found, strict=True):
            if each.result.done():
                continue
            if isinstance(result, Exception):
                each.result.set_exception(result)
            else:
                each.result.set_result(result)
