"""Reads and writes the columns of blocks: tables between stages in which a failed row stays, null but for `error`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from actors.outputs import IntArray, TokenBatch

TOKENIZER_CALL_BYTES = 2**18
"""Characters or bytes of text per tokenizer call: its own objects take some 50 times the space of the text, and 4 MiB
in one call took a sixth more time as well."""


def tokens_from_table(table: pa.Table, name: str) -> tuple[TokenBatch, IntArray]:
    """Reads one embedder's token columns as a TokenBatch, and the rows that have any (the others have failed)."""
    ids = table.column(f"{name}_ids").combine_chunks()
    rows = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64)
    good = ids.drop_null()
    lengths = good.value_lengths().to_numpy(zero_copy_only=False)
    truncated = table.column(f"{name}_truncated").combine_chunks().drop_null()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenBatch(good.flatten().to_numpy(), offsets, truncated.to_numpy()), rows


def all_rows(n: int) -> IntArray:
    """Returns the row numbers 0 to n - 1."""
    return np.arange(n, dtype=np.int64)


def split_by_size(sizes: IntArray, limit: int) -> list[IntArray]:
    """Cuts rows into runs of about `limit` in all: a run ends where the sum of sizes passes a multiple of it.

    >>> [rows.tolist() for rows in split_by_size(np.array([4, 4, 4, 30, 1]), 10)]
    [[0, 1], [2], [3, 4]]
    """
    bins = np.cumsum(sizes, dtype=np.int64) // limit
    edges = np.flatnonzero(np.diff(bins)) + 1
    return np.split(all_rows(len(sizes)), edges) if len(sizes) else []


def scatter_rows(column: pa.Array, positions: IntArray, size: int) -> pa.Array:
    """Scatters a column to `size` rows: `column[i]` to row `positions[i]`, null elsewhere.

    >>> scatter_rows(pa.array([7, 8]), np.array([2, 0]), 3).to_pylist()
    [8, None, 7]
    """
    if len(positions) == size:
        return column
    source = np.zeros(size, dtype=np.int64)
    source[positions] = np.arange(len(positions))
    missing = np.ones(size, dtype=bool)
    missing[positions] = False
    return column.take(pa.array(source, mask=missing))


def set_row_errors(table: pa.Table, failures: dict[int, str]) -> pa.Table:
    """Writes the errors into the block's `error` column."""
    if not failures:
        return table
    errors = table.column("error").to_pylist()
    for row, error in failures.items():
        errors[row] = error
    return table.set_column(table.column_names.index("error"), "error", pa.array(errors, pa.string()))
