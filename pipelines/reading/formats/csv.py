"""Reads CSV and TSV with a header line or configured names, plain or compressed.

Python's parser in strict mode, because it goes on after a bad row; Arrow's is ten times faster, stops at an overlong
value and cannot say which row was at fault. A file is never split: a line end may lie within quotes. Most programs that
write TSV quote nothing, so a TSV line is cut at its tabs, and quotes are only taken off a value that they are around;
where the first rows make sense only with line ends within quotes, the file is read as CSV is.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipelines.config import is_utf8
from pipelines.reading.compression import as_utf8
from pipelines.reading.files import READ_ERRORS, File
from pipelines.reading.formats.base import (
    Inspection,
    Part,
    RawRows,
    ReadOptions,
    group_into_batches,
    raise_after_good_rows,
)
from pipelines.reading.formats.jsonl import SAMPLE_BYTES, SAMPLE_ROWS, Row

_TYPES = (pa.int64(), pa.float64(), pa.bool_())
_SEPARATOR = re.compile(r"sep=.?", re.IGNORECASE)
_CODE = re.compile(r"[+-]?0[0-9]")
DELIMITERS = (",", ";", "\t", "|")

Records = Iterator[list[str]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Holds the dialect of one file: delimiter, column names and quote."""

    delimiter: str
    names: tuple[str, ...] | None
    """None: the first row has them."""
    quote: str | None
    """None: values are not quoted."""
    by_line: bool = False
    """Every line is a row, and quotes count only around whole values."""

    def records(self, lines: io.TextIOWrapper) -> Records:
        """Returns the rows of a file as lists of values; csv.Error for one that cannot be parsed."""
        if self.by_line:
            return _split_lines(lines, self.delimiter, self.quote or '"')
        if self.quote is None:
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote, strict=True)


def _split_lines(lines: io.TextIOWrapper, delimiter: str, quote: str) -> Records:
    longest = csv.field_size_limit()
    while line := lines.readline(longest):
        if len(line) >= longest and not line.endswith(("\n", "\r")):
            raise csv.Error(f"field larger than field limit ({longest})")
        line = line.rstrip("\r\n")
        yield [_unquote(value, quote) for value in line.split(delimiter)] if line else []


def _unquote(value: str, quote: str) -> str:
    """Removes the quotes around a value and undoubles those within it."""
    if len(value) < 2 or not value.startswith(quote) or not value.endswith(quote):
        return value
    inner = value[1:-1].replace(quote * 2, "")
    return value[1:-1].replace(quote * 2, quote) if quote not in inner else value


def inspect(file: File, part_bytes: int, options: ReadOptions, delimiter: str = ",") -> Inspection:
    """Reads column names from the header; infers types (int64, float64, bool, string) from 1,000 rows."""
    if not file.size:
        return Inspection(())
    csv.field_size_limit(SAMPLE_BYTES)
    return Inspection((Part(size=file.size),), _schema(file, options, delimiter))


def _schema(file: File, options: ReadOptions, delimiter: str) -> pa.Schema | None:
    """Infers types from the rows up to the first that cannot be parsed."""
    dialect = choose_dialect(file, options, delimiter)
    sample = _sample(file, options, dialect)
    if not sample:
        return None
    rows = iter(sample)
    header = _read_header(rows) if dialect.names is None else dialect.names
    rest = list(rows)
    return pa.schema([(name, _type_of([row[i] for row in rest if i < len(row)])) for i, name in enumerate(header)])


def _sample(file: File, options: ReadOptions, dialect: Dialect) -> list[list[str]]:
    sample: list[list[str]] = []
    size = 0
    with contextlib.suppress(*READ_ERRORS, csv.Error), _text(file, options) as lines:
        for row in itertools.islice(dialect.records(lines), SAMPLE_ROWS):
            sample.append(row)
            size += sum(map(len, row))
            if size > SAMPLE_BYTES:
                break
    return sample


