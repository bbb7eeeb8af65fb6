"""Reads Parquet by column: a part is a range of row groups; batches are sized from the footer's statistics.

A damaged row group costs only itself: the others are independent, so they are still read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.reading.files import READ_ERRORS, File
from pipelines.reading.formats.base import (
    BATCH_BYTES,
    UNREADABLE,
    Inspection,
    Part,
    RawRows,
    ReadOptions,
    raw_batch,
    to_values,
)

JSON_KEY = b"tridex.json"
"""Metadata of a field whose values are JSON: a column of mixed Python values that was handed over in memory."""


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Reads the footer only."""
    with file.open() as handle:
        footer = pq.ParquetFile(handle)
        return Inspection(_parts(footer.metadata, part_bytes), footer.schema_arrow)


def _parts(metadata: pq.FileMetaData, part_bytes: int) -> tuple[Part, ...]:
    """Splits by row groups; a single part has no bounds, so that small files can share a unit."""
    parts: list[Part] = []
    first, rows, size, row = 0, 0, 0, 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        rows += group.num_rows
        size += sum(group.column(c).total_compressed_size for c in range(group.num_columns))
        if size >= part_bytes or i == metadata.num_row_groups - 1:
            parts.append(Part(first, i + 1, row, rows, size))
            first, row, rows, size = i + 1, row + rows, 0, 0
    return tuple(parts) if len(parts) != 1 else (replace(parts[0], stop=-1),)


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields the rows of a part's row groups in batches."""
    with file.open() as handle:
        footer = pq.ParquetFile(handle)
        position = part.first_row
        for group in range(part.start, footer.metadata.num_row_groups if part.stop < 0 else part.stop):
            n_rows = footer.metadata.row_group(group).num_rows
            yield from _row_group(footer, group, position, columns, batch_rows)
            position += n_rows


def _row_group(
    footer: pq.ParquetFile, group: int, position: int, columns: Sequence[str], batch_rows: int
) -> Iterator[RawRows]:
    last = position + footer.metadata.row_group(group).num_rows
    size = _limit_batch_rows(footer.metadata.row_group(group), batch_rows)
    try:
        for batch in footer.iter_batches(size, row_groups=[group], columns=list(columns)):
            yield _decode_mixed_columns(raw_batch(batch, columns, position), footer.schema_arrow)
            position += len(batch)
    except READ_ERRORS as error:
        message = f"row group {group} is damaged, its rows {position} to {last - 1} are lost: {error}"
        yield RawRows({}, np.array([UNREADABLE], dtype=np.int64), [message])


def _decode_mixed_columns(raw: RawRows, schema: pa.Schema) -> RawRows:
    """Parses the columns of mixed values that `memory.spooled` wrote as JSON."""
    mixed = [f.name for f in schema if f.name in raw.columns and JSON_KEY in (f.metadata or {})]
    decoded = {name: [None if v is None else json.loads(v) for v in to_values(raw.columns[name])] for name in mixed}
    return replace(raw, columns={**raw.columns, **decoded}) if mixed else raw


def _limit_batch_rows(group: pq.RowGroupMetaData, batch_rows: int) -> int:
    """Limits rows per batch: at most `batch_rows`, fewer if large rows would exceed BATCH_BYTES."""
    row_bytes = group.total_byte_size / max(group.num_rows, 1)
    return max(1, min(batch_rows, int(BATCH_BYTES / max(row_bytes, 1))))
