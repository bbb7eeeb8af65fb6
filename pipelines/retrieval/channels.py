"""The four channels. Each gives its best rows for a query, and the exact score of any row it is asked about.

`top` may be approximate where an index answers it; `scores` never is. Both see the same filter, before the top is
cut. Rows are positions in the snapshot; equal scores keep table order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from lance.dataset import serialize_row_addrs
from lance.query import MatchQuery

from actors.kernels.jit import HAS_NUMBA
from actors.outputs import Array, EmbeddingBatch, IntArray, MultiVectors, SparseVectors
from pipelines.retrieval.columns.cache import Stored
from pipelines.retrieval.scoring.inverted_index import InvertedIndex
from pipelines.retrieval.scoring.kernels import accumulate, dense_dots, sparse_dots, top_n, workers
from pipelines.retrieval.scoring.maxsim import maxsim
from pipelines.search_indexes.posting_blocks import by_token
from pipelines.search_indexes.vectors import VectorIndex, find_vector_index
from pipelines.store.table import Rows, Snapshot

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
OVERSAMPLED = 1.5
SCANNED_BYTES = 64 * 2**20
"""Up to here ColBERT finds its best rows by scoring all (signs of 384 dimensions: 1.4 million vectors, some 50 ms);
above, it scores what the other channels bring."""
SCANNED_ROWS = 8192
"""Dense rows that are worth a thread."""
QUERY_BLOCK = 2**26
"""Dense scores held at once when many queries are scanned together."""


class Ranking(NamedTuple):
    """Rows and their scores, best first."""

    positions: IntArray
    scores: Floats

    def at(self, rows: IntArray) -> Floats:
        """The scores of these rows, 0 where it does not have them."""
        scores = np.zeros(len(rows), np.float32)
        if len(self.positions):
            order = np.argsort(self.positions)
            places = np.minimum(np.searchsorted(self.positions, rows, sorter=order), len(order) - 1)
            there = self.positions[order[places]] == rows
            scores[there] = self.scores[order[places[there]]]
        return scores


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Queries, encoded once for all channels. token_weights: one a ColBERT vector, None where all count alike."""

    texts: tuple[str, ...]
    encoded: EmbeddingBatch | None = None
    token_weights: Floats | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def dense(self) -> Floats:
        assert self.encoded is not None
        assert self.encoded.dense is not None
        return self.encoded.dense.astype(np.float32, copy=False)

    def sparse(self, i: int) -> tuple[npt.NDArray[np.uint32], Floats]:
        assert self.encoded is not None
        assert self.encoded.sparse is not None
        return self.encoded.sparse.row(i)

    def colbert(self, i: int) -> tuple[Floats, Floats | None]:
        """Vectors (m, dim) and their weights."""
        assert self.encoded is not None
        assert self.encoded.colbert is not None
        vectors = self.encoded.colbert
        part = slice(vectors.offsets[i], vectors.offsets[i + 1])
        weights = None if self.token_weights is None else self.token_weights[part]
        return vectors.vectors[part].astype(np.float32, copy=False), weights


@dataclass(frozen=True, eq=False)
class Filter:
    """The rows that a condition allows, as a mask over positions."""

    allowed: Mask
    rows: Rows
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def mask(self) -> Mapping[str, bytes]:
        """The same as an argument of Lance's scanner, which would evaluate the condition again for every channel."""
        with self.lock:  # since Python 3.12 a cached_property has none of its own, and two channels ask at once
            return self._mask

    @cached_property
    def _mask(self) -> Mapping[str, bytes]:
        """Whichever list is shorter: it takes some 100 ns and 60 bytes a row to make."""
        name, listed = "row_addr_allowlist", self.allowed
        if 2 * np.count_nonzero(listed) > len(listed):
            name, listed = "row_addr_blocklist", ~listed
        return {name: serialize_row_addrs(self.rows.addresses(np.flatnonzero(listed)).tolist())}


