"""Searches the sparse inverted index: the exact best rows from quantised postings, in three steps.

Quantised scores are upper bounds that overshoot by less than a known error. (1) Page by page, the postings of the
query's tokens are added up; lists that together cannot lift a row into the best n are left out and only looked up for
rows that are already promising (MaxScore), and pages whose block maxima do not suffice are skipped. (2) Rows within
the error of the n-th best stay. (3) Their scores are computed from the forward column. With `prune` above 1 the bar
is raised by that factor: fewer postings, and a recall below 1 that benchmarks/RESULTS.md states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.outputs import Array, IntArray
from pipelines.store.blocks import LEVELS, PAGE, PAGE_BITS, Blocks, compiled
from pipelines.store.postings import SegmentInfo, uncovered_fragments, valid_segments
from pipelines.store.table import Snapshot

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@compiled
def _push(heap: Any, size: int, value: float) -> int:
    """Adds to a min-heap of at most len(heap) values; returns the new size."""
    if size < len(heap):
        i = size
        while i > 0 and heap[(i - 1) >> 1] > value:
            heap[i] = heap[(i - 1) >> 1]
            i = (i - 1) >> 1
        heap[i] = value
        return size + 1
    if value <= heap[0]:
        return size
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = value
    return size


@compiled
def _lookup(offsets: Any, start: int, end: int, wanted: int) -> int:
    """Place of `wanted` in ascending offsets[start:end], or -1."""
    low, high = start, end
    while low < high:
        middle = (low + high) >> 1
        if offsets[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < end and offsets[low] == wanted else -1


@compiled
def _order_by_length(lengths: Any, order: Any, m: int) -> None:
    for i in range(m):
        order[i] = i
    for i in range(1, m):
        item = order[i]
        j = i
        while j > 0 and lengths[order[j - 1]] > lengths[item]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = item


@compiled
def search_segment(
    lows: Any,
    highs: Any,
    factors: Any,
    pages: Any,
    maxima: Any,
    starts: Any,
    offsets: Any,
    weights: Any,
    live: Any,
    allowed: Any,
    error: float,
    prune: float,
    heap: Any,
    size: int,
    found: Any,
    bounds: Any,
) -> tuple[int, int]:
    """Writes promising rows (positions, upper bounds) into found and bounds; returns (heap size, rows found).

    lows, highs: each query token's blocks; factors: its query weight. live: position of each physical row, -1 where
    deleted. heap: the n best upper bounds so far, over all segments.
    """
    terms = len(lows)
    cursor, block, lengths = lows.copy(), np.empty(terms, np.int64), np.empty(terms, np.int64)
    order, steps = np.empty(terms, np.int64), np.empty(terms, np.float32)
    sums = np.zeros(PAGE, np.float32)
    masked, n_found = len(allowed) > 0, 0
    for page in range((len(live) + PAGE - 1) >> PAGE_BITS):
        bar = (heap[0] - error) * prune if size == len(heap) else np.float32(0)
        m, total = 0, np.float32(0)
        for t in range(terms):
            while cursor[t] < highs[t] and pages[cursor[t]] < page:
                cursor[t] += 1
            if cursor[t] < highs[t] and pages[cursor[t]] == page:
                b = cursor[t]
                block[m], lengths[m] = b, starts[b + 1] - starts[b]
                steps[m] = factors[t] * maxima[b] / LEVELS
                total += steps[m] * LEVELS
                m += 1
        if m == 0 or total < bar:
            continue
        _order_by_length(lengths, order, m)
        essential, rest = m, np.float32(0)
        while essential > 1 and rest + steps[order[essential - 1]] * LEVELS < bar:
            essential -= 1
            rest += steps[order[essential]] * LEVELS
        for e in range(essential):
            b, step = block[order[e]], steps[order[e]]
            for p in range(starts[b], starts[b + 1]):
                sums[offsets[p]] += step * weights[p]
        first = page << PAGE_BITS
        for i in range(min(PAGE, len(live) - first)):
            score = sums[i]
            if score == 0:
                continue
            sums[i] = 0
            if score + rest < bar:
                continue
            position = live[first + i]
            if position < 0 or (masked and not allowed[position]):
                continue
            for e in range(essential, m):
                b = block[order[e]]
                p = _lookup(offsets, starts[b], starts[b + 1], i)
                if p >= 0:
                    score += steps[order[e]] * weights[p]
            if score >= bar:
                size = _push(heap, size, score)
                found[n_found], bounds[n_found] = position, score
                n_found += 1
                if size == len(heap):
                    bar = (heap[0] - error) * prune
    return size, n_found


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A segment opened for a snapshot. live: int32 position of each physical row, -1 where deleted.

    blocks: all of them where they are held in memory; else only the directory is held, and lists are read by query.
    """

    info: SegmentInfo
    dataset: Any
    live: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.uint32]
    blocks: Blocks | None

    def lists(self, token_ids: Array) -> tuple[IntArray, IntArray, Blocks]:
        """Ranges of each token's blocks, and the blocks that they are ranges of."""
        lows = np.searchsorted(self.tokens, token_ids, side="left")
        highs = np.searchsorted(self.tokens, token_ids, side="right")
        if self.blocks is not None:
            return lows, highs, self.blocks
        wanted = np.concatenate([np.arange(a, b) for a, b in zip(lows, highs, strict=True)])
        blocks = Blocks.from_arrow(self.dataset.take(pa.array(wanted), columns=["token", "page", "maximum", "data"]))
        ends = np.cumsum(highs - lows)
        return ends - (highs - lows), ends, blocks


