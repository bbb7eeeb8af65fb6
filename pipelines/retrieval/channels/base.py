"""Defines the interface of a channel, and what channels share: rankings of rows, and merging of blocks' rankings.

Rows are positions in the snapshot (0..n-1 in table order); equal scores keep that order.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from actors.outputs import IntArray
from pipelines.retrieval.columns.cache import ColumnCache
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.scoring.kernels import top_n

Floats = npt.NDArray[np.float32]


class Ranking(NamedTuple):
    """Holds rows and their scores, best first."""

    positions: IntArray
    scores: Floats

    def at(self, rows: IntArray) -> Floats:
        """Returns the scores of these rows, 0 for those that are not in the ranking."""
        scores = np.zeros(len(rows), np.float32)
        if len(self.positions):
            order = np.argsort(self.positions)
            places = np.minimum(np.searchsorted(self.positions, rows, sorter=order), len(order) - 1)
            found = self.positions[order[places]] == rows
            scores[found] = self.scores[order[places[found]]]
        return scores

    def first(self, n: int) -> Ranking:
        """Returns the n best rows."""
        return Ranking(self.positions[:n], self.scores[:n])


class ChannelSearch(Protocol):
    """Retrieves the best rows for queries by one kind of score, and computes the exact score of any row.

    `top` may be approximate where an index answers it, `scores` never is. Both see the same filter, which holds before
    the top is cut.
    """

    @classmethod
    def open(cls, columns: ColumnCache) -> Self | None:
        """Opens the channel of an index; None if the index lacks the columns that the channel needs."""
        ...

    def top(self, queries: EncodedQueries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        """Returns the n best rows of each query, fewer if fewer match; takes all queries together, to share a scan.

        exact: forbids approximation.
        """
        ...

    def scores(self, queries: EncodedQueries, i: int, positions: IntArray) -> Floats:
        """Returns the exact scores (n,) of the rows at these positions for query i."""
        ...


def top_of_block(scores: Floats, start: int, n: int, where: Filter | None, above: float = -np.inf) -> Ranking:
    """Ranks the n best rows of a block of the table that begins at position `start`."""
    allowed = None if where is None else where.allowed[start : start + len(scores)]
    positions, best = top_n(scores, n, allowed, above)
    return Ranking(positions + start, best)


def rank_rows(scores: Floats, positions: IntArray, n: int, above: float = -np.inf) -> Ranking:
    """Ranks the n best of some rows; positions: ascending."""
    places, best = top_n(scores, n, above=above)
    return Ranking(positions[places], best)


def merge_rankings(rankings: list[Ranking], n: int) -> Ranking:
    """Merges the rankings of disjoint blocks into the n best rows of all."""
    positions = np.concatenate([r.positions for r in rankings])
    scores = np.concatenate([r.scores for r in rankings])
    order = np.lexsort((positions, -scores))[:n]
    return Ranking(positions[order], scores[order])
