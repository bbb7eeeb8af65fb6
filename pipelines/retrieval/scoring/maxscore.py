"""Scores postings document-at-a-time by pages of 65,536 rows, with MaxScore's split into essential lists and others.

Lists that name a quarter of a page's rows or more are held as one weight per row: adding up 65,536 of them takes some
microseconds, and looking one up is a load. Those of them that together cannot lift a row into the best n are not added
up, only looked up for candidates found without them; the bar rises with every row found, so that a larger table
costs less per row. Short lists are always added up: leaving them out, too, and searching them for candidates took up
to twenty times as long. Skipping within a page by finer maxima was not built: with rows in no order of content,
neighbours share no tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from actors.kernels.jit import compiled, compiled_or
from actors.outputs import IntArray
from pipelines.search_indexes.posting_blocks import LEVELS, PAGE, PAGE_BITS

Floats = npt.NDArray[np.float32]
STRIDE = 64
"""Rows of a page that one vectorised comparison with the bar covers."""
MANY = 1000
"""Candidates of a page from which on adding up the non-essential lists takes less time than looking each row up."""
TINY = np.float32(1e-30)


class Terms(NamedTuple):
    """Holds a query's tokens: the range of each one's blocks, and its weight."""

    lows: IntArray
    highs: IntArray
    factors: Floats


class Lists(NamedTuple):
    """Holds the posting blocks of a segment as arrays; see `pipelines.search_indexes.posting_blocks.Blocks`."""

    pages: Any
    maxima: Any
    starts: Any
    offsets: Any
    weights: Any
    places: Any
    """For each block its row of `unfolded`, or -1."""
    unfolded: Any


class Live(NamedTuple):
    """Holds which rows count. positions: int32 per physical row, -1 if deleted; allowed: by position, empty for all."""

    positions: Any
    allowed: Any


@compiled
def _push_heap(heap: Any, size: int, value: float) -> int:
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
def _collect_page_blocks(terms: Any, lists: Any, page: int, cursor: Any, blocks: Any, steps: Any) -> int:
    """Collects the query's blocks of one page into `blocks`, shortest first; returns how many.

    steps[e]: what one quantisation level of block e adds to a score. cursor: each token's next block; pages ascend.
    """
    m = 0
    for t in range(len(cursor)):
        while cursor[t] < terms.highs[t] and lists.pages[cursor[t]] < page:
            cursor[t] += 1
        b = cursor[t]
        if b < terms.highs[t] and lists.pages[b] == page:
            length, j = lists.starts[b + 1] - lists.starts[b], m
            while j > 0 and lists.starts[blocks[j - 1] + 1] - lists.starts[blocks[j - 1]] > length:
                blocks[j], steps[j] = blocks[j - 1], steps[j - 1]
                j -= 1
            blocks[j], steps[j] = b, terms.factors[t] * lists.maxima[b] / LEVELS
            m += 1
    return m


@compiled
def _split_essential(lists: Any, blocks: Any, steps: Any, m: int, bar: float) -> tuple[int, Any]:
    """Splits the lists into essential ones and the rest: how many are essential, and the most that the rest can add.

    0 if all lists together cannot reach the bar.
    """
    total = np.float32(0)
    for e in range(m):
        total += steps[e] * LEVELS
    if total < bar:
        return 0, total
    essential, rest = m, np.float32(0)
    while essential > 1 and lists.places[blocks[essential - 1]] >= 0 and rest + steps[essential - 1] * LEVELS < bar:
        essential -= 1
        rest += steps[essential] * LEVELS
    return essential, rest


@compiled
def _add_up(lists: Any, blocks: Any, steps: Any, first: int, last: int, sums: Any) -> None:
    for e in range(first, last):
        b, step = blocks[e], steps[e]
        # A long list has one weight per row of the page: a plain vectorised multiply-add. A short one is a scatter.
        if lists.places[b] >= 0:
            row = lists.unfolded[lists.places[b]]
            for i in range(PAGE):
                sums[i] += step * row[i]
        else:
            for p in range(lists.starts[b], lists.starts[b + 1]):
                sums[lists.offsets[p]] += step * lists.weights[p]


@compiled
def _add_non_essential(
    lists: Any, blocks: Any, steps: Any, essential: int, m: int, row: int, score: float, rest: float, bar: float
) -> float:
    """Adds the non-essential lists to one row's score, the longest first; stops once the bar is out of reach."""
    for e in range(m - 1, essential - 1, -1):
        if score + rest < bar:
            return score
        rest -= steps[e] * LEVELS
        score += steps[e] * lists.unfolded[lists.places[blocks[e]], row]
    return score


