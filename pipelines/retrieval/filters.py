"""Evaluates a SQL condition once to a mask of allowed rows, which every channel then shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from actors.outputs import IntArray
from pipelines.store.row_sets import serialize_row_mask
from pipelines.store.table import Rows

Mask = npt.NDArray[np.bool_]
SELECTIVE_ROWS = 16_384
"""Up to so many allowed rows, each is scored from a column in memory (2.1 ms of one thread for
vectors of 384 numbers): an index would first have to look for them among the others."""
SELECTIVE_STORED_ROWS = 2_048
"""The same if the column has to be read from storage."""


@dataclass(frozen=True, eq=False)
class Filter:
    """Holds the rows that a condition allows, as a mask over positions."""

    allowed: Mask
    rows: Rows

    @cached_property
    def positions(self) -> IntArray:
        """Returns the positions of the allowed rows, ascending."""
        return np.flatnonzero(self.allowed)

    def is_selective(self, in_memory: bool) -> bool:
        """Returns whether scoring every allowed row costs less than searching an index among them."""
        return len(self.positions) <= (SELECTIVE_ROWS if in_memory else SELECTIVE_STORED_ROWS)

    @cached_property
    def scanner_arguments(self) -> Mapping[str, bytes]:
        """Returns the mask as an argument of Lance's scanner, which else evaluates the condition itself."""
        return {"row_addr_allowlist": serialize_row_mask(self.allowed, self.rows)}
