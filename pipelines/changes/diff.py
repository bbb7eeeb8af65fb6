"""Compares input rows with table rows in numpy: new, changed, unchanged, duplicate and gone.

Rows are 128-bit keys and numbers, so a partition of two million costs a sort and no Python object a row. Ids whose keys
collide would be taken for one (see `store.ids` for how unlikely that is).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from actors.outputs import offsets_of
from pipelines.store.ids import IntArray, Keys, assign_partitions, number_keys

Rows = TypeVar("Rows", "InputRows", "TableRows")


@dataclass(frozen=True, slots=True, eq=False)
class InputRows:
    """Holds input rows that have an id, one array entry each. `good` is False for a row with an error."""

    keys: Keys
    content: Keys
    metadata: Keys
    unit: npt.NDArray[np.int32]
    row: IntArray
    position: IntArray
    good: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """Holds rows of the `documents` table. `count` is the number of chunks that the row's document should have."""

    keys: Keys
    content: Keys
    metadata: Keys
    count: npt.NDArray[np.int32]
    address: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.address)


@dataclass(frozen=True, slots=True, eq=False)
class PartitionDiff:
    """Holds the differences within one partition of the ids. Rows are (unit, row number within the unit)."""

    new: int
    changed: int
    metadata_only: int
    done: npt.NDArray[np.int64]
    """(n, 2): rows whose document is in the table with this content: nothing of it is embedded."""
    duplicates: npt.NDArray[np.int64]
    """(n, 5): unit, row, and of the first row with that id: unit, row, position in its file."""
    replaced: npt.NDArray[np.int64]
    """(n, 2): changed rows, parallel to `addresses`: the table rows that each replaces."""
    addresses: npt.NDArray[np.uint64]
    updated: npt.NDArray[np.int64]
    """(n, 2): rows of which only the metadata changed, parallel to `update_addresses`: the rows that get new values."""
    update_addresses: npt.NDArray[np.uint64]
    gone: npt.NDArray[np.uint64]
    """Addresses of table rows whose document is in no input row."""
    gone_documents: int


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """Concatenates parts, at least one."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)))


def gather_rows(rows: Rows, where: IntArray) -> Rows:
    return type(rows)(*(getattr(rows, f.name)[where] for f in fields(rows)))


def split_rows(rows: Rows, partitions: int) -> list[Rows]:
    """Partitions rows by key; order within a partition is kept."""
    parts = assign_partitions(rows.keys, partitions)
    order = np.argsort(parts, kind="stable")
    bounds = offsets_of(np.bincount(parts, minlength=partitions))
    return [gather_rows(rows, order[a:b]) for a, b in itertools.pairwise(bounds)]


def empty_input_rows() -> InputRows:
    """Returns no input rows, the neutral element of `concat_rows`."""
    keys, none = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
    return InputRows(keys, keys, keys, none.astype(np.int32), none, none, none.astype(bool))


def empty_table_rows() -> TableRows:
    """Returns no table rows, the neutral element of `concat_rows`."""
    keys, none = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
    return TableRows(keys, keys, keys, none.astype(np.int32), none.astype(np.uint64))


def diff_partition(rows: InputRows, table: TableRows) -> PartitionDiff:
    """Compares input and table over one partition of the ids.

    `rows` must be in the order of (unit, row): the first good row with an id wins. A document counts as being in the
    table only whole: with the input's content hash in all of its rows, and as many rows as it has chunks. It is the
    same where its rows have the input's metadata hash as well, and `metadata_only` where any has another.
    """
    codes, n = number_keys(np.concatenate([rows.keys, table.keys]))
    of_input, of_table = codes[: len(rows)], codes[len(rows) :]
    good = np.flatnonzero(rows.good)
    first = np.full(n, -1, np.int64)
    first[of_input[good[::-1]]] = good[::-1]
    leads = first[of_input[good]] == good
    chosen, repeated = good[leads], good[~leads]
    present = np.bincount(of_table, minlength=n)
    whole = find_complete(rows, table, first[of_table], of_table, present)
    known, done = present[of_input[chosen]] > 0, whole[of_input[chosen]]
    changed = _mark_codes(of_input[chosen[known & ~done]], n)
    updated = _mark_codes(of_table[~_metadata_agrees(rows, table, first[of_table])], n) & whole
    old, outdated = np.flatnonzero(changed[of_table]), np.flatnonzero(updated[of_table])
    seen = np.bincount(of_input, minlength=n) > 0
    winner = first[of_input[repeated]]
    return PartitionDiff(
        new=int((~known).sum()),
        changed=int((known & ~done).sum()),
        metadata_only=int(updated.sum()),
        done=locate_rows(rows, chosen[done]),
        duplicates=np.column_stack([locate_rows(rows, repeated), locate_rows(rows, winner), rows.position[winner]]),
        replaced=locate_rows(rows, first[of_table[old]]),
        addresses=table.address[old],
        updated=locate_rows(rows, first[of_table[outdated]]),
        update_addresses=table.address[outdated],
        gone=table.address[~seen[of_table]],
        gone_documents=int(((present > 0) & ~seen).sum()),
    )


def _mark_codes(codes: IntArray, n: int) -> npt.NDArray[np.bool_]:
    marked = np.zeros(n, bool)
    marked[codes] = True
    return marked


def locate_rows(rows: InputRows, which: IntArray) -> npt.NDArray[np.int64]:
    """Returns unit and row number of some input rows: (n, 2)."""
    return np.column_stack([rows.unit[which].astype(np.int64), rows.row[which]])


def _metadata_agrees(rows: InputRows, table: TableRows, first: IntArray) -> npt.NDArray[np.bool_]:
    """Returns whether each table row has the metadata hash of the input row `first`; True if there is none."""
    agrees = np.ones(len(table), bool)
    has = first >= 0
    agrees[has] = (table.metadata[has] == rows.metadata[first[has]]).all(axis=1)
    return agrees


def find_complete(
    rows: InputRows, table: TableRows, first: IntArray, of_table: IntArray, present: IntArray
) -> npt.NDArray[np.bool_]:
    """Finds the ids that the table has completely, with the content of their first input row (`first`)."""
    agrees = np.zeros(len(table), bool)
    has = first >= 0
    agrees[has] = (table.content[has] == rows.content[first[has]]).all(axis=1)
    agrees &= table.count == present[of_table]
    agreeing: IntArray = np.bincount(of_table[agrees], minlength=len(present))
    whole: npt.NDArray[np.bool_] = (present > 0) & (agreeing == present)
    return whole