class ChannelSearch(Protocol):
    """What a channel does. `top` answers all queries at once, so that a scan is shared."""

    def top(self, queries: Queries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        """The n best rows of each query; fewer where fewer match. `exact` forbids approximation."""
        ...

    def scores(self, queries: Queries, i: int, positions: IntArray) -> Floats:
        """Exact scores (n,) of the rows at these positions for query i."""
        ...


def _merge(rankings: list[Ranking], n: int) -> Ranking:
    positions = np.concatenate([r.positions for r in rankings])
    scores = np.concatenate([r.scores for r in rankings])
    order = np.lexsort((positions, -scores))[:n]
    return Ranking(positions[order], scores[order])


def _best(scores: Floats, start: int, n: int, where: Filter | None, above: float = -np.inf) -> Ranking:
    allowed = None if where is None else where.allowed[start : start + len(scores)]
    positions, best = top_n(scores, n, allowed, above)
    return Ranking(positions + start, best)


@dataclass(frozen=True)
class Dense:
    """Dot products of unit vectors.

    Where the column has a vector index, it brings OVERSAMPLED times the rows, and their exact scores choose among them.
    """

    stored: Stored

    @cached_property
    def vector_index(self) -> VectorIndex | None:
        return find_vector_index(self.stored.snapshot, self.stored.column("dense"))

    def top(self, queries: Queries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        if self.vector_index is None or exact:
            return self._scan(queries, n, where)
        return [self._ask(self.vector_index, queries, i, n, where) for i in range(len(queries))]

    def _ask(self, index: VectorIndex, queries: Queries, i: int, n: int, where: Filter | None) -> Ranking:
        nearest = {
            "column": self.stored.column("dense"),
            "q": queries.dense()[i],
            "k": round(n * OVERSAMPLED),
            "metric": index.metric,
            "minimum_nprobes": index.probes,
            "maximum_nprobes": index.probes if where is None else index.partitions,
        }
        snapshot, mask = self.stored.snapshot, {} if where is None else where.mask
        scanner = snapshot.dataset.scanner(
            columns=["_rowaddr"], nearest=nearest, prefilter=True, disable_scoring_autoprojection=True, **mask
        )
        positions = np.sort(snapshot.rows.positions(scanner.to_table()["_rowaddr"].to_numpy()))
        places, best = top_n(self.scores(queries, i, positions), n)
        return Ranking(positions[places], best)

    def _scan(self, queries: Queries, n: int, where: Filter | None) -> list[Ranking]:
        vectors = queries.dense()
        found: list[list[Ranking]] = [[] for _ in range(len(queries))]
        for start, block in self.stored.blocks("dense"):
            step = max(1, QUERY_BLOCK // max(1, len(block)))
            for first in range(0, len(vectors), step):
                for i, row in enumerate(_products(vectors[first : first + step], np.asarray(block)), start=first):
                    found[i].append(_best(row, start, n, where))
        return [_merge(parts, n) for parts in found]

    def scores(self, queries: Queries, i: int, positions: IntArray) -> Floats:
        data, rows = self.stored.rows("dense", positions)
        assert isinstance(data, np.ndarray)
        out = np.empty(len(rows), np.float32)
        # A BLAS product would round by the row's place in the block.
        dense_dots(queries.dense()[i], data, rows, out)
        return out


def _products(vectors: Floats, block: Floats) -> Floats:
    """(m, d) and (n, d) to (m, n). A vector alone is no matter for BLAS, whose threads would spin beside the search."""
    if len(vectors) > 1 or not HAS_NUMBA:
        return vectors @ block.T
    (vector,), out = vectors, np.empty(len(block), np.float32)

    def scan(part: IntArray) -> None:
        dense_dots(vector, block, part, out[part[0] : part[-1] + 1])

    rows = np.arange(len(block))
    if len(rows):
        list(workers(os.cpu_count() or 1).map(scan, np.array_split(rows, max(1, len(rows) // SCANNED_ROWS))))
    return out[None]


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """Sparse rows turned around: for each token the positions that have it, and the weights."""

    starts: IntArray
    positions: npt.NDArray[np.int32]
    weights: Floats

    @classmethod
    def of(cls, rows: SparseVectors) -> Inverted:
        return cls(*by_token(rows))

    def add_to(self, scores: Floats, token_ids: Array, weights: Floats) -> None:
        for token, weight in zip(token_ids, weights, strict=True):
            if token < len(self.starts) - 1:
                part = slice(self.starts[token], self.starts[token + 1])
                accumulate(self.positions[part], self.weights[part], weight, scores)


@dataclass(frozen=True)
class Sparse:
    """Dot products over shared token ids. A row that shares no token does not match.

    Answered by the inverted index where there is one; rows that it does not cover are scanned. Without one, the column
    is turned around in memory, or streamed where it does not fit.
    """

    stored: Stored

    @cached_property
    def index(self) -> InvertedIndex:
        return InvertedIndex.open(self.stored.snapshot, self.stored.name, self.stored.memory)

    @cached_property
    def uncovered(self) -> SparseVectors:
        rows = self.stored.take("sparse", self.index.uncovered)
        assert isinstance(rows, SparseVectors)
        return rows

    @cached_property
    def inverted(self) -> Inverted | None:
        whole = self.stored.whole("sparse")
        return Inverted.of(whole) if isinstance(whole, SparseVectors) else None

    def top(self, queries: Queries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        if self.index.segments:
            return [self._search(queries, i, n, where) for i in range(len(queries))]
        if self.inverted is None:
            return self._scan(queries, n, where)
        found = []
        for i in range(len(queries)):
            scores = np.zeros(len(self.stored), np.float32)
            self.inverted.add_to(scores, *queries.sparse(i))
            found.append(_best(scores, 0, n, where, above=0))
        return found

    def _search(self, queries: Queries, i: int, n: int, where: Filter | None) -> Ranking:
        allowed = None if where is None else where.allowed
        covered = self.index.promising(*queries.sparse(i), n, allowed)
        scores = self.scores(queries, i, covered)
        others = self.index.uncovered
        if not len(others):
            places, best = top_n(scores, n, above=0)
            return Ranking(covered[places], best)
        rest = _dots(queries, i, self.uncovered)
        both, together = np.concatenate([covered, others]), np.concatenate([scores, rest])
        order = np.argsort(both)
        kept = None if allowed is None else allowed[both[order]]
        places, best = top_n(together[order], n, kept, above=0)
        return Ranking(both[order][places], best)

    def _scan(self, queries: Queries, n: int, where: Filter | None) -> list[Ranking]:
        found: list[list[Ranking]] = [[] for _ in range(len(queries))]
        for start, block in self.stored.blocks("sparse"):
            assert isinstance(block, SparseVectors)
            for i in range(len(queries)):
                found[i].append(_best(_dots(queries, i, block), start, n, where, above=0))
        return [_merge(parts, n) for parts in found]

    def scores(self, queries: Queries, i: int, positions: IntArray) -> Floats:
        data, rows = self.stored.rows("sparse", positions)
        assert isinstance(data, SparseVectors)
        return _dots(queries, i, data, rows)


def _dots(queries: Queries, i: int, data: SparseVectors, rows: IntArray | None = None) -> Floats:
    token_ids, weights = queries.sparse(i)
    query = np.zeros(int(token_ids.max(initial=0)) + 1, np.float32)
    query[token_ids] = weights
    chosen = np.arange(len(data)) if rows is None else rows
    out = np.zeros(len(chosen), np.float32)
    sparse_dots(query, data.offsets, data.token_ids, data.weights, chosen, out)
    return out


@dataclass(frozen=True)
class Colbert:
    """Mean over query vectors of the best product in a document. A row without vectors does not match."""

    stored: Stored
    threads: int = 1

    @cached_property
    def scans(self) -> bool:
        """Whether it finds rows by itself; a large table is scanned only when an exact answer is asked for."""
        return self.stored.nbytes("colbert") <= SCANNED_BYTES

    def top(self, queries: Queries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        found: list[list[Ranking]] = [[] for _ in range(len(queries))]
        for start, block in self.stored.blocks("colbert"):
            assert isinstance(block, MultiVectors)
            empty = np.diff(block.offsets) == 0
            for i in range(len(queries)):
                scores = self._maxsim(queries, i, block)
                scores[empty] = -np.inf
                found[i].append(_best(scores, start, n, where))
        return [_merge(parts, n) for parts in found]

    def scores(self, queries: Queries, i: int, positions: IntArray) -> Floats:
        data, rows = self.stored.rows("colbert", positions)
        assert isinstance(data, MultiVectors)
        return self._maxsim(queries, i, data, rows)

    @property
    def has_rough(self) -> bool:
        """Whether scores that are a little wrong come cheaper than exact ones."""
        return HAS_NUMBA and self.stored.codec.scorer == "sign_bits"

    def rough(self, queries: Queries, i: int, positions: IntArray) -> Floats:
        """About `scores`, for choosing the rows that are worth exact ones."""
        data, rows = self.stored.rows("colbert", positions)
        assert isinstance(data, MultiVectors)
        return self._maxsim(queries, i, data, rows, rough=True)

    def _maxsim(
        self, queries: Queries, i: int, data: MultiVectors, rows: IntArray | None = None, rough: bool = False
    ) -> Floats:
        vectors, weights = queries.colbert(i)
        return maxsim(vectors, data, self.stored.codec, weights, self.threads, rows, rough)


@dataclass(frozen=True)
class FullText:
    """Raw BM25 of Lance's full-text index over the text. A row without any query word does not match and scores 0."""

    snapshot: Snapshot

    def top(self, queries: Queries, n: int, where: Filter | None, exact: bool = False) -> list[Ranking]:
        mask = {} if where is None else where.mask
        return [self._ask(text, limit=n, **mask) for text in queries.texts]

    def scores(self, queries: Queries, i: int, positions: IntArray) -> Floats:
        if not len(positions):
            return np.zeros(0, np.float32)
        # As a condition the addresses would be compared with those of all rows, 9 ms for 200 of a million in place of
        # 1.4, and rows that the index does not cover would get word counts of the asked rows alone.
        allowed = serialize_row_addrs(self.snapshot.rows.addresses(positions).tolist())
        return self._ask(queries.texts[i], row_addr_allowlist=allowed).at(positions)

    def _ask(self, text: str, **limits: Any) -> Ranking:
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