@compiled
def _count_above(sums: Any, first: int, last: int, least: float) -> int:
    """Counts sums[first:last] at or above `least`; without a branch, so that the compiler vectorises it."""
    above = 0
    for i in range(first, last):
        above += sums[i] >= least
    return above


def _plain_search_segment(
    terms: Terms, lists: Lists, live: Live, error: float, heap: Any, size: int, found: Any, bounds: Any
) -> tuple[int, int]:
    """Does what `search_segment` does in numpy: adds up all lists of a page."""
    counted = 0
    for page in range(-(-len(live.positions) // PAGE)):
        positions = live.positions[page << PAGE_BITS : (page + 1) << PAGE_BITS]
        sums = np.zeros(PAGE, np.float32)
        for low, high, factor in zip(*terms, strict=True):
            for b in low + np.flatnonzero(lists.pages[low:high] == page):
                part = slice(lists.starts[b], lists.starts[b + 1])
                sums[lists.offsets[part]] += factor * lists.maxima[b] / LEVELS * lists.weights[part]
        kept = (sums[: len(positions)] > 0) & (positions >= 0)
        if len(live.allowed):
            kept &= live.allowed[positions]
        scores = sums[: len(positions)][kept]
        best = np.sort(np.concatenate([heap[:size], scores]))[-len(heap) :]
        size = len(best)
        heap[:size] = best
        new = slice(counted, counted + len(scores))
        found[new], bounds[new] = positions[kept], scores
        counted += len(scores)
    return size, counted


@compiled_or(_plain_search_segment)
def search_segment(
    terms: Any, lists: Any, live: Any, error: float, heap: Any, size: int, found: Any, bounds: Any
) -> tuple[int, int]:
    """Writes candidate rows (positions, upper bounds) into found and bounds; returns (heap size, rows found).

    heap: the n best upper bounds so far, over all segments; its smallest is at 0.
    """
    # Arrays: sums, one float32 per row of a page (256 KiB), reused for every page; blocks and steps, one entry per
    # query token; cursor, each token's place in its list, so that all lists are read once, front to back.
    cursor, blocks = terms.lows.copy(), np.empty(len(terms.lows), np.int64)
    steps, sums = np.empty(len(terms.lows), np.float32), np.zeros(PAGE, np.float32)
    masked, counted, skipped = len(live.allowed) > 0, 0, False
    for page in range((len(live.positions) + PAGE - 1) >> PAGE_BITS):
        # (1) The bar: the n-th best upper bound so far, less the quantisation error. Pages that cannot reach it are
        # skipped without being read.
        bar = heap[0] - error if size == len(heap) else np.float32(0)
        m = _collect_page_blocks(terms, lists, page, cursor, blocks, steps)
        essential, rest = _split_essential(lists, blocks, steps, m, bar)
        if essential == 0:
            continue
        # (2) Essential lists are added up: short ones always (searching them by bisection took 3.9 to 60 ms on a
        # million rows; leaving out only long ones, by look-up, 1.3 to 10 ms). (3) With more than MANY candidates the
        # rest is added up as well: 1.5 to 3.4 ms (benchmarks/RESEARCH_LOG.md, 12 questions, n = 200).
        sums[:] = 0
        _add_up(lists, blocks, steps, 0, essential, sums)
        if essential < m and _count_above(sums, 0, PAGE, max(bar - rest, TINY)) > MANY:
            _add_up(lists, blocks, steps, essential, m, sums)
            essential, rest = m, np.float32(0)
        # (4) Candidates: STRIDE sums at a time against the bar, then row by row; deleted and filtered rows go before
        # the look-ups. Each row that stays may raise the bar for the rows behind it.
        first = page << PAGE_BITS
        for i in range(min(PAGE, len(live.positions) - first)):
            if i % STRIDE == 0:
                skipped = _count_above(sums, i, i + STRIDE, max(bar - rest, TINY)) == 0
            score = sums[i]
            if skipped or score == 0 or score + rest < bar:
                continue
            position = live.positions[first + i]
            if position < 0 or (masked and not live.allowed[position]):
                continue
            score = _add_non_essential(lists, blocks, steps, essential, m, i, score, rest, bar)
            if score >= bar:
                size = _push_heap(heap, size, score)
                found[counted], bounds[counted] = position, score
                counted += 1
                if size == len(heap):
                    bar = heap[0] - error
    return size, counted
