"""Reads ORC files: a part is a range of stripes. A damaged stripe loses only itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipelines.reading.files import READ_ERRORS, File
from pipelines.reading.formats.base import (
    UNREADABLE,
    Inspection,
    Part,
    RawRows,
    ReadOptions,
    in_pieces,
    raw_batch,
    top_level,
)


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Reads the footer only."""
    from pyarrow import orc

    with file.open() as handle:
        reader = orc.ORCFile(handle)
        n, size = reader.nstripes, file.size
        each = max(1, -(-n * part_bytes // max(1, size)))
        parts = [Part(a, min(n, a + each), size=size * min(each, n - a) // max(1, n)) for a in range(0, n, each)]
        return Inspection(tuple(parts) if len(parts) != 1 else (replace(parts[0], stop=-1),), reader.schema)


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields the rows of a part's stripes in batches; `position` counts from the part's first row."""
    from pyarrow import orc

    with file.open() as handle:
        reader = orc.ORCFile(handle)
        position, names = 0, top_level(reader.schema, columns)
        for stripe in range(part.start, reader.nstripes if part.stop < 0 else part.stop):
            try:
                batch = reader.read_stripe(stripe, columns=names)
            except READ_ERRORS as error:
                message = f"stripe {stripe} is damaged, its rows are lost: {error}"
                yield RawRows({}, np.array([UNREADABLE], dtype=np.int64), [message])
                continue
            for piece in in_pieces(batch, batch_rows):
                yield raw_batch(piece, columns, position)
                position += len(piece)
