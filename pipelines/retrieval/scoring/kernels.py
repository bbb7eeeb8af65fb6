"""Implements the inner loops of scoring in numba: top-n selection, dot products with chosen rows, segment maxima.

Each has a numpy twin (`_plain_*`) with the same results, for machines without numba or with NUMBA_DISABLE_JIT=1.
Kernels release the GIL and use one thread each; callers split work over threads themselves, because numba's own
threading layers are not safe to enter from several Python threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.kernels.jit import compiled, compiled_or
from actors.outputs import IntArray, ranges

Floats = npt.NDArray[np.float32]


@lru_cache(maxsize=1)
def workers(threads: int) -> ThreadPoolExecutor:
    """Returns the thread pool of the kernels, one per process: starting it costs as much as scoring fifty documents."""
    return ThreadPoolExecutor(threads, "kernels")


@compiled
def _sift_down(values: Any, items: Any, i: int, size: int) -> None:
    """Restores the min-heap from node i down; of equal values the later item is the smaller, so earlier ones stay."""
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


def _plain_select(scores: Any, allowed: Any, above: float, values: Any, items: Any) -> int:
    kept = scores > above
    if len(allowed):
        kept &= allowed
    places = np.flatnonzero(kept)
    best = places[np.lexsort((places, -scores[places]))][: len(values)]
    values[: len(best)], items[: len(best)] = scores[best], best
    return len(best)


@compiled_or(_plain_select)
def _select_top(scores: Any, allowed: Any, above: float, values: Any, items: Any) -> int:
    # (1) The first n rows above the bar fill the arrays unordered. (2) One bottom-up heapify, O(n). (3) From then on
    # the root is the bar: most rows fail one comparison, and only better ones cost a sift of log n.
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
    """Selects positions and scores of the n best above `above`, best first; of equal ones the lower position first."""
    size = min(n, len(scores))
    values, items = np.empty(size, np.float32), np.empty(size, np.int64)
    if size:
        size = _select_top(scores, _ALL if allowed is None else allowed, above, values, items)
    order = np.lexsort((items[:size], -values[:size]))
    return items[:size][order], values[:size][order]


def _plain_sparse_dots(query: Any, offsets: Any, token_ids: Any, weights: Any, rows: Any, out: Any) -> None:
    lengths = offsets[rows + 1] - offsets[rows]
    places = ranges(offsets[rows], lengths)
    known = token_ids[places] < len(query)
    owners, places = np.repeat(np.arange(len(rows)), lengths)[known], places[known]
    out[:] = np.bincount(owners, weights[places] * query[token_ids[places]], len(rows))


@compiled_or(_plain_sparse_dots)
def sparse_dots(query: Any, offsets: Any, token_ids: Any, weights: Any, rows: Any, out: Any) -> None:
    """Writes out[i] = sum over the tokens of row rows[i] of weight * query[token]; `query` is dense, (vocabulary,).

    Summed in float64, as numpy's counting does it.
    """
    size = len(query)
    for i in range(len(rows)):
        total = 0.0
        for j in range(offsets[rows[i]], offsets[rows[i] + 1]):
            token = token_ids[j]
            if token < size:
                total += weights[j] * query[token]
        out[i] = total


def _plain_dense_dots(query: Any, vectors: Any, rows: Any, out: Any) -> None:
    out[:] = np.einsum("ij,j->i", vectors[rows], query)


@compiled_or(_plain_dense_dots, fast=True)
def dense_dots(query: Any, vectors: Any, rows: Any, out: Any) -> None:
    """Writes out[i] = query . vectors[rows[i]]; the compiled loop may reorder the float32 sum."""
    for i in range(len(rows)):
        row = vectors[rows[i]]
        total = np.float32(0)
        for d in range(len(query)):
            total += query[d] * row[d]
        out[i] = total


def _plain_accumulate(positions: Any, weights: Any, factor: float, scores: Any) -> None:
    scores[positions] += np.float32(factor) * weights


@compiled_or(_plain_accumulate)
def accumulate(positions: Any, weights: Any, factor: float, scores: Any) -> None:
    """Adds factor * weights to the scores at these positions, which are distinct."""
    for i in range(len(positions)):
        scores[positions[i]] += factor * weights[i]


def _plain_segment_max(products: Any, offsets: Any, weights: Any, out: Any) -> None:
    out[:] = 0
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        out[filled] = weights @ np.maximum.reduceat(products, offsets[filled], axis=1)


@compiled_or(_plain_segment_max)
def segment_max(products: Any, offsets: Any, weights: Any, out: Any) -> None:
    """Writes out[i] = sum over query vectors of weight * max over document i; products: (query, document vectors)."""
    for i in range(len(offsets) - 1):
        start, end = offsets[i], offsets[i + 1]
        total = np.float32(0)
        # Query vectors outside, a document's products inside: each row of `products` is read in memory order.
        if end > start:
            for q in range(len(products)):
                best = products[q, start]
                for t in range(start + 1, end):
                    best = max(best, products[q, t])
                total += weights[q] * best
        out[i] = total
