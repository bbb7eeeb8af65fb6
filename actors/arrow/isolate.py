"""Finds by bisection the rows at which a step fails, so that one bad row does not fail its batch.

That costs log2(rows) further calls for each bad row, and nothing where all is well.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from actors.outputs import IntArray

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """Describes the failure of one row: the error in one line, and the traceback."""

    row: int
    error: str
    traceback: str

    def __str__(self) -> str:
        """The error's line first, then the traceback: the form in which it travels in a block's `error` column."""
        return f"{self.error}\n{self.traceback}"


@dataclass(frozen=True, slots=True)
class Isolated(Generic[T]):
    """Holds the parts that succeeded, each with its rows, and the failures."""

    parts: list[tuple[IntArray, T]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def rows(self) -> IntArray:
        """Returns the rows that succeeded, in the order of the parts."""
        return np.concatenate([rows for rows, _ in self.parts]) if self.parts else np.zeros(0, dtype=np.int64)


def isolate_failures(apply: Callable[[IntArray], T], rows: IntArray) -> Isolated[T]:
    """Applies a step to the rows; where it raises, to each half of them, down to the single rows that fail.

    >>> found = isolate_failures(lambda rows: [1 / (int(row) - 2) for row in rows], np.arange(4))
    >>> found.rows.tolist(), [(failure.row, failure.error) for failure in found.failures]
    ([0, 1, 3], [(2, 'ZeroDivisionError: division by zero')])
    """
    found: Isolated[T] = Isolated()
    _isolate(apply, rows, found)
    return found


def _isolate(apply: Callable[[IntArray], T], rows: IntArray, found: Isolated[T]) -> None:
    if len(rows) == 0:
        return
    try:
        found.parts.append((rows, apply(rows)))
    except Exception as error:
        _leave_if_device_is_lost(error)
        if len(rows) == 1:
            found.failures.append(Failure(int(rows[0]), f"{type(error).__name__}: {error}", traceback.format_exc()))
            return
        middle = len(rows) // 2
        _isolate(apply, rows[:middle], found)
        _isolate(apply, rows[middle:], found)


def _leave_if_device_is_lost(error: Exception) -> None:
    """Ends the process where the CUDA context has failed: every later call fails, whatever the row.

    Ray then starts the actor again with a new context and repeats the block.
    """
    if isinstance(error, RuntimeError) and "CUDA error" in str(error) and "out of memory" not in str(error):
        traceback.print_exc()
        os._exit(1)
