"""Searches learned sparse vectors (M3's lexical weights) by the stored inverted index, one in memory, or a scan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from actors.outputs import Array, IntArray, SparseVectors
from pipelines.retrieval.channels.base import Floats, Ranking, merge_rankings, rank_rows, top_of_block
from pipelines.retrieval.columns.cache import ColumnCache
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.scoring.inverted_index import InvertedIndex
from pipelines.retrieval.scoring.kernels import accumulate, sparse_dots, top_n
from pipelines.search_indexes.posting_blocks import by_token


@dataclass(frozen=True, slots=True, eq=False)
class CscInvertedIndex:
    """Holds an inverted index in memory: the sparse matrix (rows, vocabulary) in compressed columns (CSC).

    Token t occurs in the rows positions[starts[t]:starts[t + 1]], with the weights at the same places.
    """

    starts: IntArray
    positions: npt.NDArray[np.int32]
    weights: Floats

    @classmethod
    def of(cls, rows: SparseVectors) -> CscInvertedIndex:
        """Builds the index from compressed rows (CSR)."""
        return cls(*by_token(rows))

    def add_scores(self, scores: Floats, token_ids: Array, weights: Floats) -> None:
        """Adds a query's products with every row to the rows' scores, token by token."""
        for token, weight in zip(token_ids, weights, strict=True):
            if token < len(self.starts) - 1:
                part = slice(self.starts[token], self.starts[token + 1])
                accumulate(self.positions[part], self.weights[part], weight, scores)


@dataclass(frozen=True)
class SparseChannel:
    """Scores by dot products over shared token ids. A row that shares no token does not match.

    Rows that the stored inverted index does not cover yet are scanned. Without one the column is inverted in memory,
    or streamed where it does not fit.
    """

    columns: ColumnCache

    @classmethod
    def open(cls, columns: ColumnCache) -> SparseChannel | None:
        return cls(columns) if "sparse" in columns.outputs else None

    @cached_property
    def index(self) -> InvertedIndex:
        """Returns the stored inverted index; without segments if none was built."""
        return InvertedIndex.open(self.columns.snapshot, self.columns.names["sparse"], self.columns.memory)

    @cached_property
    def uncovered(self) -> SparseVectors:
        """Returns the rows that were written after the inverted index was built."""
        rows = self.columns.take("sparse", self.index.uncovered)
        assert isinstance(rows, SparseVectors)
        return rows

    @cached_property
    def in_memory(self) -> CscInvertedIndex | None:
        """Inverts the column in memory; None if it does not fit."""
        whole = self.columns.whole("sparse")
        return CscInvertedIndex.of(whole) if isinstance(whole, SparseVectors) else None

    def top(self, queries: EncodedQueries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        if where is not None and where.is_selective(self.columns.whole("sparse") is not None):
            rows = where.positions
            return [rank_rows(self.scores(queries, i, rows), rows, n, above=0) for i in range(len(queries))]
        if self.index.segments:
            return [self._search_index(queries, i, n, where) for i in range(len(queries))]
        if self.in_memory is None:
            return self._scan(queries, n, where)
        found = []
        for i in range(len(queries)):
            scores = np.zeros(len(self.columns), np.float32)
            self.in_memory.add_scores(scores, *queries.sparse(i))
            found.append(top_of_block(scores, 0, n, where, above=0))
        return found

    def _search_index(self, queries: EncodedQueries, i: int, n: int, where: Filter | None) -> Ranking:
        allowed = None if where is None else where.allowed
        covered = self.index.promising(*queries.sparse(i), n, allowed)
        scores = self.scores(queries, i, covered)
        others = self.index.uncovered
        if not len(others):
            return rank_rows(scores, covered, n, above=0)
        rest = _dot_products(queries, i, self.uncovered)
        both, together = np.concatenate([covered, others]), np.concatenate([scores, rest])
        order = np.argsort(both)
        kept = None if allowed is None else allowed[both[order]]
        places, best = top_n(together[order], n, kept, above=0)
        return Ranking(both[order][places], best)

    def _scan(self, queries: EncodedQueries, n: int, where: Filter | None) -> list[Ranking]:
        found: list[list[Ranking]] = [[] for _ in range(len(queries))]
        for start, block in self.columns.blocks("sparse"):
            assert isinstance(block, SparseVectors)
            for i in range(len(queries)):
                found[i].append(top_of_block(_dot_products(queries, i, block), start, n, where, above=0))
        return [merge_rankings(parts, n) for parts in found]

    def scores(self, queries: EncodedQueries, i: int, positions: IntArray) -> Floats:
        data, rows = self.columns.rows("sparse", positions)
        assert isinstance(data, SparseVectors)
        return _dot_products(queries, i, data, rows)


def _dot_products(queries: EncodedQueries, i: int, data: SparseVectors, rows: IntArray | None = None) -> Floats:
    token_ids, weights = queries.sparse(i)
    query = np.zeros(int(token_ids.max(initial=0)) + 1, np.float32)
    query[token_ids] = weights
    chosen = np.arange(len(data)) if rows is None else rows
    out = np.zeros(len(chosen), np.float32)
    sparse_dots(query, data.offsets, data.token_ids, data.weights, chosen, out)
    return out
