"""Detects changes: which input rows to embed, which have new metadata, which table rows are gone.

Both sides, input rows and table rows, are reduced to 128-bit keys of their ids and content hashes and split by key, so
that each reducer sees all rows of its ids and no process sees all ids. What the driver keeps is one bit an input row
(12.5 MB at 100 million) and the exceptions: duplicates, and the addresses of rows that changed documents replace.

The price is that the input is read twice. A first build pays it too, though its table is empty: only a look at every
id before the first commit finds duplicates without keeping all ids in one place, and reading is cheap beside embedding
(benchmarks/RESEARCH_LOG.md, "Census"). An empty table spares the join, not the read.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.changes.diff import (
    InputRows,
    PartitionDiff,
    TableRows,
    concat_rows,
    diff_partition,
    empty_input_rows,
    empty_table_rows,
    split_rows,
)
from pipelines.changes.selection import ReadUnit, UnitPlan, join_updates
from pipelines.changes.tasks import OnRay, Tasks
from pipelines.store.ids import Keys, as_keys, hash_ids
from pipelines.store.skipped import misfit_names, misfit_types
from pipelines.store.writer import DUPLICATE

SCANNED = ("doc_id", "content_hash", "metadata_hash", "chunk_count")
"""Columns of the table that are compared."""
SCAN_BATCH_ROWS = 4096
QUICK_LOOK_BYTES = 256 * 2**20
"""Input size that one process reads in Ray's start-up time."""
UNITS_PER_TASK = 64
ROWS_PER_PARTITION = 250_000
"""A reducer needs about 150 bytes per row to sort: 40 MB, which its worker process keeps afterwards."""
BYTES_PER_ROW = 64
"""Assumed file bytes per row, to choose the number of partitions before anything is read."""


@dataclass(frozen=True, slots=True)
class UnitSize:
    """Counts a unit's rows. rows: all. bad: with an error. unreadable: files with rows that have no id."""

    rows: int
    bad: int
    unreadable: tuple[str, ...]
    sources: tuple[tuple[int, str], ...]
    """(first row, source) of each file in the unit, in order."""
    misfits: Mapping[str, int] = field(default_factory=dict)
    """Metadata columns to the number of their values that did not fit the column's type."""
    wider: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Such columns to the types that would hold all values of a block."""

    def source(self, row: int) -> str:
        return self.sources[bisect_right([first for first, _ in self.sources], row) - 1][1]


def _hashes(column: pa.Array | pa.ChunkedArray) -> Keys:
    """Converts hashes to keys; null becomes zeros, which are no document's hash."""
    hashes = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return as_keys(pc.fill_null(hashes, pa.scalar(bytes(16), hashes.type)))


def to_input_rows(table: pa.Table, unit: int, start: int) -> InputRows:
    """Converts one table of a unit, starting at row `start` of the unit, to input rows."""
    valid = table.column("doc_id").is_valid()
    where = np.flatnonzero(valid.to_numpy(zero_copy_only=False))
    return InputRows(
        hash_ids(table.column("doc_id").drop_null().combine_chunks()),
        _hashes(table.column("content_hash").filter(valid)),
        _hashes(table.column("metadata_hash").filter(valid)),
        np.full(len(where), unit, np.int32),
        where + start,
        table.column("position").to_numpy()[where],
        table.column("error").is_null().to_numpy(zero_copy_only=False)[where],
    )


def scan_unit(number: int, unit: Any, read: ReadUnit) -> tuple[UnitSize, InputRows]:
    """Scans a unit to its end and keeps 73 bytes per row."""
    parts = [empty_input_rows()]
    rows = bad = 0
    sources: dict[str, int] = {}
    unreadable: dict[str, None] = {}
    misfits: Counter[str] = Counter()
    wider: dict[str, frozenset[str]] = {}
    for table in read(unit):
        parts.append(to_input_rows(table, number, rows))
        for source in table.column("source").unique().to_pylist():
            sources.setdefault(source, rows + pc.index(table.column("source"), source).as_py())
        unreadable |= dict.fromkeys(table.filter(table.column("doc_id").is_null()).column("source").to_pylist())
        rows += table.num_rows
        bad += table.num_rows - table.column("error").null_count
        misfits.update(misfit_names(table))
        wider = _join_types([wider, {name: frozenset({type_}) for name, type_ in misfit_types(table).items()}])
    first_rows = tuple((first, source) for source, first in sources.items())
    return UnitSize(rows, bad, tuple(unreadable), first_rows, misfits, wider), concat_rows(parts)


