"""Defines what formats share: a file is inspected once (columns and parts), then each part streams as `RawRows`.

A format is two plain functions. It yields values as the file holds them and leaves judging them to `rows`: so every
format treats a null text or a float id alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import CsvConfig, InputConfig
from pipelines.reading.files import File

Column: TypeAlias = "pa.Array | list[Any]"

UNREADABLE = -1
"""Position of a row that stands for an unknown number of rows of a damaged file."""

BATCH_BYTES = 32 * 2**20
"""Maximum bytes of input per batch, even for few rows."""


@dataclass(frozen=True, slots=True)
class Part:
    """Locates a part of a file to be read separately: row groups, bytes or fragments from `start` to before `stop`."""

    start: int = 0
    stop: int = -1
    """-1: to the end of the file."""
    first_row: int = 0
    """Number of the part's first row within the file."""
    rows: int | None = None
    """None if only reading the file shows it."""
    size: int = 0
    """Bytes in the file."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Holds what is known of a file without reading it all."""

    parts: tuple[Part, ...]
    schema: pa.Schema | None = None
    """None where the file is too damaged, or too empty, to have columns."""
    version: str | None = None
    """The version of a table that has versions; None: the time and size of the file."""


@dataclass(frozen=True, slots=True, eq=False)
class RawRows:
    """Holds rows as parsed from the file; `errors[i]` is the reason why row i could not be parsed."""

    columns: Mapping[str, Column]
    positions: npt.NDArray[np.int64]
    errors: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Holds the options of readers other than the file."""

    max_bytes: int
    """No value longer than this is of use, so a reader may stop short of keeping one."""
    text: str = "text"
    """Column of the text: the delimiter of a CSV file is the one that finds it in the header."""
    paths: tuple[str, ...] = ()
    """Wanted columns with a dot in their names, which may be paths into nested ones."""
    encoding: str = "auto"
    csv: CsvConfig = field(default_factory=CsvConfig)

    @classmethod
    def of(cls, config: InputConfig) -> ReadOptions:
        """Takes the readers' options from a config."""
        columns = config.columns
        wanted = (columns.id, columns.text, columns.title, *map(columns.source_of, columns.metadata))
        paths = tuple(dict.fromkeys(name for name in wanted if name is not None and "." in name))
        return cls(config.max_text_bytes, columns.text, paths, config.encoding, config.csv)


class Reader(NamedTuple):
    """Declares a format: `inspect(file, part_bytes, options)` and `rows(file, part, columns, batch_rows, options)`."""

    suffix: re.Pattern[str]
    inspect: Callable[[File, int, ReadOptions], Inspection]
    rows: Callable[[File, Part, Sequence[str], int, ReadOptions], Iterator[RawRows]]
    strict: bool
    """Every row has every column of the schema."""
    is_document: bool = False
    """A file is one document, and its path is its id."""
    extra: str | None = None
    """Extra that the format needs (`actors.extras`)."""


def single_part(file: File) -> Inspection:
    """Returns one part and no columns, the inspection of a file that cannot be opened."""
    return Inspection((Part(size=file.size),))


def group_into_batches(
    rows: Iterable[tuple[int, int, Mapping[str, Any] | str]], columns: Sequence[str], batch_rows: int
) -> Iterator[RawRows]:
    """Groups (position, bytes, values or an error message) into batches; bounded by rows and by BATCH_BYTES."""
    pending: list[tuple[int, Mapping[str, Any] | str]] = []
    size = 0
    for position, n_bytes, row in rows:
        pending.append((position, row))
        size += n_bytes
        if len(pending) >= batch_rows or size >= BATCH_BYTES:
            yield _as_raw_rows(pending, columns)
            pending, size = [], 0
    if pending:
        yield _as_raw_rows(pending, columns)


def _as_raw_rows(rows: Sequence[tuple[int, Mapping[str, Any] | str]], columns: Sequence[str]) -> RawRows:
    values = [{} if isinstance(row, str) else row for _, row in rows]
    return RawRows(
        {
            name: [look_up(row, name) for row in values] if "." in name else [row.get(name) for row in values]
            for name in columns
        },
        np.array([position for position, _ in rows], dtype=np.int64),
        [row if isinstance(row, str) else None for _, row in rows],
    )


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """Looks up a key, or a path into nested objects such as `content.text`; None if it is absent."""
    if path in row:
        return row[path]
    first, dot, rest = path.partition(".")
    inner = row.get(first) if dot else None
    return look_up(inner, rest) if isinstance(inner, Mapping) else None


def pick(columns: pa.RecordBatch | pa.Table, path: str) -> pa.Array | pa.ChunkedArray | None:
    """Returns a column, or the field of a struct column by path; None if it is absent."""
    at = columns.schema.get_all_field_indices(path)
    if at:
        return columns.column(at[0])
    for first, rest in _splits(path):
        at = columns.schema.get_all_field_indices(first)
        if at and pa.types.is_struct(columns.schema.field(at[0]).type):
            try:
                return pc.struct_field(columns.column(at[0]), rest.split("."))
            except pa.ArrowException:
                continue
    return None


def field_at(schema: pa.Schema, path: str) -> pa.Field | None:
    """Returns the type of the column that `pick` returns, as a field named by the path."""
    found = pick(schema.empty_table(), path)
    return None if found is None else pa.field(path, found.type)


def top_level(schema: pa.Schema, paths: Sequence[str]) -> list[str]:
    """Returns the top-level columns that contain these paths, for readers that select whole columns."""
    firsts = [next((p for p in (path, *(f for f, _ in _splits(path))) if p in schema.names), None) for path in paths]
    return list(dict.fromkeys(name for name in firsts if name is not None))


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """Yields each way of splitting a path in two: `("a", "b.c")` and `("a.b", "c")` of `a.b.c`."""
    parts = path.split(".")
    for i in range(1, len(parts)):
        yield ".".join(parts[:i]), ".".join(parts[i:])


def raw_batch(batch: pa.RecordBatch, columns: Sequence[str], position: int) -> RawRows:
    """Selects columns of an Arrow batch that starts at a row position in its file."""
    found = {name: pick(batch, name) for name in columns}
    values = {name: column for name, column in found.items() if column is not None}
    return RawRows(values, np.arange(position, position + len(batch)), [None] * len(batch))


def in_pieces(batch: pa.RecordBatch, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Splits a batch to the limits on rows and bytes."""
    row_bytes = batch.nbytes / max(1, len(batch))
    step = max(1, min(batch_rows, int(BATCH_BYTES / max(row_bytes, 1))))
    for start in range(0, len(batch), step):
        yield batch.slice(start, step)


def to_values(column: Column) -> list[Any]:
    """Converts a column to Python objects."""
    values: list[Any] = column if isinstance(column, list) else column.to_pylist()
    return values


def to_storable(value: Any) -> Any:
    """Converts objects to JSON text: rows rarely share all keys, and Arrow would drop unknown ones."""
    nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value))
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if nested else value


def raise_after_good_rows(rows: Iterator[Any], pack: Callable[[Iterator[Any]], Iterator[RawRows]]) -> Iterator[RawRows]:
    """Yields `pack(rows)`, delaying an error of `rows` until all rows read before it are yielded."""
    broken: list[Exception] = []

    def guarded() -> Iterator[Any]:
        try:
            yield from rows
        except Exception as error:
            broken.append(error)

    yield from pack(guarded())
    if broken:
        raise broken[0]
