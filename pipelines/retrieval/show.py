"""Shows what an index stores of one document: its chunks, their spans, and its metadata. Loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.config import InvalidRequest
from pipelines.config.plain_json import plain_json
from pipelines.store.table import Snapshot, sql_in

CHUNK_COLUMNS = ("chunk_id", "chunk_index", "start", "end", "text")


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """Holds one document as it is stored; for a chunk's id, that chunk alone."""

    doc_id: str
    source: str | None
    metadata: dict[str, Any]
    chunks: Sequence[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "doc_id": self.doc_id,
            "source": self.source,
            "metadata": plain_json(self.metadata),
            "chunks": [dict(chunk) for chunk in self.chunks],
        }

    def __str__(self) -> str:
        values = (f"{name}: {value}" for name, value in self.metadata.items() if not isinstance(value, bytes))
        head = [self.doc_id, f"source: {self.source}", *values]
        body = [f"\n{c['chunk_id']}  characters {c['start']} to {c['end']}\n{c['text']}" for c in self.chunks]
        return "\n".join([*head, *body])


def read_document(snapshot: Snapshot, id: str) -> StoredDocument:
    """Reads a document by its id, or one chunk by the chunk's; InvalidRequest if the index holds neither."""
    for column in ("doc_id", "chunk_id"):
        rows = snapshot.matching(sql_in(column, [id]))
        if len(rows):
            break
    else:
        raise InvalidRequest(f"id: the index has no document or chunk {id!r}")
    columns = ["doc_id", "source", *CHUNK_COLUMNS, *snapshot.metadata_columns]
    found = sorted(snapshot.take(np.sort(rows), columns).to_pylist(), key=lambda row: row["chunk_index"])
    metadata = {name: found[0][name] for name in snapshot.metadata_columns}
    chunks = [{name: row[name] for name in CHUNK_COLUMNS} for row in found]
    return StoredDocument(found[0]["doc_id"], found[0]["source"], metadata, chunks)
