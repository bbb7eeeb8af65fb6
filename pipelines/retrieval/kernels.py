"""The inner loops, compiled by numba: selection of the best, sparse accumulation, maxima of segments.

They release the GIL and use one thread each; callers split work over threads themselves, because numba's own
threading layers are not safe to enter from several Python threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actors.outputs import IntArray
from pipelines.store.blocks import compiled, fast

Floats = npt.NDArray[np.float32]


@compiled
def _sift_down(values: Any, items: Any, i: int, size: int) -> None:
    """Min-heap by value; of equal values the later item is the smaller, so that earlier items stay."""
    value, item = values[i], items[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            values[right] < values[child] or (values[right] == values[child] and items[right] > items[child])
        ):
            child = right
        if values[child] > value or (values[child] == value and items[child] < item):
            break
        values[i], items[i] = values[child], items[child]
        i = child
    values[i], items[i] = value, item


@compiled
def _select(scores: Any, allowed: Any, above: float, values: Any, items: Any) -> int:
    size, n = 0, len(values)
    masked = len(allowed) > 0
    for i in range(len(scores)):
        score = scores[i]
        if not score > above or (masked and not allowed[i]):
            continue
        if size < n:
            values[size], items[size] = score, i
            size += 1
            if size == n:
                for j in range(n // 2 - 1, -1, -1):
                    _sift_down(values, items, j, n)
                above = max(above, values[0])
        elif score > values[0]:
            values[0], items[0] = score, i
            _sift_down(values, items, 0, n)
            above = max(above, values[0])
    return size


_ALL = np.zeros(0, np.bool_)


def top_n(
    scores: Floats, n: int, allowed: npt.NDArray[np.bool_] | None = None, above: float = -np.inf
) -> tuple[IntArray, Floats]:
    """Positions and scores of the n best above `above`, best first; of equal scores the lower position comes first."""
    size = min(n, len(scores))
    values, items = np.empty(size, np.float32), np.empty(size, np.int64)
    if size:
        size = _select(scores, _ALL if allowed is None else allowed, above, values, items)
    order = np.lexsort((items[:size], -values[:size]))
    return items[:size][order], values[:size][order]


@compiled
def sparse_dots(query: Any, offsets: Any, token_ids: Any, weights: Any, rows: Any, out: Any) -> None:
    """out[i] = sum over the tokens of row rows[i] of weight * query[token]; `query` is a dense (vocabulary,) vector."""
    size = len(query)
    for i in range(len(rows)):
        total = np.float32(0)
        for j in range(offsets[rows[i]], offsets[rows[i] + 1]):
            token = token_ids[j]
            if token < size:
                total += weights[j] * query[token]
        out[i] = total


@fast
def dense_dots(query: Any, vectors: Any, rows: Any, out: Any) -> None:
    """out[i] = query . vectors[rows[i]]."""
    for i in range(len(rows)):
        row = vectors[rows[i]]
        total = np.float32(0)
        for d in range(len(query)):
            total += query[d] * row[d]
        out[i] = total


@compiled
def accumulate(positions: Any, weights: Any, factor: float, scores: Any) -> None:
    for i in range(len(positions)):
        scores[positions[i]] += factor * weights[i]


@compiled
def segment_max(products: Any, offsets: Any, weights: Any, out: Any) -> None:
    """products: (query vectors, document vectors); out[i] = sum over query vectors of weight * max over document i."""
    for i in range(len(offsets) - 1):
        start, end = offsets[i], offsets[i + 1]
        total = np.float32(0)
        if end > start:
            for q in range(len(products)):
                best = products[q, start]
                for t in range(start + 1, end):
                    best = max(best, products[q, t])
                total += weights[q] * best
        out[i] = total
