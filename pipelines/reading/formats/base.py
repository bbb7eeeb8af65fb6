"""What the formats share: a file is inspected once (columns and parts), then each part streams as `RawRows` batches.

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

from pipelines.reading.files import File

Column: TypeAlias = "pa.Array | list[Any]"

UNREADABLE = -1
"""Position of a row that stands for an unknown number of rows of a damaged file."""

BATCH_BYTES = 32 * 2**20
"""A batch ends at this many bytes of input, however few rows that is."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file that is read on its own: row groups, bytes or fragments from `start` to before `stop`."""

    start: int = 0
    stop: int = -1
    """-1: to the end of the file."""
    first_row: int = 0
    """Number of the part's first row within the file."""
    rows: int | None = None
    """None where only reading can tell."""
    size: int = 0
    """Bytes in the file."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What can be said of a file without reading it all."""

    parts: tuple[Part, ...]
    schema: pa.Schema | None = None
    """None where the file is too damaged, or too empty, to have columns."""
    version: str | None = None
    """Of a table that knows its own; None: the time and size of the file."""


@dataclass(frozen=True, slots=True, eq=False)
class RawRows:
    """Rows as the file holds them; `errors[i]` says why row i could not be parsed."""

    columns: Mapping[str, Column]
    positions: npt.NDArray[np.int64]
    errors: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)


class Reader(NamedTuple):
    """A format: `inspect(file, part_bytes)` and `rows(file, part, columns, batch_rows, limit)`.

    `limit`: no value longer than this many bytes is of use, so a reader may stop short of keeping one.
    """

    suffix: re.Pattern[str]
    inspect: Callable[[File, int], Inspection]
    rows: Callable[[File, Part, Sequence[str], int, int], Iterator[RawRows]]
    strict: bool
    """Every row has every column of the schema."""


def single_part(file: File) -> Inspection:
    """One part, columns unknown: all there is to say of a file that cannot be opened."""
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
        {name: [row.get(name) for row in values] for name in columns},
        np.array([position for position, _ in rows], dtype=np.int64),
        [row if isinstance(row, str) else None for _, row in rows],
    )


def to_storable(value: Any) -> Any:
    """Objects as JSON text: rows rarely agree on their keys, and Arrow would drop the ones it does not know."""
    nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value))
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if nested else value


def raise_after_good_rows(rows: Iterator[Any], pack: Callable[[Iterator[Any]], Iterator[RawRows]]) -> Iterator[RawRows]:
    """`pack(rows)`, but an error of `rows` is raised only after everything read before it has been yielded."""
    broken: list[Exception] = []

    def guarded() -> Iterator[Any]:
        try:
            yield from rows
        except Exception as error:
            broken.append(error)

    yield from pack(guarded())
    if broken:
        raise broken[0]
