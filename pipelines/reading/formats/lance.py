"""Reads Lance tables: a part is one fragment of the version at planning time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.config import plain_options, scheme_of
from pipelines.reading.files import File
from pipelines.reading.formats.base import BATCH_BYTES, Inspection, Part, RawRows, ReadOptions, raw_batch, top_level


@contextlib.contextmanager
def _wrap_errors(file: File) -> Iterator[None]:
    """Wraps the errors of a damaged file, as which Lance raises ValueError and RuntimeError too."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise OSError(f"{file.uri}: {error}") from error


def _open(file: File) -> pa.dataset.Dataset:
    import lance

    local = scheme_of(file.uri) in ("", "file")
    return lance.dataset(
        file.path if local else file.uri,
        version=int(file.version) if file.version else None,
        storage_options=None if local else plain_options(file.options),
    )


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Returns the table's schema and one part per fragment."""
    with _wrap_errors(file):
        table = _open(file)
        parts = []
        row = 0
        for fragment in table.get_fragments():
            n_rows = fragment.count_rows()
            size = sum(data.file_size_bytes or 0 for data in fragment.metadata.files)
            parts.append(Part(fragment.fragment_id, fragment.fragment_id + 1, row, n_rows, size))
            row += n_rows
        return Inspection(tuple(parts), table.schema, version=str(table.version))


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields the rows of a part's fragments in batches."""
    position = part.first_row
    row_bytes = part.size / max(part.rows or 1, 1)
    n_rows = max(1, min(batch_rows, int(BATCH_BYTES / max(row_bytes, 1))))
    with _wrap_errors(file):
        table = _open(file)
        fragments = (
            [table.get_fragment(i) for i in range(part.start, part.stop)] if part.stop >= 0 else table.get_fragments()
        )
        whole = top_level(table.schema, columns)
        for fragment in fragments:
            for batch in fragment.to_batches(columns=whole, batch_size=n_rows, batch_readahead=1):
                yield raw_batch(batch, columns, position)
                position += len(batch)
