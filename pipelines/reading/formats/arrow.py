"""Reads Arrow IPC files (Feather V2) and streams, as `datasets` writes them. A part is a range of record batches.

A stream has no table of contents, so it is one part; damage costs what comes after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.reading.files import File
from pipelines.reading.formats.base import Inspection, Part, RawRows, ReadOptions, in_pieces, raw_batch, top_level

MAGIC = b"ARROW1"


def _is_file(handle: pa.NativeFile) -> bool:
    head = handle.read(len(MAGIC))
    handle.seek(0)
    return bool(head == MAGIC)


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Reads the schema and the footer of a file."""
    with file.open() as handle:
        if not _is_file(handle):
            return Inspection((Part(size=file.size),), pa.ipc.open_stream(handle).schema)
        reader = pa.ipc.open_file(handle)
        return Inspection(_parts(reader.num_record_batches, file.size, part_bytes), reader.schema)


def _parts(batches: int, size: int, part_bytes: int) -> tuple[Part, ...]:
    """Splits evenly by record batches; a single part has no bounds, so that small files can share a unit."""
    n_parts = max(1, min(batches, size // part_bytes))
    if n_parts == 1:
        return (Part(size=size),)
    bounds = [batches * i // n_parts for i in range(n_parts + 1)]
    return tuple(Part(a, b, size=size // n_parts) for a, b in itertools.pairwise(bounds))


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields a part's record batches, split to the limits on rows and bytes."""
    with file.open() as handle:
        position = 0
        for batch in _batches(handle, part, columns):
            for piece in in_pieces(batch, batch_rows):
                yield raw_batch(piece, columns, position)
                position += len(piece)


def _batches(handle: pa.NativeFile, part: Part, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if not _is_file(handle):
        stream = pa.ipc.open_stream(handle)
        yield from (batch.select(top_level(stream.schema, columns)) for batch in stream)
        return
    schema = pa.ipc.open_file(handle).schema
    included = [i for i, name in enumerate(schema.names) if name in top_level(schema, columns)]
    reader = pa.ipc.open_file(handle, options=pa.ipc.IpcReadOptions(included_fields=included or None))
    stop = reader.num_record_batches if part.stop < 0 else part.stop
    yield from (reader.get_batch(i) for i in range(part.start, stop))
