"""Builds Lance's scalar indexes on metadata columns, so that a filter need not read the column of every row.

BITMAP (one set of rows per value) for columns of few values, LABEL_LIST for lists, BTREE for the others. Rows that an
index does not cover yet, and those whose metadata has changed since, are read as before: answers are the same with and
without. Text that is too long to be a filter's value gets no index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipelines.store.table import Snapshot, open_table

ScalarKind = Literal["BITMAP", "BTREE", "LABEL_LIST"]
NO_INDEX_BELOW = 50_000
"""Rows below which none is built by itself: reading the column then costs little."""
SAMPLED_ROWS = 4096
BITMAP_VALUES = 256
"""Distinct values among the sampled rows up to which a column gets a BITMAP."""
MAX_MEAN_BYTES = 128
"""Mean length of a text among the sampled rows above which it is not indexed."""


def choose_scalar_kind(sample: pa.Array) -> ScalarKind | None:
    """Chooses a kind by the type and some of a column's values; None if none would help."""
    kind = sample.type
    if pat.is_list(kind) or pat.is_large_list(kind):
        return "LABEL_LIST" if _is_scalar(kind.value_type) else None
    if not _is_scalar(kind):
        return None
    if _is_text(kind) and (pc.mean(pc.binary_length(sample)).as_py() or 0) > MAX_MEAN_BYTES:
        return None
    return "BITMAP" if len(pc.unique(sample)) <= BITMAP_VALUES else "BTREE"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pat.is_string(kind) or pat.is_large_string(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (_is_text, pat.is_boolean, pat.is_integer, pat.is_floating, pat.is_temporal, pat.is_decimal)
    )


def update_scalar_indexes(
    uri: str,
    columns: Sequence[str] = (),
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
) -> list[str]:
    """Builds missing indexes on `columns`, and on all metadata columns of a table of NO_INDEX_BELOW rows or more.

    Returns the names of the columns that were indexed. ConfigError for an unknown column.
    """
    snapshot = open_table(uri, table, storage_options)
    snapshot.check_columns(columns, "filter columns")
    automatic = snapshot.metadata_columns if len(snapshot) >= NO_INDEX_BELOW else ()
    missing = [c for c in dict.fromkeys((*columns, *automatic)) if c not in snapshot.indexes()]
    kinds = {c: choose_scalar_kind(_sample(snapshot, c)) or ("BTREE" if c in columns else None) for c in missing}
    chosen = {column: kind for column, kind in kinds.items() if kind is not None}
    for column, kind in chosen.items():
        snapshot.dataset.create_scalar_index(column, kind)
    return list(chosen)


def _sample(snapshot: Snapshot, column: str) -> pa.Array:
    """Reads the column's values of rows at equal distances."""
    positions = np.unique(np.linspace(0, len(snapshot) - 1, min(SAMPLED_ROWS, len(snapshot))).astype(np.int64))
    values = snapshot.take(positions, [column]).column(0).combine_chunks()
    return values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
