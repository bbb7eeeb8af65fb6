"""Stores the result of change detection per input unit, and selects the rows for the main pass.

A plan is a bit a row and the exceptions, so it travels with the unit's read task; the rows are found again by their
number within the unit. That costs an assumption, that a unit reads alike twice; where it does not, the job reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.arrow.blocks import set_row_errors
from pipelines.store.writer import REPLACES

ReadUnit = Callable[[Any], Iterator[pa.Table]]
"""Reads one unit of input as tables with `doc_id, source, position, content_hash, error`, always in the same order."""

Bits = npt.NDArray[np.uint8]

BASE_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("metadata_hash", pa.binary(16)),
        ("error", pa.string()),
    ]
)
"""What a unit's tables have without metadata columns."""


@dataclass(frozen=True, slots=True, eq=False)
class UnitPlan:
    """Holds what the main pass does with the rows of one unit."""

    rows: int
    sources: tuple[tuple[int, str], ...]
    """(first row, name) of each file in the unit, in order: rows are counted file by file, so that a file that has
    become shorter does not shift those after it."""
    embed: Bits
    """One bit a row, least significant first: 1 where the row is to be embedded or carries an error."""
    duplicates: dict[int, str]
    """Error message by row."""
    replaces: dict[int, list[int]]
    """Row of a changed document to the addresses of the table rows that it replaces."""
    updates: npt.NDArray[np.int64]
    """(n, 2), by row: a row of which only the metadata changed, and the address of a table row that gets its values."""

    @property
    def pending_rows(self) -> int:
        """Counts the rows that `apply` returns."""
        return int(np.unpackbits(self.embed, count=self.rows, bitorder="little").sum()) + len(self.duplicates)

    def ranges(self) -> dict[str, range]:
        """Returns the rows of the unit that belong to each file."""
        ends = [first for first, _ in self.sources[1:]] + [self.rows]
        return {name: range(first, end) for (first, name), end in zip(self.sources, ends, strict=True)}

    def apply(self, table: pa.Table, start: int, stop: int | None = None) -> pa.Table:
        """Selects the rows for the main pass from a table whose first row is row `start` of the unit.

        Adds `replaces: list<uint64>`. Duplicates come out with an error. Rows from `stop` on, which were not
        there then, are kept where they carry an error and dropped otherwise; `select_rows` reports them.
        """
        here = range(start, min(start + table.num_rows, self.rows if stop is None else stop))
        failed = table.column("error").is_valid().to_numpy(zero_copy_only=False)
        keep = failed.copy()
        keep[: len(here)] |= self._bits(here)
        twice = {row - start: error for row, error in self.duplicates.items() if row in here}
        twice = {row: error for row, error in twice.items() if not failed[row]}
        keep[list(twice)] = True
        replaces = [self.replaces.get(row) for row in here] + [None] * (table.num_rows - len(here))
        column = pa.array(replaces, pa.list_(pa.uint64()))
        return set_errors(table, twice).append_column(REPLACES, column).filter(pa.array(keep))

    def _bits(self, rows: range) -> npt.NDArray[np.bool_]:
        """Returns the bits of `embed` for these rows."""
        first = rows.start & 7
        bits = np.unpackbits(self.embed[rows.start >> 3 :], count=first + len(rows), bitorder="little")
        return bits[first:].astype(bool)


def join_updates(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Joins the (row, address) pairs of several partitions, by row."""
    joined: npt.NDArray[np.int64] = np.concatenate([np.zeros((0, 2), np.int64), *parts])
    return joined[np.argsort(joined[:, 0], kind="stable")]


def set_errors(table: pa.Table, errors: dict[int, str]) -> pa.Table:
    """Sets errors on failed rows and nulls their text, so that later stages skip them."""
    if not errors:
        return table
    mask = np.zeros(table.num_rows, bool)
    mask[list(errors)] = True
    at, text = table.column_names.index("text"), table.column("text")
    return set_row_errors(table.set_column(at, "text", pc.if_else(pa.array(mask), None, text)), errors)


RowFilter = Mapping[str, frozenset[int]]
"""Sources and positions that a pass is limited to; position -1 stands for all of a source."""


def select_rows(
    unit: Any, plan: UnitPlan, read: ReadUnit, only: RowFilter | None = None, schema: pa.Schema = BASE_SCHEMA
) -> Iterator[pa.Table]:
    """Yields the rows of a unit that the main pass handles, all of them or `only` some.

    One more row, with an error, for each file that is not what it was or is there no more; `schema` is that of a unit's
    tables, for a unit that has none left.
    """
    ranges = plan.ranges()
    seen = dict.fromkeys(ranges, 0)
    damaged: set[str] = set()
    for table in read(unit):
        schema, source = table.schema, table.column("source")[0].as_py()
        known = ranges.get(source, range(plan.rows, plan.rows))
        selected = keep_requested(
            plan.apply(table, min(known.start + seen.get(source, 0), known.stop), known.stop), only
        )
        seen[source] = seen.get(source, 0) + table.num_rows
        if pc.any(pc.less(table.column("position"), 0)).as_py():
            damaged.add(source)
        if selected.num_rows:
            yield selected
    for source, rows in seen.items():
        before = len(ranges.get(source, ()))
        if rows != before and source not in damaged:
            yield report_changed_file(source, before, rows, schema)


def keep_requested(table: pa.Table, only: RowFilter | None) -> pa.Table:
    if only is None:
        return table
    where = zip(table.column("source").to_pylist(), table.column("position").to_pylist(), strict=True)
    wanted = [
        source in only and (position < 0 or not only[source].isdisjoint((position, -1))) for source, position in where
    ]
    return table.filter(pa.array(wanted, pa.bool_()))


def report_changed_file(source: str, before: int, now: int, schema: pa.Schema) -> pa.Table:
    error = f"the file changed while the job ran: {before} rows when it started, {now} when it was read"
    row = {"source": source, "position": -1, "error": error}
    return pa.Table.from_pylist([row], schema=schema.append(pa.field(REPLACES, pa.list_(pa.uint64()))))


def select_updates(unit: Any, plan: UnitPlan, read: ReadUnit) -> Iterator[pa.Table]:
    """Yields the metadata-only rows of a unit with `_rowaddr`, one row per table row to update.

    Rows of a file that has changed since may be other documents by now: who writes them compares id and content.
    """
    ranges = plan.ranges()
    seen = dict.fromkeys(ranges, 0)
    for table in read(unit):
        source = table.column("source")[0].as_py()
        known = ranges.get(source, range(0))
        first = known.start + seen.get(source, 0)
        seen[source] = seen.get(source, 0) + table.num_rows
        rows = range(first, min(first + table.num_rows, known.stop))
        if rows and (found := _address_rows(table, plan.updates, rows)).num_rows:
            yield found


def _address_rows(table: pa.Table, updates: npt.NDArray[np.int64], rows: range) -> pa.Table:
    """Returns the rows of `table` without error that `updates` lists, with addresses; `table` begins with `rows`."""
    start, stop = np.searchsorted(updates[:, 0], [rows.start, rows.stop])
    pairs = updates[start:stop]
    found = table.take(pa.array(pairs[:, 0] - rows.start))
    found = found.append_column("_rowaddr", pa.array(pairs[:, 1].astype(np.uint64)))
    return found.filter(pc.is_null(found.column("error")))
