"""CSV with a header line, plain or compressed, quoted values with line ends in them included.

Python's parser in strict mode, because it goes on after a bad row; Arrow's is ten times faster, stops at an overlong
value and cannot say which row was at fault. A file is never split: a line end may lie within quotes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.reading.files import READ_ERRORS, File
from pipelines.reading.formats.base import Inspection, Part, RawRows, group_into_batches, raise_after_good_rows
from pipelines.reading.formats.jsonl import SAMPLE_BYTES, SAMPLE_ROWS, Row

_TYPES = (pa.int64(), pa.float64(), pa.bool_())


def inspect(file: File, part_bytes: int) -> Inspection:
    """Columns from the header; types are the narrowest of int64, float64, bool and string that hold 1,000 rows."""
    if not file.size:
        return Inspection(())
    return Inspection((Part(size=file.size),), _schema(file))


def _schema(file: File) -> pa.Schema | None:
    """Of the rows up to the first that cannot be parsed."""
    csv.field_size_limit(SAMPLE_BYTES)
    sample: list[list[str]] = []
    size = 0
    with contextlib.suppress(*READ_ERRORS, csv.Error), _text(file) as lines:
        for row in itertools.islice(csv.reader(lines, strict=True), SAMPLE_ROWS):
            sample.append(row)
            size += sum(map(len, row))
            if size > SAMPLE_BYTES:
                break
    if not sample:
        return None
    header, *rest = sample
    columns = {name: [row[i] for row in rest if i < len(row)] for i, name in enumerate(header)}
    return pa.schema([(name, _type_of(values)) for name, values in columns.items()])


def _type_of(values: Sequence[str]) -> pa.DataType:
    filled = [value for value in values if value]
    for type_ in _TYPES if filled else ():
        try:
            pa.array(filled).cast(type_)
        except (pa.ArrowException, UnicodeError):
            continue
        return type_
    return pa.string()


def _text(file: File) -> io.TextIOWrapper:
    """Bytes that are not UTF-8 come through as surrogates, which `_row` finds."""
    return io.TextIOWrapper(file.stream(), encoding="utf-8-sig", errors="surrogateescape", newline="")


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, limit: int) -> Iterator[RawRows]:
    # An open quote swallows the rest of a damaged file: beyond this, parsing stops. The parser's limit is global.
    csv.field_size_limit(4 * limit)
    with _text(file) as lines:
        parsed = _parse(csv.reader(lines, strict=True))
        yield from raise_after_good_rows(parsed, lambda good: group_into_batches(good, columns, batch_rows))


def _parse(reader: Iterator[list[str]]) -> Iterator[Row]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise OSError(f"header is not CSV: {error}") from error
    for position in itertools.count():
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "field larger" in str(error):
                raise OSError(f"row {position}: a value without end, perhaps an open quote: {error}") from error
            yield position, 0, f"row is not CSV: {error}"
            continue
        if values is None:
            return
        if values:
            yield position, sum(map(len, values)), _row(values, header)


def _row(values: Sequence[str], header: Sequence[str]) -> dict[str, str | None] | str:
    if len(values) != len(header):
        return f"row has {len(values)} fields, the header has {len(header)}"
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return "row is not valid UTF-8"
    return {name: value or None for name, value in zip(header, values, strict=True)}
