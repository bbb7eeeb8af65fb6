"""Input rows against table rows, as plain numpy: which are new, changed, done or repeated, and which table rows go.

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
    """Input rows that have an id, an array entry each. `good` is False where the row carries an error."""

    keys: Keys
    content: Keys
    unit: npt.NDArray[np.int32]
    row: IntArray
    position: IntArray
    good: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """Rows of the `documents` table. `count` is the number of chunks that the row's document should have."""

    keys: Keys
    content: Keys
    count: npt.NDArray[np.int32]
    address: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.address)


@dataclass(frozen=True, slots=True, eq=False)
class PartitionDiff:
    """What one partition found out. Rows are (unit, row number within the unit)."""

    new: int
    changed: int
    done: npt.NDArray[np.int64]
    """(n, 2): rows whose document is in the table as it is."""
    duplicates: npt.NDArray[np.int64]
    """(n, 5): unit, row, and of the first row with that id: unit, row, position in its file."""
    replaced: npt.NDArray[np.int64]
    """(n, 2): changed rows, parallel to `addresses`: the table rows that each replaces."""
    addresses: npt.NDArray[np.uint64]
    gone: npt.NDArray[np.uint64]
    """Addresses of table rows whose document is in no input row."""


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """At least one part."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)))


def gather_rows(rows: Rows, where: IntArray) -> Rows:
    return type(rows)(*(getattr(rows, f.name)[where] for f in fields(rows)))


def split_rows(rows: Rows, partitions: int) -> list[Rows]:
    """By key, into as many parts; the order within a part is kept."""
    parts = assign_partitions(rows.keys, partitions)
    order = np.argsort(parts, kind="stable")
    bounds = offsets_of(np.bincount(parts, minlength=partitions))
    return [gather_rows(rows, order[a:b]) for a, b in itertools.pairwise(bounds)]


def empty_input_rows() -> InputRows:
    keys, none = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
    return InputRows(keys, keys, none.astype(np.int32), none, none, none.astype(bool))


def empty_table_rows() -> TableRows:
    keys, none = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
    return TableRows(keys, keys, none.astype(np.int32), none.astype(np.uint64))


def diff_partition(rows: InputRows, table: TableRows) -> PartitionDiff:
    """The verdict over one partition; `rows` must be in the order of (unit, row): the first good row with an id wins.

    A document counts as being in the table only whole: with the input's content hash in all of its rows, and as many
    rows as it has chunks.
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
    stale = np.zeros(n, bool)
    stale[of_input[chosen[known & ~done]]] = True
    old = np.flatnonzero(stale[of_table])
    seen = np.bincount(of_input, minlength=n) > 0
    winner = first[of_input[repeated]]
    return PartitionDiff(
        new=int((~known).sum()),
        changed=int((known & ~done).sum()),
        done=locate_rows(rows, chosen[done]),
        duplicates=np.column_stack([locate_rows(rows, repeated), locate_rows(rows, winner), rows.position[winner]]),
        replaced=locate_rows(rows, first[of_table[old]]),
        addresses=table.address[old],
        gone=table.address[~seen[of_table]],
    )


def locate_rows(rows: InputRows, which: IntArray) -> npt.NDArray[np.int64]:
    return np.column_stack([rows.unit[which].astype(np.int64), rows.row[which]])


def find_complete(
    rows: InputRows, table: TableRows, first: IntArray, of_table: IntArray, present: IntArray
) -> npt.NDArray[np.bool_]:
    """For each id: is all of it in the table, with the content of its first input row (`first`, for each table row)?"""
    agrees = np.zeros(len(table), bool)
    has = first >= 0
    agrees[has] = (table.content[has] == rows.content[first[has]]).all(axis=1)
    agrees &= table.count == present[of_table]
    agreeing: IntArray = np.bincount(of_table[agrees], minlength=len(present))
    whole: npt.NDArray[np.bool_] = (present > 0) & (agreeing == present)
    return whole
