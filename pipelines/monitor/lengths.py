"""Bins text lengths in tokens by powers of two, the same bins for plans and reports."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Lower edges of the bins; the last one is open."""


def histogram(columns: Iterable[pa.Array]) -> dict[str, int]:
    """Counts rows per bin of tokens, `16-31`, ..., `8192+`, from arrays of token counts such as `n_tokens`."""
    edges = np.array([*EDGES, np.inf])
    counts = np.zeros(len(EDGES), dtype=np.int64)
    for column in columns:
        counts += np.histogram(column.drop_null().to_numpy(zero_copy_only=False), edges)[0]
    return dict(zip(bin_labels(), counts.tolist(), strict=True))


def bin_labels() -> list[str]:
    """Returns the names of the bins between EDGES."""
    return [f"{a}-{b - 1}" for a, b in itertools.pairwise(EDGES)] + [f"{EDGES[-1]}+"]
