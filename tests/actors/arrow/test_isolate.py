from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.arrow.isolate import isolate_failures
from actors.outputs import IntArray


def _fails_on(bad: set[int]) -> tuple[list[int], object]:
    calls: list[int] = []

    def step(rows: IntArray) -> list[int]:
        calls.append(len(rows))
        hit = bad.intersection(rows.tolist())
        if hit:
            raise ValueError(f"cannot take {sorted(hit)}")
        return rows.tolist()

    return calls, step


@given(st.integers(0, 60), st.sets(st.integers(0, 59), max_size=5))
def test_every_row_is_either_done_or_named(n: int, bad: set[int]) -> None:
    _, step = _fails_on(bad)
    found = isolate_failures(step, np.arange(n, dtype=np.int64))  # type: ignore[arg-type]
    assert sorted(f.row for f in found.failures) == sorted(row for row in bad if row < n)
    assert found.rows.tolist() == [row for row in range(n) if row not in bad]
    assert [row for rows, part in found.parts for row in part] == found.rows.tolist()


def test_a_good_batch_is_done_in_one_call() -> None:
    calls, step = _fails_on(set())
    isolate_failures(step, np.arange(1000, dtype=np.int64))  # type: ignore[arg-type]
    assert calls == [1000]


def test_one_bad_row_costs_a_logarithm_of_calls() -> None:
    calls, step = _fails_on({700})
    found = isolate_failures(step, np.arange(1024, dtype=np.int64))  # type: ignore[arg-type]
    assert len(calls) == 21
    assert found.failures[0].error == "ValueError: cannot take [700]"
    assert "in step" in found.failures[0].traceback
