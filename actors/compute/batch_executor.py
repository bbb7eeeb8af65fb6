"""Runs the batches of one call concurrently, and halves the token budget for good when memory runs out.

On a CPU each worker thread computes a batch of its own with one torch thread: two processes of one thread were measured
at 1.28 times one process of two, and threads get there with one copy of the weights. On a GPU each worker has a stream,
so one uploads, downloads and converts while another computes; that needs no other code for overlap. The price is
memory: every worker holds the activations of a batch.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from actors.compute.batching import plan_batches
from actors.compute.cost import GPU_WORKERS
from actors.compute.resolve import Compute
from actors.outputs import IntArray

T = TypeVar("T")


_live: weakref.WeakSet[BatchExecutor] = weakref.WeakSet()


class BatchExecutor:
    """Runs a function over batches. `budget` starts as the resolved one; `halvings` counts how often memory ran out."""

    def __init__(self, compute: Compute) -> None:
        self.device = compute.device
        self.budget = compute.budget
        self.halvings = 0
        self.width = _width(compute)
        _live.add(self)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._own = threading.local()

    def run(
        self, lengths: IntArray, forward: Callable[[IntArray], T], budget: int | None = None
    ) -> tuple[list[IntArray], list[T]]:
        """Calls `forward(rows)` for batches that hold every row once, longest texts first; returns batches and results.

        torch.OutOfMemoryError halves the budget, and only what did not fit is planned and run again; a text that does
        not fit alone raises it. Every other error goes straight to the caller.
        """
        done: list[tuple[IntArray, T]] = []
        waiting = np.arange(len(lengths))
        while len(waiting):
            planned = min(budget or self.budget, self.budget)
            batches = [waiting[rows] for rows in plan_batches(lengths[waiting], planned)]
            answers = self._map(partial(self._attempt, lengths, forward, planned), batches)
            done += [(rows, answer[0]) for rows, answer in zip(batches, answers, strict=True) if answer]
            failed = [rows for rows, answer in zip(batches, answers, strict=True) if not answer]
            waiting = np.concatenate(failed) if failed else waiting[:0]
        return [rows for rows, _ in done], [answer for _, answer in done]

    def _attempt(
        self, lengths: IntArray, forward: Callable[[IntArray], T], planned: int, rows: IntArray
    ) -> tuple[T] | None:
        if self.budget < planned and len(rows) > 1:
            return None  # memory ran out in another worker: this batch was planned too large
        try:
            return (forward(rows),)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        self._lower(int(lengths[rows].sum()))
        return None

    def _lower(self, failed: int) -> None:
        with self._lock:
            if failed <= self.budget:
                self.budget = max(1, failed // 2)
                self.halvings += 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _map(self, function: Callable[[IntArray], tuple[T] | None], batches: list[IntArray]) -> list[tuple[T] | None]:
        if self.width == 1 or len(batches) < self.width:
            return [function(rows) for rows in batches]
        threads = torch.get_num_threads()
        try:
            return list(self._threads().map(partial(self._in_worker, function), batches))
        finally:
            torch.set_num_threads(threads)  # a worker's setting is also the default of threads started later

    def forget_threads(self) -> None:
        """Computes in the calling thread from now on, as a forked child must."""
        self._lock, self._own, self._pool = threading.Lock(), threading.local(), None
        if self.device.type == "cpu":
            self.width = 1

    def _in_worker(self, function: Callable[[IntArray], T], rows: IntArray) -> T:
        with torch.cuda.stream(self._own.stream) if self.device.type == "cuda" else contextlib.nullcontext():
            return function(rows)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.width, "batch", self._start_worker)
            return self._pool

    def _start_worker(self) -> None:
        if self.device.type == "cuda":
            self._own.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._own.stream.wait_stream(torch.cuda.default_stream(self.device))
        else:
            torch.set_num_threads(1)


def _width(compute: Compute) -> int:
    if compute.device.type == "cpu":
        return compute.threads or torch.get_num_threads()
    return GPU_WORKERS if compute.device.type == "cuda" else 1


def _go_on_in_a_forked_child() -> None:
    """Leaves behind what a forked child does not have: threads, and locks that other threads may have held.

    OpenMP waits for ever for the threads that its parent had, so a child computes with one thread; a server that forks
    its workers has one for each core anyway. On a GPU torch itself refuses to go on in a forked child.
    """
    if not _live:
        return
    torch.set_num_threads(1)
    for executor in _live:
        executor.forget_threads()


os.register_at_fork(after_in_child=_go_on_in_a_forked_child)
