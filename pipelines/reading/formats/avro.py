"""Reads Avro object container files with fastavro, sequentially: each file is one part."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.reading.files import File
from pipelines.reading.formats.base import (
    Inspection,
    Part,
    RawRows,
    ReadOptions,
    group_into_batches,
    raise_after_good_rows,
)
from pipelines.reading.formats.jsonl import SAMPLE_ROWS, sample_schema

ROW_BYTES = 2**12
"""Assumed size of a row, to limit batches by bytes as well."""


@contextlib.contextmanager
def _wrap_errors(file: File) -> Iterator[None]:
    """Wraps the errors of a damaged file, as which fastavro raises ValueError, KeyError, IndexError and others."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise OSError(f"not Avro, or damaged: {type(error).__name__}: {error}") from error


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Infers columns and types from the first 1,000 rows."""
    import fastavro

    with _wrap_errors(file), file.stream() as stream:
        sample = [row for row in itertools.islice(fastavro.reader(stream), SAMPLE_ROWS) if isinstance(row, dict)]
        return Inspection((Part(size=file.size),), sample_schema(sample, options.paths))


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields a file's rows in batches."""
    yield from raise_after_good_rows(_records(file), lambda good: group_into_batches(good, columns, batch_rows))


def _records(file: File) -> Iterator[tuple[int, int, Any]]:
    import fastavro

    with _wrap_errors(file), file.stream() as stream:
        for position, row in enumerate(fastavro.reader(stream)):
            yield position, ROW_BYTES, row if isinstance(row, dict) else f"row is a {type(row).__name__}, not a record"
