"""JSON Lines, plain or compressed: each line is parsed on its own, so that a bad line costs that line.

Arrow's JSON reader is several times faster but fails a whole block for one malformed line or one mixed column; an
embedder is a hundred times slower than either. A large plain file is split at line ends; a compressed one cannot be.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from pipelines.reading.files import READ_ERRORS, File
from pipelines.reading.formats.base import (
    Inspection,
    Part,
    RawRows,
    group_into_batches,
    raise_after_good_rows,
    to_storable,
)

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 2**20
SEEK_BYTES = 2**16
MIN_PART_BYTES = 8 * 2**20
"""A file that is not split keeps its plain line numbers, and reading 8 MiB takes a fraction of a second."""

Row = tuple[int, int, "Mapping[str, Any] | str"]


def inspect(file: File, part_bytes: int) -> Inspection:
    """Splits at line ends; columns and their types are those of the first 1,000 rows or 1 MiB."""
    return Inspection(_parts(file, part_bytes), sample_schema(_sample(file)))


def is_compressed(file: File) -> bool:
    return file.name.endswith((".gz", ".zst", ".bz2"))


def _parts(file: File, part_bytes: int) -> tuple[Part, ...]:
    part_bytes = max(part_bytes, MIN_PART_BYTES)
    if is_compressed(file) or file.size < 2 * part_bytes:
        return (Part(size=file.size),) if file.size else ()
    with file.open() as handle:
        cuts = [_line_start(handle, at, file.size) for at in range(part_bytes, file.size, part_bytes)]
    bounds = sorted({0, *cuts, file.size})
    return tuple(Part(start, stop, size=stop - start) for start, stop in itertools.pairwise(bounds))


def _line_start(handle: pa.NativeFile, at: int, size: int) -> int:
    """The first byte after the line end at or after `at - 1`."""
    at -= 1
    while at < size:
        handle.seek(at)
        block = handle.read(SEEK_BYTES)
        found = block.find(b"\n")
        if found >= 0:
            return int(at + found + 1)
        at += len(block)
    return size


def _sample(file: File) -> list[Mapping[str, Any]]:
    """The rows at the beginning that can be parsed; none of a file that cannot be opened."""
    found: list[Mapping[str, Any]] = []
    seen = 0
    try:
        with file.stream() as stream:
            for _, n_bytes, row in itertools.islice(_parse(stream, None, SAMPLE_BYTES), SAMPLE_ROWS):
                seen += n_bytes
                if not isinstance(row, str):
                    found.append(row)
                if seen >= SAMPLE_BYTES:
                    break
    except READ_ERRORS:
        return found
    return found


def sample_schema(rows: Sequence[Mapping[str, Any]]) -> pa.Schema | None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    fields = [pa.field(name, _type_of([to_storable(row.get(name)) for row in rows])) for name in names]
    return pa.schema(fields) if fields else None


def _type_of(values: Sequence[Any]) -> pa.DataType:
    """Of mixed values there is none in common but text."""
    try:
        return pa.array(values).type
    except (pa.ArrowException, UnicodeError, OverflowError):
        return pa.string()


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, limit: int) -> Iterator[RawRows]:
    with file.stream() if part.stop < 0 else file.stream_from(part.start) as stream:
        length = None if part.stop < 0 else part.stop - part.start
        # A text of `limit` bytes can be twice as long with its quotes and backslashes escaped.
        parsed = _parse(stream, length, 2 * limit + 2**20)
        yield from raise_after_good_rows(parsed, lambda good: group_into_batches(good, columns, batch_rows))


def _parse(stream: BinaryIO, length: int | None, longest: int) -> Iterator[Row]:
    """(row, bytes, object or error) of each line that is not blank; blank lines count as rows."""
    at = position = 0
    while length is None or at < length:
        line, n_bytes = _read_line(stream, longest)
        if not n_bytes:
            return
        if line is None:
            yield position, 0, f"line has {n_bytes:,} bytes, more than {longest:,} are not read"
        elif not line.isspace():
            yield position, n_bytes, _parse_line(line, first=position == 0)
        at += n_bytes
        position += 1


def _read_line(stream: BinaryIO, longest: int) -> tuple[bytes | None, int]:
    """The next line and its bytes; the rest of a line that is too long is skipped and the line is None."""
    line = stream.readline(longest)
    if len(line) < longest or line.endswith(b"\n"):
        return line, len(line)
    n_bytes = len(line)
    while rest := stream.readline(2**20):
        n_bytes += len(rest)
        if rest.endswith(b"\n"):
            break
    return None, n_bytes


def _parse_line(line: bytes, first: bool) -> Mapping[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        return f"line is not valid UTF-8: byte {error.start} of the line: {error.reason}"
    except (ValueError, RecursionError) as error:
        return f"line is not JSON: {error}"
    return row if isinstance(row, dict) else f"line is a JSON {type(row).__name__}, an object is needed"
