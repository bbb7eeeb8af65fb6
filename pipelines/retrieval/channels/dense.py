"""Searches dense vectors: by Lance's vector index with exact refinement if there is one, else by a full scan."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actors.kernels.jit import HAS_NUMBA
from actors.outputs import IntArray
from pipelines.retrieval.channels.base import Floats, Ranking, merge_rankings, rank_rows, top_of_block
from pipelines.retrieval.columns.cache import ColumnCache
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.scoring.kernels import dense_dots, workers
from pipelines.search_indexes.vectors import VectorIndex, find_vector_index

DENSE_OVERSAMPLING = 1.5
"""Rows that the vector index returns per row wanted; their exact scores choose among them."""
UNFILTERED_SHARE = 0.5
"""Share of the rows near a query that a filter must allow for it to search no more partitions than without one."""
PROBE_SAMPLE_ROWS = 1024
ROWS_PER_THREAD = 8192
"""Rows of a scan that are worth a thread."""
QUERY_BLOCK = 2**26
"""Scores held at once when many queries are scanned together."""


@dataclass(frozen=True)
class DenseChannel:
    """Scores by dot products of unit vectors."""

    columns: ColumnCache

    @classmethod
    def open(cls, columns: ColumnCache) -> DenseChannel | None:
        return cls(columns) if "dense" in columns.outputs else None

    @cached_property
    def vector_index(self) -> VectorIndex | None:
        """Returns the column's vector index, or None."""
        return find_vector_index(self.columns.snapshot, self.columns.column("dense"))

    def top(self, queries: EncodedQueries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        if where is not None and where.is_selective(self.columns.whole("dense") is not None):
            rows = where.positions
            return [rank_rows(self.scores(queries, i, rows), rows, n) for i in range(len(queries))]
        if self.vector_index is None or exact:
            return self._scan(queries, n, where)
        return [self._search_index(self.vector_index, queries, i, n, where) for i in range(len(queries))]

    def _search_index(
        self, index: VectorIndex, queries: EncodedQueries, i: int, n: int, where: Filter | None
    ) -> Ranking:
        vector, k = queries.dense()[i], round(n * DENSE_OVERSAMPLING)
        probes = index.probes if where is None else self._choose_probes(index, vector, where)
        positions = self._probe(index, vector, k, probes, where)
        if where is not None and len(positions) < min(k, len(where.positions)) and probes < index.partitions:
            positions = self._probe(index, vector, k, index.partitions, where)
        return rank_rows(self.scores(queries, i, positions), positions, n)

    def _probe(self, index: VectorIndex, vector: Floats, k: int, probes: int, where: Filter | None) -> IntArray:
        """Returns the positions, ascending, of the k rows that the vector index finds in the nearest partitions."""
        nearest = {
            "column": self.columns.column("dense"),
            "q": vector,
            "k": k,
            "metric": index.metric,
            "minimum_nprobes": probes,
            "maximum_nprobes": probes,
        }
        snapshot, filtered = self.columns.snapshot, {} if where is None else where.scanner_arguments
        scanner = snapshot.dataset.scanner(
            columns=["_rowaddr"], nearest=nearest, prefilter=True, disable_scoring_autoprojection=True, **filtered
        )
        return np.sort(snapshot.rows.positions(scanner.to_table()["_rowaddr"].to_numpy()))

    def _choose_probes(self, index: VectorIndex, vector: Floats, where: Filter) -> int:
        """Chooses how many partitions to search: the more, the fewer of the rows near the query the filter allows.

        The share of the rows near it, not of all: a condition such as a language may exclude the query's whole region.
        """
        rows, vectors = self.probe_sample
        scores = np.empty(len(rows), np.float32)
        dense_dots(vector, vectors, np.arange(len(rows)), scores)
        near = rows[np.argsort(-scores)[: max(1, len(rows) // 8)]]
        share = max(float(where.allowed[near].mean()), 1e-3)
        return min(index.partitions, max(index.probes, round(index.probes * UNFILTERED_SHARE / share)))

    @cached_property
    def probe_sample(self) -> tuple[IntArray, Floats]:
        """Returns rows at equal distances and their vectors, which show how much of a region a filter allows."""
        rows = np.unique(np.linspace(0, len(self.columns) - 1, PROBE_SAMPLE_ROWS).astype(np.int64))
        return rows, self.vectors(rows)

    def _scan(self, queries: EncodedQueries, n: int, where: Filter | None) -> list[Ranking]:
        vectors = queries.dense()
        found: list[list[Ranking]] = [[] for _ in range(len(queries))]
        for start, block in self.columns.blocks("dense"):
            step = max(1, QUERY_BLOCK // max(1, len(block)))
            for first in range(0, len(vectors), step):
                for i, row in enumerate(dot_products(vectors[first : first + step], np.asarray(block)), start=first):
                    found[i].append(top_of_block(row, start, n, where))
        return [merge_rankings(parts, n) for parts in found]

    def vectors(self, positions: IntArray) -> Floats:
        """Returns the vectors (n, d) of the rows at these positions."""
        return np.asarray(self.columns.take("dense", positions), np.float32)

    def scores(self, queries: EncodedQueries, i: int, positions: IntArray) -> Floats:
        data, rows = self.columns.rows("dense", positions)
        assert isinstance(data, np.ndarray)
        out = np.empty(len(rows), np.float32)
        # A BLAS product rounds by the row's place in the block; this kernel gives a row one score wherever it is.
        dense_dots(queries.dense()[i], data, rows, out)
        return out


def dot_products(vectors: Floats, block: Floats) -> Floats:
    """Multiplies queries (m, d) with rows (n, d) to scores (m, n).

    A single query has a kernel of its own: OpenBLAS threads busy-wait after the product and slow the other channels
    (10 of 39 ms of a search).
    """
    if len(vectors) > 1 or not HAS_NUMBA:
        return vectors @ block.T
    (vector,), out = vectors, np.empty(len(block), np.float32)

    def scan(part: IntArray) -> None:
        dense_dots(vector, block, part, out[part[0] : part[-1] + 1])

    rows = np.arange(len(block))
    if len(rows):
        list(workers(os.cpu_count() or 1).map(scan, np.array_split(rows, max(1, len(rows) // ROWS_PER_THREAD))))
    return out[None]
