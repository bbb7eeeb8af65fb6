"""Upserts and deletes documents for a key within its row filter: one commit per request under the index's lease.

A tenant's key writes rows that meet its own filter, and replaces or deletes documents of its own alone. An id that is
another tenant's is refused: it is the one thing that a tenant learns of another, as ids are the table's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import lance
import pyarrow as pa

from pipelines.config import ConfigError, InvalidRequest
from pipelines.retrieval.index import Index
from pipelines.retrieval.upsert import delete, upsert
from pipelines.serving.catalog import Catalog, View
from pipelines.serving.errors import ApiError
from pipelines.serving.filters import matching_rows
from pipelines.serving.keys import Key
from pipelines.store.documents import Check, find_rows
from pipelines.store.lease import LeaseHeld

BUSY = "another writer is at work on this index; try again"


class Writer:
    """Writes to the served indexes, one request at a time (blocking: it runs on a thread)."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._lock = Lock()

    def upsert(self, view: View, key: Key, documents: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Embeds and writes documents; returns their number and the version that contains them."""
        rows = typed_rows(view.index, documents)
        with self._lock:
            self._check_new(view, key, rows)
            check = owner_check(view, key, [row["doc_id"] for row in rows])
            return self._write(view, lambda: upsert(view.index, rows, check))

    def delete(self, view: View, key: Key, ids: Sequence[str]) -> tuple[int, int]:
        """Deletes documents with all their chunks; returns the number of deleted rows and the new version."""
        with self._lock:
            check = owner_check(view, key, ids)
            return self._write(view, lambda: delete(view.index, ids, check))

    def _write(self, view: View, write: Any) -> tuple[int, int]:
        try:
            count = int(write())
        except LeaseHeld as error:
            raise ApiError(409, BUSY, headers={"Retry-After": "5"}) from error
        except InvalidRequest:
            raise
        except ConfigError as error:  # `upsert: row 3: ...`
            raise ApiError(400, str(error), "documents") from error
        served = self.catalog.served(view)
        self.catalog.refresh_one(served)
        return count, served.version

    def _check_new(self, view: View, key: Key, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuses with 403 a document that the key's filter would exclude once it is written."""
        if key.filter is None:
            return
        snapshot = view.index.snapshot
        names = ["doc_id", "text", *snapshot.metadata_columns]
        columns = {n: pa.array([row.get(n) for row in rows], snapshot.schema.field(n).type) for n in names}
        seen = set(matching_rows(pa.table(columns), key.filter)["doc_id"].to_pylist())
        outside = next((i for i, row in enumerate(rows) if row["doc_id"] not in seen), None)
        if outside is not None:
            raise ApiError(403, f"documents.{outside}: this key may not write it", f"documents.{outside}")


def owner_check(view: View, key: Key, ids: Sequence[str]) -> Check | None:
    """Builds a check for the lease's holder: 403 for an existing id that the key's filter excludes."""
    if key.filter is None:
        return None
    where, columns = key.filter, ["doc_id", "chunk_id", *view.index.snapshot.metadata_columns, "text"]

    def check(dataset: lance.LanceDataset) -> None:
        there = find_rows(dataset, ids, columns).select(columns)
        own = matching_rows(there, where)
        if own.num_rows < there.num_rows:
            foreign = sorted(set(there["doc_id"].to_pylist()) - set(own["doc_id"].to_pylist()))
            raise ApiError(403, f"this key may not write document {(foreign or list(ids))[0]!r}")

    return check


def typed_rows(index: Index, documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Converts documents to the table's types (a date may be a text); 400 names the field that does not fit."""
    rows = [dict(document) for document in documents]
    for name in index.snapshot.metadata_columns:
        kind = index.snapshot.schema.field(name).type
        for i, row in enumerate(rows):
            if row.get(name) is not None:
                row[name] = _to_type(row[name], kind, f"documents.{i}.{name}")
    return rows


def _to_type(value: Any, kind: pa.DataType, field: str) -> Any:
    for first in (kind, None):  # with the column's type, or with Arrow's inferred type and a cast
        try:
            return pa.array([value], first).cast(kind)[0].as_py()
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            continue
    raise ApiError(400, f"{field}: does not fit a column of type {kind}", field)
