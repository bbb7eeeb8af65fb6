"""Searches the text by BM25 with Lance's full-text index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from lance.dataset import serialize_row_addrs
from lance.query import MatchQuery

from actors.outputs import IntArray
from pipelines.retrieval.channels.base import Floats, Ranking
from pipelines.retrieval.columns.cache import ColumnCache
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.queries import EncodedQueries
from pipelines.store.table import Snapshot


@dataclass(frozen=True)
class Bm25Channel:
    """Scores by Lance's raw BM25 over the text. A row without any query word does not match and scores 0."""

    snapshot: Snapshot

    @classmethod
    def open(cls, columns: ColumnCache) -> Bm25Channel | None:
        return cls(columns.snapshot) if "text" in columns.snapshot.indexes() else None

    def top(self, queries: EncodedQueries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        filtered = {} if where is None else where.scanner_arguments
        return [self._match(text, limit=n, **filtered) for text in queries.texts]

    def scores(self, queries: EncodedQueries, i: int, positions: IntArray) -> Floats:
        if not len(positions):
            return np.zeros(0, np.float32)
        # As a condition the addresses would be compared with those of all rows, 9 ms for 200 of a million in place of
        # 1.4, and rows that the index does not cover would get word counts of the named rows alone.
        allowed = serialize_row_addrs(self.snapshot.rows.addresses(positions).tolist())
        return self._match(queries.texts[i], row_addr_allowlist=allowed).at(positions)

    def _match(self, text: str, **limits: Any) -> Ranking:
        table = self.snapshot.dataset.scanner(
            columns=["_rowaddr", "_score"],
            full_text_query=MatchQuery(text, "text"),
            prefilter=True,
            disable_scoring_autoprojection=True,
            **limits,
        ).to_table()
        positions = self.snapshot.rows.positions(table["_rowaddr"].to_numpy())
        scores = table["_score"].to_numpy().astype(np.float32, copy=False)
        order = np.lexsort((positions, -scores))
        return Ranking(positions[order], scores[order])
