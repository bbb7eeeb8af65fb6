"""Finds the exact n best rows of a sparse query in quantised postings, in three steps.

Quantised scores are upper bounds that exceed the true score by less than a known error. (1) MaxScore adds up the
postings of the query's tokens (`maxscore`). (2) Rows within the error of the n-th best stay. (3) The caller computes
their exact scores from the forward column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.outputs import Array, IntArray
from pipelines.retrieval.scoring.maxscore import Lists, Live, Terms, search_segment
from pipelines.search_indexes.posting_blocks import LEVELS, Blocks
from pipelines.search_indexes.postings import SegmentInfo, uncovered_fragments, valid_segments
from pipelines.store.table import Snapshot

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Holds a segment opened for a snapshot. live: int32 position of each physical row, -1 if deleted.

    lists: all of them if they are held in memory; else only the directory is held, and lists are read per query.
    """

    info: SegmentInfo
    dataset: Any
    live: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.uint32]
    lists: Lists | None

    def find_blocks(self, token_ids: Array) -> tuple[IntArray, IntArray, Lists]:
        """Returns the range of each token's blocks, and the blocks that the ranges index, read from disk if need be."""
        lows = np.searchsorted(self.tokens, token_ids, side="left")
        highs = np.searchsorted(self.tokens, token_ids, side="right")
        if self.lists is not None:
            return lows, highs, self.lists
        # Only the query's blocks are read, in one request; their ranges then count from the first block that was read.
        wanted = np.concatenate([np.arange(a, b) for a, b in zip(lows, highs, strict=True)])
        blocks = Blocks.from_arrow(self.dataset.take(pa.array(wanted), columns=["token", "page", "maximum", "data"]))
        ends = np.cumsum(highs - lows)
        return ends - (highs - lows), ends, as_lists(blocks)


def as_lists(blocks: Blocks) -> Lists:
    """Unfolds long posting lists to one weight per row, for the kernel."""
    return Lists(blocks.pages, blocks.maxima, blocks.starts, blocks.offsets, blocks.weights, *blocks.unfolded())


def open_segment(snapshot: Snapshot, info: SegmentInfo, dataset: Any, in_memory: bool) -> Segment:
    """Opens a segment: maps its physical rows to positions, and reads all of its blocks if `in_memory`."""
    # A segment numbers the physical rows of its fragments one after the other; deletions since then leave -1.
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
        return Segment(info, dataset, live, blocks.tokens, as_lists(blocks))
    return Segment(info, dataset, live, dataset.to_table(columns=["token"])["token"].to_numpy(), None)


@dataclass(frozen=True, slots=True, eq=False)
class InvertedIndex:
    """Holds all segments that a snapshot can use, and the positions of the rows that none of them covers."""

    segments: tuple[Segment, ...]
    uncovered: IntArray

    @classmethod
    def open(cls, snapshot: Snapshot, name: str, memory: int) -> InvertedIndex:
        """Opens the segments of embedder `name`, in memory as long as they fit `memory` bytes."""
        opened = []
        for info, dataset in valid_segments(snapshot, name):
            needed = 6 * info.postings
            fits = needed <= memory
            memory -= needed if fits else 0
            opened.append(open_segment(snapshot, info, dataset, fits))
        missing = {f.fragment_id for f in uncovered_fragments(snapshot, [s.info for s in opened])}
        rest = [np.arange(f.first, f.first + f.rows) for f in snapshot.rows.fragments if f.id in missing]
        return cls(tuple(opened), np.concatenate([np.zeros(0, np.int64), *rest]))

    def promising(self, token_ids: Array, weights: Floats, n: int, allowed: Mask | None = None) -> IntArray:
        """Returns ascending positions that certainly include the n best covered rows."""
        lists = [s.find_blocks(token_ids) for s in self.segments]
        error = max([_quantisation_error(*found, weights) for found in lists], default=0.0)
        # One heap over all segments, the large ones first (`valid_segments`): its root soon is a high bar, under which
        # later segments skip whole pages.
        heap, size = np.zeros(n, np.float32), 0
        mask = np.zeros(0, np.bool_) if allowed is None else allowed
        positions, bounds = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
        for segment, (lows, highs, b) in zip(self.segments, lists, strict=True):
            found, upper = np.empty(len(segment.live), np.int32), np.empty(len(segment.live), np.float32)
            size, count = search_segment(
                Terms(lows, highs, weights),
                b,
                Live(segment.live, mask),
                np.float32(error),
                heap,
                size,
                found,
                upper,
            )
            positions.append(found[:count])
            bounds.append(upper[:count])
        # Rows were kept by the bar of their time; the last one is the highest, and removes those that it leaves behind.
        bar = heap[0] - error if size == n else 0.0
        return np.sort(np.concatenate(positions)[np.concatenate(bounds) >= bar]).astype(np.int64)


def _quantisation_error(lows: IntArray, highs: IntArray, lists: Lists, weights: Floats) -> float:
    """Bounds by how much a quantised score exceeds the true one, plus a margin for the rounding of float32 sums."""
    largest = [lists.maxima[a:b].max(initial=0) for a, b in zip(lows, highs, strict=True)]
    return float(np.dot(largest, weights)) / LEVELS * 1.001 + 1e-6
