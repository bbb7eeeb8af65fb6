"""Evaluates a key's filter and a request's filter separately and intersects the rows (row-level security).

A request's condition that is evaluated over the whole table can be made to fail on one row only, and the message then
quotes it: `tenant = 'a' AND cast(note AS int) = 1` names a note of tenant b (Lance 13, DataFusion), and whether it
fails at all tells one bit of any row. For a key with a filter it is therefore evaluated over copies of that key's rows,
of the columns that it names. That costs reading these columns once per condition; masks are kept for the next page.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from threading import Lock
from uuid import uuid4

import lance
import numpy as np
import pyarrow as pa

from actors.outputs import IntArray
from pipelines.config import ConfigError
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.index import Index
from pipelines.serving.keys import Key
from pipelines.store.conditions import check_filter, evaluate_condition

KEPT_BYTES = 64 * 2**20
"""Masks (one byte per row) that a view keeps."""
POSITION = "__position"


class Filters:
    """Evaluates and caches the filters of one view. Thread-safe."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._kept: OrderedDict[tuple[str | None, str | None], Filter] = OrderedDict()
        self._lock = Lock()

    def find(self, key: Key, where: str | None) -> Filter | None:
        """Finds the rows that both the key's filter and a condition allow; None if that is every row."""
        if key.filter is None and where is None:
            return None
        wanted = (key.filter, where)
        with self._lock:
            if wanted in self._kept:
                self._kept.move_to_end(wanted)
                return self._kept[wanted]
        if where is not None:
            check_filter(where)
        made = self._evaluate(key, where)
        self._keep(wanted, made)
        return made

    def _evaluate(self, key: Key, where: str | None) -> Filter:
        if key.filter is None:
            assert where is not None
            return Filter(self.index.snapshot.matching_mask(where), self.index.snapshot.rows)
        own = self.owned(key)
        return self._mask(own if where is None else self._evaluate_within(own, where))

    def owned(self, key: Key) -> IntArray:
        """Returns the positions of the rows that a key's filter allows."""
        assert key.filter is not None
        try:
            return self.index.snapshot.matching(key.filter)
        except ConfigError as error:  # an invalid key file, not an invalid request
            raise OSError(f"the filter of key {key.name!r} does not fit {self.index.snapshot.uri}: {error}") from error

    def _evaluate_within(self, rows: IntArray, where: str) -> IntArray:
        """Evaluates a condition over the given rows only; no other row's values are read."""
        snapshot = self.index.snapshot
        words = {word.lower() for word in re.findall(r"\w+", where)}
        columns = [n for n in ("doc_id", "chunk_id", *snapshot.metadata_columns, "text") if n.lower() in words]
        table = snapshot.take(rows, columns or ["chunk_index"]).append_column(POSITION, pa.array(rows, pa.int64()))
        matching: IntArray = matching_rows(table, where)[POSITION].to_numpy()
        return matching

    def _mask(self, positions: IntArray) -> Filter:
        allowed = np.zeros(len(self.index), bool)
        allowed[positions] = True
        return Filter(allowed, self.index.snapshot.rows)

    def _keep(self, wanted: tuple[str | None, str | None], made: Filter) -> None:
        with self._lock:
            self._kept[wanted] = made
            while len(self._kept) > max(1, KEPT_BYTES // max(1, len(self.index))):
                self._kept.popitem(last=False)


def matching_rows(table: pa.Table, where: str) -> pa.Table:
    """Evaluates a SQL condition with Lance over an in-memory table; InvalidRequest names the fault."""
    if not table.num_rows:
        table = pa.table({f.name: pa.nulls(1, f.type) for f in table.schema})  # validates it on a null row
        return _matching(table, where).slice(0, 0)
    return _matching(table, where)


def _matching(table: pa.Table, where: str) -> pa.Table:
    dataset = lance.write_dataset(table, f"memory://filter-{uuid4().hex}")
    columns = [name for name in table.column_names if name != POSITION]
    found: pa.Table = evaluate_condition(
        where, columns, lambda condition: dataset.scanner(filter=condition, scan_in_order=True).to_table()
    )
    return found
