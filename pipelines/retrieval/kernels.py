"""The inner loops, compiled by numba: selection of the best, sparse accumulation, MaxSim over one-bit codes.

They release the GIL and use one thread each; callers split work over threads themselves, because numba's own
threading layers are not safe to enter from several Python threads.

One-bit MaxSim is exact. A query vector is rounded to 8-bit integers held as 8 bit planes, so that its product with a
code is 8 popcounts a word; rounding moves a product by at most a known bound, and only the document vectors within
that bound of the maximum (about two of a hundred) are multiplied in float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic

from actors.outputs import Array, IntArray

Floats = npt.NDArray[np.float32]
PLANES = 8


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    kernel: Callable[..., Any] = numba.njit(cache=True, nogil=True, boundscheck=False)(function)
    return kernel


@intrinsic  # type: ignore[untyped-decorator]
def popcount(_context: Any, word: Any) -> Any:
    """Bits set in a uint64; one instruction, and LLVM vectorises it where the processor can."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(word), generate


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
def sparse_dots(query: Any, offsets: Any, token_ids: Any, weights: Any, out: Any) -> None:
    """out[i] = sum over the tokens of row i of weight * query[token]; `query` is a dense (vocabulary,) vector."""
    size = len(query)
    for i in range(len(offsets) - 1):
        total = np.float32(0)
        for j in range(offsets[i], offsets[i + 1]):
            token = token_ids[j]
            if token < size:
                total += weights[j] * query[token]
        out[i] = total


@compiled
def transpose(offsets: Any, token_ids: Any, starts: Any, rows: Any) -> None:
    """Counting sort of rows by token; `starts` (vocabulary,) are consumed as write positions. rows: (2, nnz)."""
    for i in range(len(offsets) - 1):
        for j in range(offsets[i], offsets[i + 1]):
            slot = starts[token_ids[j]]
            starts[token_ids[j]] = slot + 1
            rows[0, slot] = i
            rows[1, slot] = j


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


@compiled
def _rounded_products(planes: Any, codes: Any, start: int, end: int, scratch: Any) -> None:
    """scratch[q, t]: sum of the rounded query values where the code has a one; two's complement, so plane 7 is -128."""
    counts = np.zeros(PLANES, np.uint64)
    for t in range(start, end):
        for q in range(planes.shape[0]):
            counts[:] = 0
            for w in range(planes.shape[1]):
                word = codes[t, w]
                for p in range(PLANES):
                    counts[p] += popcount(planes[q, w, p] & word)
            total = -(np.int32(counts[7]) << 7)
            for p in range(PLANES - 1):
                total += np.int32(counts[p]) << p
            scratch[q, t - start] = total


@compiled
def _exact_product(table: Any, code: Any) -> np.float32:
    total = np.float32(0)
    for b in range(len(code)):
        total += table[b, code[b]]
    return total


@compiled
def _best_match(table: Any, approximate: Any, slack: int, codes: Any, start: int) -> tuple[np.float32, int]:
    """Exact maximum over one document and where it stands, given products that are off by at most `slack`."""
    least = approximate.max() - slack
    best, where = np.float32(-np.inf), -1
    for t in range(len(approximate)):
        if approximate[t] >= least:
            value = _exact_product(table, codes[start + t])
            if value > best:
                best, where = value, t
    return best, where


@compiled
def maxsim_bits(
    planes: Any, tables: Any, slack: Any, weights: Any, words: Any, codes: Any, offsets: Any, out: Any, matches: Any
) -> None:
    """out[i] = sum over query vectors of weight * max over document i; matches (n or 0, q): which vector it was."""
    longest = 1
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    scratch = np.empty((planes.shape[0], longest), np.int32)
    for i in range(len(offsets) - 1):
        start, end = offsets[i], offsets[i + 1]
        total = np.float32(0)
        if end > start:
            _rounded_products(planes, words, start, end, scratch)
            for q in range(planes.shape[0]):
                best, where = _best_match(tables[q], scratch[q, : end - start], slack[q], codes, start)
                total += weights[q] * best
                if len(matches):
                    matches[i, q] = where
        out[i] = total


def _words(codes: Array) -> Array:
    """Codes (m, bytes) as (m, words) uint64, padded with zeros to whole words."""
    missing = -codes.shape[1] % 8
    padded = np.pad(codes, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(codes)
    return padded.view(np.uint64)


class BitQuery:
    """One query's vectors, (m, dim) float32, made ready for one-bit codes."""

    def __init__(self, vectors: Floats) -> None:
        m, dim = vectors.shape
        step = np.maximum(np.abs(vectors).max(axis=1, initial=0), 1e-12)[:, None] / np.float32(127)
        rounded = np.rint(vectors / step)
        self.slack = np.ceil(np.abs(vectors / step - rounded).sum(axis=1)).astype(np.int64) + 1
        bits = np.zeros((m, -(-dim // 64) * 64, PLANES), np.uint8)
        bits[:, :dim] = np.unpackbits(rounded.astype(np.int8).view(np.uint8)[:, :, None], axis=2, bitorder="little")
        packed = np.packbits(bits.transpose(0, 2, 1), axis=2, bitorder="little").view(np.uint64)
        self.planes = np.ascontiguousarray(packed.transpose(0, 2, 1))
        self.tables = _byte_tables(vectors / np.float32(np.sqrt(dim)))

    def scores(
        self, codes: Array, offsets: IntArray, weights: Floats, matches: npt.NDArray[np.int32] | None = None
    ) -> Floats:
        """Weighted sum over query vectors of the best product in each document: float32 (documents,)."""
        out = np.zeros(len(offsets) - 1, np.float32)
        none = np.empty((0, 0), np.int32)
        maxsim_bits(
            self.planes,
            self.tables,
            self.slack,
            weights,
            _words(codes),
            codes,
            offsets,
            out,
            none if matches is None else matches,
        )
        return out


def _byte_tables(vectors: Floats) -> Floats:
    """(m, bytes, 256): what each byte of a code contributes to the product; bits are +1 and -1, padding counts 0."""
    m, dim = vectors.shape
    padded = np.zeros((m, -(-dim // 8) * 8), np.float32)
    padded[:, :dim] = vectors
    signs = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32) * 2 - 1
    return np.ascontiguousarray((padded.reshape(-1, 8) @ signs.T).reshape(m, -1, 256))