def _join_types(found: Sequence[Mapping[str, frozenset[str]]]) -> dict[str, frozenset[str]]:
    joined: dict[str, frozenset[str]] = {}
    for types in found:
        joined |= {name: joined.get(name, frozenset()) | given for name, given in types.items()}
    return joined


def to_table_rows(tables: Iterable[pa.RecordBatch]) -> TableRows:
    """Converts batches of a scan over `SCANNED`, with row addresses, to keys and numbers."""
    parts = [empty_table_rows()]
    for batch in tables:
        parts.append(
            TableRows(
                hash_ids(batch.column("doc_id")),
                _hashes(batch.column("content_hash")),
                _hashes(batch.column("metadata_hash")),
                batch.column("chunk_count").to_numpy(),
                batch.column("_rowaddr").to_numpy(),
            )
        )
    return concat_rows(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Holds what differs between input and table. Counts are of documents, except `bad`: input rows with an error."""

    plans: list[UnitPlan]
    new: int
    changed: int
    metadata_only: int
    """Documents whose text is in the table as it is, with other metadata."""
    same: int
    gone: int
    """Documents of the table that are in no input row."""
    duplicates: int
    bad: int
    prune: npt.NDArray[np.uint64]
    """Addresses of table rows whose document is no longer in the input."""
    unreadable: tuple[str, ...]
    """Files with rows whose id cannot be read, or that break off: what these rows held may look as if it were gone."""
    misfits: Mapping[str, int] = field(default_factory=dict)
    """Metadata columns to the number of their values that did not fit the column's type, and are null."""
    wider: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Such columns to the types that would hold all values of one block or another."""

    @property
    def empty(self) -> bool:
        """Returns whether the table has every document of the input unchanged, and no row of the input is bad."""
        return not (self.to_embed or self.metadata_only or self.bad or self.duplicates)

    @property
    def to_embed(self) -> int:
        return self.new + self.changed

    @property
    def rows(self) -> int:
        return sum(plan.rows for plan in self.plans)


class DiffAccumulator:
    """Accumulates the diffs of all partitions; grows with the corpus by one bit per row, on the driver."""

    def __init__(self, sizes: Sequence[UnitSize]) -> None:
        self._sizes = sizes
        self._bits = [np.full(-(-s.rows // 8), 255, np.uint8) for s in sizes]
        self._duplicates: list[dict[int, str]] = [{} for _ in sizes]
        self._replaces: list[dict[int, list[int]]] = [{} for _ in sizes]
        self._updates: list[list[npt.NDArray[np.int64]]] = [[] for _ in sizes]
        self._counts = np.zeros(6, np.int64)
        self._gone: list[npt.NDArray[np.uint64]] = [np.zeros(0, np.uint64)]

    def add(self, diff: PartitionDiff) -> None:
        self._clear(diff.done)
        self._clear(diff.duplicates[:, :2])
        for unit, row, first_unit, first_row, position in diff.duplicates.tolist():
            source = self._sizes[first_unit].source(first_row)
            self._duplicates[unit][row] = f"{DUPLICATE}, first seen in {source} row {position}"
        for (unit, row), address in zip(diff.replaced.tolist(), diff.addresses.tolist(), strict=True):
            self._replaces[unit].setdefault(row, []).append(address)
        for unit in np.unique(diff.updated[:, 0]).tolist():
            of_unit = diff.updated[:, 0] == unit
            addresses = diff.update_addresses[of_unit].astype(np.int64)
            self._updates[unit].append(np.column_stack([diff.updated[of_unit, 1], addresses]))
        same = len(diff.done) - diff.metadata_only
        self._counts += [
            diff.new, diff.changed, diff.metadata_only, same, len(diff.duplicates), diff.gone_documents,
        ]  # fmt: skip
        self._gone.append(diff.gone)

    def _clear(self, where: npt.NDArray[np.int64]) -> None:
        order = np.argsort(where[:, 0], kind="stable")
        units, rows = where[order, 0], where[order, 1]
        bounds = np.flatnonzero(np.diff(units, prepend=-1, append=-1))
        for start, end in itertools.pairwise(bounds):
            part = rows[start:end]
            np.bitwise_and.at(self._bits[units[start]], part >> 3, ~(np.uint8(1) << (part & 7).astype(np.uint8)))

    def changes(self) -> Changes:
        plans = [
            UnitPlan(size.rows, size.sources, bits, duplicates, replaces, join_updates(updates))
            for size, bits, duplicates, replaces, updates in zip(
                self._sizes, self._bits, self._duplicates, self._replaces, self._updates, strict=True
            )
        ]
        new, changed, metadata_only, same, duplicates, gone = self._counts.tolist()
        return Changes(
            plans,
            new,
            changed,
            metadata_only,
            same,
            gone,
            duplicates,
            bad=sum(s.bad for s in self._sizes),
            prune=np.concatenate(self._gone),
            unreadable=tuple(source for s in self._sizes for source in s.unreadable),
            misfits=sum((Counter(s.misfits) for s in self._sizes), Counter[str]()),
            wider=_join_types([s.wider for s in self._sizes]),
        )


def scan_input_units(first: int, units: Sequence[Any], read: ReadUnit, partitions: int) -> list[Any]:
    """Scans neighbouring units, numbered from `first`; returns [sizes, part 0, part 1, ...]."""
    found = [scan_unit(first + i, unit, read) for i, unit in enumerate(units)]
    return [
        [size for size, _ in found],
        *split_rows(concat_rows([empty_input_rows(), *(rows for _, rows in found)]), partitions),
    ]


def scan_table_fragments(open_table: Callable[[], Any], fragments: Sequence[int], partitions: int) -> list[Any]:
    """Scans some fragments of the table; returns [rows, part 0, part 1, ...]."""
    dataset = open_table()
    scan = dataset.scanner(
        columns=list(SCANNED),
        fragments=[dataset.get_fragment(f) for f in fragments],
        with_row_address=True,
    )
    rows = to_table_rows(scan.to_batches())
    return [len(rows), *split_rows(rows, partitions)]


def diff_parts(n_input: int, *parts: Any) -> PartitionDiff:
    return diff_partition(
        concat_rows([empty_input_rows(), *parts[:n_input]]), concat_rows([empty_table_rows(), *parts[n_input:]])
    )


def count_partitions(units: Sequence[Any], table_rows: int) -> int:
    guess: int = max(sum(unit.size for unit in units) // BYTES_PER_ROW, table_rows)
    return min(max(1, -(-guess // ROWS_PER_PARTITION)), 256)


def detect_changes(
    units: Sequence[Any],
    read: ReadUnit,
    open_table: Callable[[], Any] | None = None,
    *,
    run: Tasks | None = None,
) -> Changes:
    """Reads all units once and compares them with the table's rows by partitions of the ids.

    units: have a `size` in bytes. open_table: gives the Lance dataset at one version, the same wherever it is called;
    None where the table is empty. run: `OnRay()` (the default) or `Here()`.
    """
    run = run or OnRay()
    dataset = None if open_table is None else open_table()
    partitions = count_partitions(units, 0 if dataset is None else dataset.count_rows())
    each = max(1, len(units) // UNITS_PER_TASK)
    inputs = [
        run.submit(scan_input_units, partitions + 1, i, units[i : i + each], read, partitions)
        for i in range(0, len(units), each)
    ]
    fragments = [] if dataset is None else [f.fragment_id for f in dataset.get_fragments()]
    each = max(1, len(fragments) // UNITS_PER_TASK)
    tables = [
        run.submit(scan_table_fragments, partitions + 1, open_table, fragments[i : i + each], partitions)
        for i in range(0, len(fragments), each)
    ]
    diffs = [
        run.submit(diff_parts, 1, len(inputs), *(handles[p + 1] for handles in inputs + tables))[0]
        for p in range(partitions)
    ]
    accumulator = DiffAccumulator([size for handles in inputs for size in run.get(handles[0])])
    del inputs, tables
    while diffs:
        accumulator.add(run.get(diffs.pop(0)))
    return accumulator.changes()
