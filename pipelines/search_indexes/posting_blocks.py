"""Encodes the postings of one segment as blocks: per posting 2 bytes of row and 1 of weight, per block one maximum.

A block holds one token's postings within one page of 65,536 rows, so that a row is a 16-bit offset. Weights are
rounded up to 1/255 of the block's maximum: a quantised score is never below the true one, and above it by less than a
known error, which is what makes an exact top-k out of it possible. Three bytes and a share of the block's head cost
about half of ids and float16 weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.kernels.jit import compiled_or
from actors.outputs import Array, IntArray, SparseVectors, offsets_of, ranges

PAGE_BITS = 16
PAGE = 1 << PAGE_BITS
LEVELS = 255
LONG = PAGE // 4
"""From here on a block is faster to add up as one weight a row (16 rows in one instruction) than posting by posting."""
BLOCK_SCHEMA = pa.schema(
    [
        pa.field("token", pa.uint32()),
        pa.field("page", pa.uint16()),
        pa.field("maximum", pa.float32()),
        pa.field("data", pa.large_binary()),
    ]
)
"""Rows ascend by token and page. data: the offsets (uint16 each), then the weights (uint8 each)."""
Floats = npt.NDArray[np.float32]


def _plain_transpose(offsets: Any, token_ids: Any, weights: Any, _starts: Any, rows: Any, out: Any) -> None:
    order = np.argsort(token_ids, kind="stable")
    rows[:] = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[order]
    out[:] = weights[order]


@compiled_or(_plain_transpose)
def transpose(offsets: Any, token_ids: Any, weights: Any, starts: Any, rows: Any, out: Any) -> None:
    """Sorts rows and weights by token (counting sort); `starts` (vocabulary,) are consumed as write positions."""
    for i in range(len(offsets) - 1):
        for j in range(offsets[i], offsets[i + 1]):
            slot = starts[token_ids[j]]
            starts[token_ids[j]] = slot + 1
            rows[slot], out[slot] = i, weights[j]


def _plain_separate(data: Any, bounds: Any, starts: Any, offsets: Any, weights: Any) -> None:
    counts = np.diff(starts)
    offsets[:] = data[ranges(bounds[:-1], 2 * counts)]
    weights[:] = data[ranges(bounds[:-1] + 2 * counts, counts)]


@compiled_or(_plain_separate)
def separate(data: Any, bounds: Any, starts: Any, offsets: Any, weights: Any) -> None:
    """Splits blocks' bytes, offsets (two bytes each) before weights, into all offsets and all weights."""
    for b in range(len(starts) - 1):
        first, last, at = starts[b], starts[b + 1], bounds[b]
        offsets[2 * first : 2 * last] = data[at : at + 2 * (last - first)]
        weights[first:last] = data[at + 2 * (last - first) : at + 3 * (last - first)]


def by_token(rows: SparseVectors) -> tuple[IntArray, npt.NDArray[np.int32], Floats]:
    """Inverts rows: starts (vocabulary + 1,) of each token's postings, their rows ascending, and their weights."""
    vocabulary = int(rows.token_ids.max(initial=0)) + 1
    starts = offsets_of(np.bincount(rows.token_ids, minlength=vocabulary))
    positions, weights = np.empty(len(rows.token_ids), np.int32), np.empty(len(rows.token_ids), np.float32)
    transpose(rows.offsets, rows.token_ids, rows.weights, starts[:-1].copy(), positions, weights)
    return starts, positions, weights


