from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from actors.compute.batch_executor import BatchExecutor
from actors.compute.resolve import Compute
from actors.outputs import IntArray


def lanes(budget: int = 100, threads: int = 1) -> BatchExecutor:
    return BatchExecutor(Compute(torch.device("cpu"), torch.float32, budget, threads, False, ()))


LENGTHS = np.array([50, 7, 90, 20, 20, 3, 40, 60])


def rows_of(batches: list[IntArray]) -> list[int]:
    return sorted(np.concatenate(batches).tolist())


@pytest.mark.parametrize("threads", [1, 3])
def test_every_row_is_computed_once_and_answers_match_their_batch(threads: int) -> None:
    batches, answers = lanes(threads=threads).run(LENGTHS, lambda rows: LENGTHS[rows].sum())
    assert rows_of(batches) == list(range(8))
    assert answers == [LENGTHS[rows].sum() for rows in batches]
    assert max(answers) <= 100


def test_a_call_may_ask_for_smaller_batches_but_not_for_larger_ones() -> None:
    assert max(lanes().run(LENGTHS, lambda rows: len(rows), 60)[1]) == 4
    assert len(lanes().run(LENGTHS, lambda rows: len(rows), 1000)[0]) == len(lanes().run(LENGTHS, len)[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_running_out_of_memory_halves_the_budget_and_is_remembered(threads: int) -> None:
    def forward(rows: IntArray) -> int:
        if LENGTHS[rows].sum() > 60 and len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(rows)

    machine = lanes(threads=threads)
    batches, _ = machine.run(LENGTHS, forward)
    assert rows_of(batches) == list(range(8))
    assert machine.budget <= 60
    halvings = machine.halvings
    assert halvings >= 1
    machine.run(LENGTHS, forward)
    assert machine.halvings == halvings


def test_a_text_that_does_not_fit_alone_raises() -> None:
    def forward(rows: IntArray) -> None:
        if 2 in rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        lanes().run(LENGTHS, forward)


@pytest.mark.parametrize("threads", [1, 3])
def test_another_error_reaches_the_caller_and_costs_no_budget(threads: int) -> None:
    def forward(rows: IntArray) -> None:
        raise RuntimeError("a shape is wrong")

    machine = lanes(threads=threads)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        machine.run(LENGTHS, forward)
    assert (machine.budget, machine.halvings) == (100, 0)


def test_lanes_run_side_by_side_with_one_torch_thread_each() -> None:
    both = threading.Barrier(2, timeout=20)

    def forward(rows: IntArray) -> int:
        both.wait()
        return torch.get_num_threads()

    before = torch.get_num_threads()
    assert set(lanes(budget=50, threads=2).run(np.full(4, 50), forward)[1]) == {1}
    assert torch.get_num_threads() == before


def test_no_rows_are_no_batches() -> None:
    assert lanes().run(np.zeros(0, np.int64), len) == ([], [])
