"""Builds and inspects Lance's vector index over a dense column: its kind, its parameters, its search depth.

Below 100,000 rows a scan answers in milliseconds and is exact, so no index is built. Above, IVF with 1-bit RaBitQ codes
is the default: it trains no codebook, so it builds several times faster than PQ, and filters do not hurt its recall as
they do HNSW's. What it gets wrong is repaired outside: a search takes several times the rows that it needs and scores
them exactly from the stored vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from pipelines.config import ConfigError
from pipelines.store.table import Snapshot, open_table

Kind = Literal["auto", "none", "IVF_PQ", "IVF_RQ", "IVF_HNSW_SQ"]
NO_INDEX_BELOW = 100_000
PARTITION_ROWS = 4096
METRIC = "dot"
PROBED = 0.04
"""Share of the partitions that a search reads, at least MIN_PROBES of them: at a million rows 16 found 83% of the best
200, 64 found 99%, and the search took half as long again."""
MIN_PROBES = 64


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """Describes an existing index. metric: its own; a query with another one would silently scan the table."""

    name: str
    kind: str
    metric: str
    partitions: int
    unindexed_rows: int

    @property
    def probes(self) -> int:
        return min(self.partitions, max(MIN_PROBES, round(PROBED * self.partitions)))


def find_vector_index(snapshot: Snapshot, column: str) -> VectorIndex | None:
    """Returns the vector index on a column, or None."""
    described = snapshot.indexes().get(column)
    if described is None:
        return None
    stats = snapshot.index_statistics(described.name)
    (first, *_) = stats["indices"]
    return VectorIndex(
        described.name, stats["index_type"], first["metric_type"], first["num_partitions"], stats["num_unindexed_rows"]
    )


def choose_kind(rows: int, kind: Kind) -> str | None:
    """Returns the configured kind; for `auto`, the one that suits the number of rows.

    ConfigError for an unknown one.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"vector index: {kind!r} is unknown; there are {', '.join(get_args(Kind))}")
    if kind == "auto":
        return "IVF_RQ" if rows >= NO_INDEX_BELOW else None
    return None if kind == "none" else kind


def parameters(kind: str, rows: int, dim: int, partitions: int | None) -> dict[str, Any]:
    """Returns `create_index`'s arguments: partitions of about PARTITION_ROWS rows, one PQ byte per 8 dimensions."""
    chosen = partitions or max(1, min(round(rows / PARTITION_ROWS), round(4 * np.sqrt(rows))))
    if kind == "IVF_PQ":
        return {"num_partitions": chosen, "num_sub_vectors": max(1, dim // 8)}
    return {"num_partitions": chosen}


CreateIndex = Callable[[Snapshot, str, str, Mapping[str, Any]], None]
"""Builds an index: snapshot, column, kind and what `parameters` chose."""


def index_name(column: str) -> str:
    return f"{column}_idx"


def create_here(snapshot: Snapshot, column: str, kind: str, chosen: Mapping[str, Any]) -> None:
    """Builds it in this process, on all cores; `pipelines.indexing.distributed_vectors` builds it on a cluster."""
    snapshot.dataset.create_index(column, kind, metric=METRIC, name=index_name(column), replace=True, **chosen)


def update_vector_indexes(
    uri: str,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    *,
    kind: Kind = "auto",
    partitions: int | None = None,
    create: CreateIndex = create_here,
) -> dict[str, str | None]:
    """Builds the vector index of every dense column that should have one, or adds new rows to it.

    Returns the kind by embedder. Rows that an index does not cover yet are scanned by Lance: results stay complete.
    """
    snapshot = open_table(uri, table, storage_options)
    wanted = choose_kind(len(snapshot), kind)
    done: dict[str, str | None] = {}
    for name, embedder in snapshot.identity.embedders.items():
        if "dense" in embedder["outputs"]:
            done[name] = wanted
            column = f"{name}_dense"
            if wanted is not None and not _extend_index(snapshot, column, wanted, partitions):
                create(snapshot, column, wanted, parameters(wanted, len(snapshot), int(embedder["dim"]), partitions))
    return done


def _extend_index(snapshot: Snapshot, column: str, wanted: str, partitions: int | None) -> bool:
    """Adds missing rows to an index of this kind; returns whether there is one."""
    present = find_vector_index(snapshot, column)
    if present is None or present.kind.upper() != wanted or partitions not in (None, present.partitions):
        return False
    if present.unindexed_rows:
        snapshot.dataset.optimize.optimize_indices(index_names=[present.name])
    return True
