"""What arrives together is encoded together; an idle server waits for nobody, and nobody spoils another's answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.serving.batching import MicroBatcher


class Doubler:
    """Doubles numbers; notes every call, and can be held."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, group: str, items: Sequence[int]) -> list[int]:
        self.calls.append((group, list(items)))
        assert self.free.wait(10)
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


def batcher(doubler: Doubler, limit: int = 8, window: float = 0.0, busy: bool = False) -> MicroBatcher[int, int]:
    return MicroBatcher(doubler, ThreadPoolExecutor(1), limit, window, lambda: busy)


def test_what_arrives_while_a_batch_runs_makes_the_next_one() -> None:
    doubler = Doubler()

    async def run() -> list[list[int]]:
        together = batcher(doubler)
        doubler.free.clear()
        first = asyncio.create_task(together.submit("g", [0]))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(together.submit("g", [i, i])) for i in range(1, 6)]
        await asyncio.sleep(0.05)
        doubler.free.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(run()) == [[0], [2, 2], [4, 4], [6, 6], [8, 8], [10, 10]]
    assert doubler.calls == [("g", [0]), ("g", [1, 1, 2, 2, 3, 3, 4, 4]), ("g", [5, 5])]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_caller_that_submits_again_at_once_is_answered(workers: int) -> None:
    async def run() -> list[list[int]]:
        together = MicroBatcher(Doubler(), ThreadPoolExecutor(2), 8, 0.0, lambda: False, workers=workers)

        async def several(first: int) -> list[int]:
            return [(await together.submit("g", [first + i]))[0] for i in range(20, 40)]

        return await asyncio.wait_for(asyncio.gather(*(several(100 * n) for n in range(5))), 20)

    assert asyncio.run(run()) == [[2 * (100 * n + i) for i in range(20, 40)] for n in range(5)]


def test_groups_are_not_mixed() -> None:
    doubler = Doubler()

    async def run() -> list[list[int]]:
        together = batcher(doubler, window=0.05, busy=True)
        return await asyncio.gather(*(together.submit("ab"[i % 2], [i]) for i in range(6)))

    assert asyncio.run(run()) == [[0], [2], [4], [6], [8], [10]]
    assert doubler.calls == [("a", [0, 2, 4]), ("b", [1, 3, 5])]


def test_an_idle_server_does_not_wait() -> None:
    doubler = Doubler()

    async def run() -> None:
        together = batcher(doubler, window=30.0, busy=False)
        await asyncio.wait_for(together.submit("g", [1]), 5)

    asyncio.run(run())


def test_one_bad_item_fails_alone() -> None:
    doubler = Doubler()

    async def run() -> list[object]:
        together = batcher(doubler, window=0.05, busy=True)
        return await asyncio.gather(*(together.submit("g", [i]) for i in (12, 13, 14)), return_exceptions=True)

    good, bad, last = asyncio.run(run())
    assert (good, last) == ([24], [28])
    assert isinstance(bad, ValueError)


def test_who_has_gone_is_not_encoded() -> None:
    doubler = Doubler()

    async def run() -> None:
        together = batcher(doubler)
        doubler.free.clear()
        first = asyncio.create_task(together.submit("g", [1]))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(together.submit("g", [2]))
        stays = asyncio.create_task(together.submit("g", [3]))
        await asyncio.sleep(0.05)
        gone.cancel()
        doubler.free.set()
        assert await first == [2]
        assert await stays == [6]
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(run())
    assert doubler.calls == [("g", [1]), ("g", [3])]
