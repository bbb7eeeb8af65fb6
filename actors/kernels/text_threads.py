"""Divides packed texts between torch's threads, for kernels that take one text at a time and release the GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from actors.outputs import IntArray


def map_texts(work: Callable[[IntArray], object], offsets: IntArray) -> None:
    """Calls `work` with the offsets of runs of whole texts, about as many tokens in each, one run per torch thread."""
    threads = min(torch.get_num_threads(), len(offsets) - 1)
    if threads <= 1:
        work(offsets)
        return
    cuts = np.unique(np.searchsorted(offsets, offsets[-1] * np.arange(threads + 1) // threads))
    list(_pool(threads).map(work, [offsets[a : b + 1] for a, b in pairwise(cuts)]))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "attention")