def choose_dialect(file: File, options: ReadOptions, delimiter: str = ",") -> Dialect:
    """Returns the configured dialect; detects what the config leaves open from the first rows."""
    names, quote = options.csv.names, options.csv.quote
    mark = '"' if quote == "auto" else quote
    if options.csv.delimiter is not None or names is not None or delimiter != ",":
        delimiter = options.csv.delimiter or delimiter
    else:
        headers = {d: _sample_header(file, options, Dialect(d, names, mark)) for d in DELIMITERS}
        delimiter = next((d for d, header in headers.items() if options.text in header), delimiter)
    if quote != "auto" or delimiter != "\t":
        return Dialect(delimiter, names, mark)
    by_line, quoted = Dialect(delimiter, names, mark, by_line=True), Dialect(delimiter, names, mark)
    return quoted if not _is_even(file, options, by_line) and _is_even(file, options, quoted) else by_line


def _sample_header(file: File, options: ReadOptions, dialect: Dialect) -> list[str]:
    with contextlib.suppress(*READ_ERRORS, csv.Error), _text(file, options) as lines:
        return _read_header(dialect.records(lines))
    return []


def _read_header(records: Iterator[list[str]]) -> list[str]:
    """Returns the first row, after blank lines and the line `sep=;` with which Excel is told the delimiter."""
    return next((row for row in records if row and not _SEPARATOR.fullmatch("".join(row))), [])


def _is_even(file: File, options: ReadOptions, dialect: Dialect) -> bool:
    """Returns whether all rows of the sample have as many values as there are columns."""
    rows = iter(_sample(file, options, dialect))
    width = len(dialect.names or _read_header(rows))
    return all(len(row) == width for row in rows if row)


def _type_of(values: Sequence[str]) -> pa.DataType:
    """Returns the common type of values; string for codes such as postcodes, whose leading zeros count."""
    filled = [value for value in values if value]
    if any(_CODE.match(value) for value in filled):
        return pa.string()
    for type_ in _TYPES if filled else ():
        try:
            pa.array(filled).cast(type_)
        except (pa.ArrowException, UnicodeError):
            continue
        return type_
    return pa.string()


def _text(file: File, options: ReadOptions) -> io.TextIOWrapper:
    """Decodes bytes; invalid UTF-8 becomes surrogates, which `_row` reports."""
    stream = as_utf8(file.stream(), options.encoding)
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def rows(
    file: File,
    part: Part,
    columns: Sequence[str],
    batch_rows: int,
    options: ReadOptions,
    delimiter: str = ",",
) -> Iterator[RawRows]:
    """Yields a file's rows in batches."""
    # An open quote swallows the rest of a damaged file: beyond this, parsing stops. The parser's limit is global.
    csv.field_size_limit(4 * options.max_bytes)
    dialect = choose_dialect(file, options, delimiter)
    with _text(file, options) as lines:
        parsed = _parse(_Counted(dialect.records(lines)), dialect.names)
        yield from raise_after_good_rows(parsed, lambda good: group_into_batches(good, columns, batch_rows))


class _Counted:
    """Counts the lines that a reader of rows has consumed: rows of CSV may have several, other rows have one."""

    def __init__(self, records: Records) -> None:
        self._records, self._rows = records, 0

    @property
    def lines(self) -> int:
        return int(getattr(self._records, "line_num", self._rows))

    def __iter__(self) -> Records:
        return self

    def __next__(self) -> list[str]:
        self._rows += 1
        return next(self._records)


def _parse(reader: _Counted, names: Sequence[str] | None) -> Iterator[Row]:
    """Yields rows; their position is the number of the line, from 0, that they begin on."""
    try:
        header = list(names) if names is not None else _read_header(reader)
    except csv.Error as error:
        raise OSError(f"header is not CSV: {error}") from error
    while True:
        position = reader.lines
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "field larger" in str(error):
                raise OSError(f"line {position + 1}: a value without end, perhaps an open quote: {error}") from error
            yield position, 0, f"row is not CSV: {error}"
            continue
        if values is None:
            return
        if values:
            yield position, sum(map(len, values)), _row(values, header)


def _row(values: Sequence[str], header: Sequence[str]) -> dict[str, str | None] | str:
    if len(values) != len(header):
        return f"row has {len(values)} fields, the header has {len(header)}"
    if not is_utf8("".join(values)):
        return "row is not valid UTF-8"
    return {name: value or None for name, value in zip(header, values, strict=True)}


inspect_tsv: Callable[[File, int, ReadOptions], Inspection] = partial(inspect, delimiter="\t")
rows_tsv: Callable[[File, Part, Sequence[str], int, ReadOptions], Iterator[RawRows]] = partial(rows, delimiter="\t")
