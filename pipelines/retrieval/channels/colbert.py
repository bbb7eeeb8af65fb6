"""Scores by late interaction (ColBERT's MaxSim), and scans tables that are small enough for it.

ColBERT has no index of its own: on a large table it re-scores the candidates of the other channels
(`pipelines.retrieval.candidates`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actors.kernels.jit import HAS_NUMBA
from actors.outputs import IntArray, MultiVectors
from pipelines.retrieval.channels.base import Floats, Ranking, merge_rankings, rank_rows
from pipelines.retrieval.columns.cache import ColumnCache
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.scoring.maxsim import maxsim, rows_within_reach

COLBERT_SCAN_BYTES = 64 * 2**20
"""Up to here ColBERT finds its best rows by scoring all (signs of 384 dimensions: 1.4 million vectors, some 50 ms);
above, it scores what the other channels find."""


@dataclass(frozen=True)
class ColbertChannel:
    """Scores by the weighted mean over query vectors of the best product in a document.

    A row without vectors does not match.
    """

    columns: ColumnCache
    threads: int = 1

    @classmethod
    def open(cls, columns: ColumnCache) -> ColbertChannel | None:
        return cls(columns, os.cpu_count() or 1) if "colbert" in columns.outputs else None

    @cached_property
    def scans(self) -> bool:
        """Returns whether the channel retrieves rows itself; a large table is scanned only for an exact answer."""
        return self.columns.nbytes("colbert") <= COLBERT_SCAN_BYTES

    def top(self, queries: EncodedQueries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        if where is not None and where.is_selective(self.columns.whole("colbert") is not None):
            return [self._rank(queries, i, where.positions, n) for i in range(len(queries))]
        found: list[list[Ranking]] = [[] for _ in range(len(queries))]
        for start, block in self.columns.blocks("colbert"):
            assert isinstance(block, MultiVectors)
            allowed = None if where is None else where.allowed[start : start + len(block)]
            each = [queries.colbert(i) for i in range(len(queries))]
            for i, rows in enumerate(rows_within_reach(each, block, self.columns.codec, n, allowed, self.threads)):
                chosen = None if len(rows) == len(block) else rows  # all in place, without a copy
                found[i].append(rank_rows(self._maxsim(queries, i, block, chosen), rows + start, n))
        return [merge_rankings(parts, n) for parts in found]

    def _rank(self, queries: EncodedQueries, i: int, positions: IntArray, n: int) -> Ranking:
        """Ranks the n best of some rows by their exact scores; rows without vectors do not match."""
        data, rows = self.columns.rows("colbert", positions)
        assert isinstance(data, MultiVectors)
        scores = self._maxsim(queries, i, data, rows)
        scores[data.offsets[rows] == data.offsets[rows + 1]] = -np.inf
        return rank_rows(scores, positions, n)

    def scores(self, queries: EncodedQueries, i: int, positions: IntArray) -> Floats:
        data, rows = self.columns.rows("colbert", positions)
        assert isinstance(data, MultiVectors)
        return self._maxsim(queries, i, data, rows)

    @property
    def has_approximate_scores(self) -> bool:
        """Returns whether approximate scores cost less than exact ones: with one-bit codes and numba."""
        return HAS_NUMBA and self.columns.codec.scorer == "sign_bits"

    def approximate_scores(self, queries: EncodedQueries, i: int, positions: IntArray) -> Floats:
        """Computes approximate scores for preselection, at a quarter of the time of `scores`."""
        data, rows = self.columns.rows("colbert", positions)
        assert isinstance(data, MultiVectors)
        return self._maxsim(queries, i, data, rows, approximate=True)

    def _maxsim(
        self,
        queries: EncodedQueries,
        i: int,
        data: MultiVectors,
        rows: IntArray | None = None,
        approximate: bool = False,
    ) -> Floats:
        vectors, weights = queries.colbert(i)
        return maxsim(vectors, data, self.columns.codec, weights, self.threads, rows, approximate)