def open_segment(snapshot: Snapshot, info: SegmentInfo, dataset: Any, in_memory: bool) -> Segment:
    live = np.full(info.rows, -1, np.int32)
    first = 0
    known = {f.id: f for f in snapshot.rows.fragments}
    for fragment_id, rows in info.fragments:
        fragment = known[fragment_id]
        places = np.arange(rows) if fragment.live is None else fragment.live
        live[first + places] = fragment.first + np.arange(fragment.rows)
        first += rows
    if in_memory:
        blocks = Blocks.from_arrow(dataset.to_table())
        return Segment(info, dataset, live, blocks.tokens, blocks)
    return Segment(info, dataset, live, dataset.to_table(columns=["token"])["token"].to_numpy(), None)


@dataclass(frozen=True, slots=True, eq=False)
class InvertedIndex:
    """All segments that a snapshot can use, and the positions of the rows that none of them covers."""

    segments: tuple[Segment, ...]
    uncovered: IntArray

    @classmethod
    def open(cls, snapshot: Snapshot, name: str, memory: int) -> InvertedIndex:
        """Holds segments in memory while they fit `memory` bytes."""
        opened = []
        for info, dataset in valid_segments(snapshot, name):
            needed = 4 * info.postings
            fits = needed <= memory
            memory -= needed if fits else 0
            opened.append(open_segment(snapshot, info, dataset, fits))
        missing = {f.fragment_id for f in uncovered_fragments(snapshot, [s.info for s in opened])}
        rest = [np.arange(f.first, f.first + f.rows) for f in snapshot.rows.fragments if f.id in missing]
        return cls(tuple(opened), np.concatenate([np.zeros(0, np.int64), *rest]))

    def promising(
        self, token_ids: Array, weights: Floats, n: int, allowed: Mask | None = None, prune: float = 1.0
    ) -> IntArray:
        """Positions among which the n best covered rows are for certain (with `prune` 1), ascending."""
        lists = [s.lists(token_ids) for s in self.segments]
        error = max([_overshoot(*found, weights) for found in lists], default=0.0)
        heap, size = np.zeros(n, np.float32), 0
        mask = np.zeros(0, np.bool_) if allowed is None else allowed
        positions, bounds = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
        for segment, (lows, highs, b) in zip(self.segments, lists, strict=True):
            found, upper = np.empty(len(segment.live), np.int32), np.empty(len(segment.live), np.float32)
            size, count = search_segment(
                lows, highs, weights, b.pages, b.maxima, b.starts, b.offsets, b.weights, segment.live, mask,
                np.float32(error), np.float32(prune), heap, size, found, upper,
            )  # fmt: skip
            positions.append(found[:count])
            bounds.append(upper[:count])
        bar = heap[0] - error if size == n else 0.0
        return np.sort(np.concatenate(positions)[np.concatenate(bounds) >= bar]).astype(np.int64)


def _overshoot(lows: IntArray, highs: IntArray, blocks: Blocks, weights: Floats) -> float:
    """By how much a quantised score can be above the true one; a little more, for the rounding of float32 sums."""
    largest = [blocks.maxima[a:b].max(initial=0) for a, b in zip(lows, highs, strict=True)]
    return float(np.dot(largest, weights)) / LEVELS * 1.001 + 1e-6
