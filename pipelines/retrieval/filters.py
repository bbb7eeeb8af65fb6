"""Evaluates a SQL condition once to a mask of allowed rows, which every channel then shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt
from lance.dataset import serialize_row_addrs

from pipelines.store.table import Rows

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Filter:
    """Holds the rows that a condition allows, as a mask over positions."""

    allowed: Mask
    rows: Rows
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def scanner_arguments(self) -> Mapping[str, bytes]:
        """Returns the mask as an argument of Lance's scanner, which else evaluates the condition itself."""
        with self.lock:  # since Python 3.12 a cached_property has none of its own, and two channels need it at once
            return self._scanner_arguments

    @cached_property
    def _scanner_arguments(self) -> Mapping[str, bytes]:
        """Lists allowed or blocked rows, whichever are fewer: a list takes some 100 ns and 60 bytes per row to make."""
        name, listed = "row_addr_allowlist", self.allowed
        if 2 * np.count_nonzero(listed) > len(listed):
            name, listed = "row_addr_blocklist", ~listed
        return {name: serialize_row_addrs(self.rows.addresses(np.flatnonzero(listed)).tolist())}