def _block_starts(starts: IntArray, pages: npt.NDArray[np.uint16]) -> IntArray:
    """Finds where blocks begin among postings ordered by token and page."""
    new = np.empty(len(pages), bool)
    new[1:] = pages[1:] != pages[:-1]
    new[starts[:-1][np.diff(starts) > 0]] = True
    return np.flatnonzero(new)


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Holds decoded blocks, b of them with p postings in all.

    tokens uint32 (b,), pages (b,), maxima float32 (b,), starts int64 (b + 1,); offsets uint16 (p,), weights uint8 (p,).
    """

    tokens: npt.NDArray[np.uint32]
    pages: npt.NDArray[np.uint16]
    maxima: Floats
    starts: IntArray
    offsets: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.tokens, self.pages, self.maxima, self.starts, self.offsets, self.weights))

    def unfolded(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Unfolds blocks of LONG postings or more to one weight per row: place of each block (-1: short), (k, PAGE)."""
        long = np.flatnonzero(np.diff(self.starts) >= LONG)
        places, rows = np.full(len(self.tokens), -1, np.int32), np.zeros((len(long), PAGE), np.uint8)
        for place, block in enumerate(long):
            part = slice(self.starts[block], self.starts[block + 1])
            places[block] = place
            rows[place, self.offsets[part]] = self.weights[part]
        return places, rows

    @classmethod
    def of(cls, rows: SparseVectors) -> Blocks:
        """Builds the blocks of rows 0..n-1."""
        starts, positions, weights = by_token(rows)
        pages = (positions >> PAGE_BITS).astype(np.uint16)
        first = _block_starts(starts, pages)
        tokens = np.searchsorted(starts, first, side="right") - 1
        maxima = np.maximum.reduceat(weights, first) if len(first) else np.zeros(0, np.float32)
        bounds = np.append(first, len(pages)).astype(np.int64)
        weights /= np.repeat(maxima, np.diff(bounds))  # in place: a segment has hundreds of millions of postings
        weights *= LEVELS
        quantised = np.ceil(weights, out=weights).clip(1, LEVELS, out=weights).astype(np.uint8)
        offsets = (positions & (PAGE - 1)).astype(np.uint16)
        return cls(tokens.astype(np.uint32), pages[first], maxima, bounds, offsets, quantised)

    def to_arrow(self, blocks_a_batch: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Encodes the blocks as record batches of BLOCK_SCHEMA."""
        for first in range(0, len(self.tokens), blocks_a_batch):
            part = slice(first, first + blocks_a_batch)
            bounds = self.starts[first : min(first + blocks_a_batch, len(self.tokens)) + 1]
            counts = np.diff(bounds)
            data = self._interleaved(bounds, counts)
            starts = pa.py_buffer(3 * (bounds - bounds[0]))
            column = pa.Array.from_buffers(pa.large_binary(), len(counts), [None, starts, pa.py_buffer(data)])
            head = [pa.array(self.tokens[part]), pa.array(self.pages[part]), pa.array(self.maxima[part])]
            yield pa.record_batch([*head, column], schema=BLOCK_SCHEMA)

    def _interleaved(self, bounds: IntArray, counts: IntArray) -> npt.NDArray[np.uint8]:
        data = np.empty(3 * int(counts.sum()), np.uint8)
        starts = 3 * (bounds[:-1] - bounds[0])
        postings = slice(bounds[0], bounds[-1])
        data[ranges(starts, 2 * counts)] = self.offsets[postings].astype("<u2").view(np.uint8)
        data[ranges(starts + 2 * counts, counts)] = self.weights[postings]
        return data

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Blocks:
        """Decodes what `to_arrow` encodes, for any selection of blocks in table order."""
        column = table["data"].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        column = column.cast(pa.large_binary())
        _, offset_buffer, buffer = column.buffers()
        bounds = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
        data: Array = np.frombuffer(buffer or b"", np.uint8)
        starts = offsets_of(np.diff(bounds) // 3)
        offsets, weights = np.empty(2 * starts[-1], np.uint8), np.empty(starts[-1], np.uint8)
        separate(data, bounds, starts, offsets, weights)
        tokens, pages, maxima = (table[name].to_numpy() for name in ("token", "page", "maximum"))
        return cls(tokens, pages, maxima, starts, offsets.view("<u2"), weights)
