"""What a census decides for one unit of input, and how the main pass keeps to it.

A plan is a bit a row and the exceptions, so it travels with the unit's read task; the rows are found again by their
number within the unit. That costs an assumption, that a unit reads alike twice; where it does not, the job says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.blocks import mark
from pipelines.store.writer import REPLACES

ReadUnit = Callable[[Any], Iterator[pa.Table]]
"""Reads one unit of input as tables with `doc_id, source, position, content_hash, error`, always in the same order."""

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class UnitPlan:
    """What to do with the rows of one unit in the main pass."""

    rows: int
    embed: Bits
    """One bit a row, least significant first: 1 where the row is to be embedded or carries an error."""
    duplicates: dict[int, str]
    """Row to what is wrong with it."""
    replaces: dict[int, list[int]]
    """Row of a changed document to the addresses of the table rows that it replaces."""

    @property
    def to_do(self) -> int:
        """Rows that come out of `apply`."""
        return int(np.unpackbits(self.embed, count=self.rows, bitorder="little").sum()) + len(self.duplicates)

    def apply(self, table: pa.Table, start: int) -> pa.Table:
        """Of a table whose first row is row `start` of the unit: the rows that the main pass handles.

        Adds `replaces: list<uint64>`. Duplicates come out with an error. Rows that the census did not see are kept
        where they carry an error and dropped otherwise; `select` reports them.
        """
        here = range(start, start + table.num_rows)
        keep = table.column("error").is_valid().to_numpy(zero_copy_only=False) | self._bits(start, table.num_rows)
        twice = {row - start: error for row, error in self.duplicates.items() if row in here}
        keep[list(twice)] = True
        replaces = pa.array([self.replaces.get(row) for row in here], pa.list_(pa.uint64()))
        return _marked(table, twice).append_column(REPLACES, replaces).filter(pa.array(keep))

    def _bits(self, start: int, n: int) -> npt.NDArray[np.bool_]:
        """`embed` for rows `start` to before `start + n`; False after the last one."""
        found = np.zeros(n, bool)
        inside = max(0, min(self.rows - start, n))
        part = np.unpackbits(self.embed[start >> 3 :], count=(start & 7) + inside, bitorder="little")
        found[:inside] = part[start & 7 :]
        return found


def _marked(table: pa.Table, errors: dict[int, str]) -> pa.Table:
    """Failed rows have an error and no text, so that no later stage makes anything of them."""
    if not errors:
        return table
    mask = np.zeros(table.num_rows, bool)
    mask[list(errors)] = True
    at, text = table.column_names.index("text"), table.column("text")
    return mark(table.set_column(at, "text", pc.if_else(pa.array(mask), None, text)), errors)


Only = Mapping[str, frozenset[int]]
"""Sources and positions that a pass is limited to; position -1 stands for all of a source."""


def select(unit: Any, plan: UnitPlan, read: ReadUnit, only: Only | None = None) -> Iterator[pa.Table]:
    """The rows of a unit that the main pass handles, all of them or `only` some.

    One more row, with an error, where the unit is not what it was.
    """
    start, damaged, last = 0, False, None
    for table in read(unit):
        selected = _limited(plan.apply(table, start), only)
        start += table.num_rows
        damaged |= bool(pc.any(pc.less(table.column("position"), 0)).as_py())
        last = table.slice(table.num_rows - 1)
        if selected.num_rows:
            yield selected
    if start != plan.rows and last is not None and not damaged:
        yield _changed(last, plan, start)


def _limited(table: pa.Table, only: Only | None) -> pa.Table:
    if only is None:
        return table
    where = zip(table.column("source").to_pylist(), table.column("position").to_pylist(), strict=True)
    wanted = [not only.get(source, frozenset()).isdisjoint((position, -1)) for source, position in where]
    return table.filter(pa.array(wanted, pa.bool_()))


def _changed(row: pa.Table, plan: UnitPlan, rows: int) -> pa.Table:
    error = f"the file changed while the job ran: {plan.rows} rows when it started, {rows} when it was read"
    values = {"source": row.column("source")[0].as_py(), "position": -1, "error": error}
    schema = row.schema.append(pa.field(REPLACES, pa.list_(pa.uint64())))
    return pa.Table.from_pylist([values], schema=schema)
