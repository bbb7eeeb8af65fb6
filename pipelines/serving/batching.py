"""Batches concurrent requests (micro-batching): texts of several requests go through the model in one call.

An idle server never waits: the first text starts at once, and what arrives while it is being encoded makes the next
batch. Only while other requests are being answered does a batch wait for a few milliseconds more. Searches go the same
way, two batches at a time, so that one is read and written in Python while the other scores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    group: Hashable
    items: Sequence[Any]
    done: asyncio.Future[Any]


class MicroBatcher(Generic[T, R]):
    """Batches the items of concurrent calls by group key and processes each batch in one call on a thread.

    run: takes a group's items, in order, and returns one result per item. limit: items per call. It belongs to one
    event loop. workers: batches in progress at once. Where a joint call fails, each of its jobs is run alone, so that
    one request cannot spoil another's.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[T]], Sequence[R]],
        executor: Executor,
        limit: int,
        window: float,
        busy: Callable[[], bool],
        waiting: Callable[[int], None] = lambda n: None,
        workers: int = 1,
    ) -> None:
        self._run, self._executor = run, executor
        self._limit, self._window, self._busy, self._waiting = limit, window, busy, waiting
        self._pending: list[_Job] = []
        self._workers: list[asyncio.Task[None]] = []
        self._most = workers

    async def submit(self, group: Hashable, items: Sequence[T]) -> list[R]:
        """Queues items and returns one result per item. A caller cancelled before its batch starts costs nothing."""
        job = _Job(group, items, asyncio.get_running_loop().create_future())
        self._pending.append(job)
        self._tell()
        # A worker that has found nothing more to do takes no further job, though its task is still in the list.
        self._workers = [worker for worker in self._workers if not worker.done()]
        if len(self._workers) < self._most:
            self._workers.append(asyncio.create_task(self._drain()))
        results: list[R] = await job.done
        return results

    async def _drain(self) -> None:
        while self._pending:
            if self._window and self._busy() and self._count() < self._limit:
                await asyncio.sleep(self._window)
            jobs = self._next()
            if jobs:
                await self._answer(jobs)

    def _next(self) -> list[_Job]:
        """Returns the oldest job and the jobs of its group that fit into the batch; drops cancelled jobs."""
        self._pending = [job for job in self._pending if not job.done.done()]
        taken: list[_Job] = []
        for job in self._pending:
            size = sum(len(t.items) for t in taken) + len(job.items)
            if not taken or (job.group == taken[0].group and size <= self._limit):
                taken.append(job)
        self._pending = [job for job in self._pending if job not in taken]
        self._tell()
        return taken

    async def _answer(self, jobs: list[_Job]) -> None:
        items = [item for job in jobs for item in job.items]
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self._run, jobs[0].group, items)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._answer([job])
            elif not jobs[0].done.done():
                jobs[0].done.set_exception(error)
            return
        start = 0
        for job in jobs:
            if not job.done.done():
                job.done.set_result(list(results[start : start + len(job.items)]))
            start += len(job.items)

    def _count(self) -> int:
        return sum(len(job.items) for job in self._pending)

    def _tell(self) -> None:
        self._waiting(self._count())
