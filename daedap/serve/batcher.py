"""A bounded queue whose jobs are processed in batches, fair to each client: continuous micro-batching.

While a batch is computed, the next one collects. There is no batching delay: a job that finds the queue idle starts at
once.
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


@dataclass
class Batcher(Generic[Job, Result]):
    """A queue and the one thread that empties it. Clients take turns, so a busy client delays only itself."""

    compute: Callable[[Sequence[Job]], Sequence[Result | Exception]]
    """Returns a result or an exception for each job; called in a thread of its own, one batch at a time."""
    limit: int
    """Maximum queue length."""
    at_once: int = 64
    """Maximum number of jobs in a batch."""
    on_batch: Callable[[int, float], None] = lambda jobs, seconds: None
    """Called after each batch with its number of jobs and the seconds it took. Must not raise."""
    name: str = "bot"
    """Name of the thread."""
    busy: str = "Too many questions are waiting. Try again soon."
    """Message of the error when the queue is full."""
    late: str = "The question was not answered in time."
    """Message of the error when a job was not done in time."""
    _waiting: dict[Hashable, deque[tuple[Job, asyncio.Future[Result]]]] = field(default_factory=dict)
    """Jobs and their results to be, by client, in the order of their turns."""
    _count: int = 0
    _in_progress: int = 0
    _seconds_per_job: float = 0.05
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return self._count

    async def submit(self, client: Hashable, job: Job, timeout: float) -> Result:
        """The job's result. Raises ApiError when the queue is full (429) or the job is not done in `timeout` s (503).

        A job that has started is computed to its end even when nobody waits for it any more.
        """
        if self._count >= self.limit:
            wait = math.ceil(self._count * self._seconds_per_job)
            raise ApiError(429, "too_busy", self.busy, retry_after=wait)
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((job, result))
        self._count += 1
        self._wake.set()
        try:
            return await asyncio.wait_for(result, timeout)  # or the client goes away: both cancel the result
        except asyncio.TimeoutError as error:
            raise ApiError(503, "too_late", self.late, retry_after=5) from error

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix=self.name) as thread:
            while True:
                await self._wake.wait()
                if batch := self._take():
                    started, self._in_progress = time.perf_counter(), len(batch)
                    results = await loop.run_in_executor(thread, self._compute, [job for job, _ in batch])
                    seconds = time.perf_counter() - started
                    self._seconds_per_job = 0.8 * self._seconds_per_job + 0.2 * seconds / len(batch)
                    self.on_batch(len(batch), seconds)
                    for (_, waiting), result in zip(batch, results, strict=True):
                        _deliver(result, waiting)
                    self._in_progress = 0

    async def drain(self) -> None:
        """Wait until no job is queued or in progress."""
        while self._count or self._in_progress:
            await asyncio.sleep(0.01)

    def _compute(self, jobs: Sequence[Job]) -> Sequence[Result | Exception]:
        try:
            results = self.compute(jobs)
            if len(results) != len(jobs):
                raise RuntimeError(f"{len(results)} results for {len(jobs)} jobs")
            return results
        except Exception as error:  # whatever it is, others must not wait for ever
            return [error] * len(jobs)

    def _take(self) -> list[tuple[Job, asyncio.Future[Result]]]:
        """The next batch: one job of each client in turn, until it is full."""
        batch: list[tuple[Job, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self.at_once:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            job, result = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind all others
            self._count -= 1
            if not result.done():  # else it is too late, or the client has gone away
                batch.append((job, result))
        if not self._waiting:
            self._wake.clear()
        return batch


def _deliver(result: Result | Exception, waiting: asyncio.Future[Result]) -> None:
    if waiting.done():
        return
    if isinstance(result, Exception):
        waiting.set_exception(result)
    else:
        waiting.set_result(result)
