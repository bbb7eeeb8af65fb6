"""Wraps an index as a document store with single-document writes that are visible to searches at once.

All adapters share it. `Index` is a snapshot; `DocumentIndex` opens it again after each of its own writes (when the next
search needs it), adds a column for a metadata key that is new, and keeps the full-text index and the token counts young
enough. Writes take the index's lease, so a build beside it is safe; its documents are seen after
`refresh()`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.config import ConfigError
from pipelines.integrations import metadata as keys
from pipelines.retrieval.create import add_metadata_columns, create_index
from pipelines.retrieval.hits import Hits
from pipelines.retrieval.index import Index, open_index
from pipelines.search_indexes.document_frequencies import update_document_frequencies
from pipelines.search_indexes.full_text import update_full_text
from pipelines.store.schema import Target
from pipelines.store.table import sql_in

if TYPE_CHECKING:
    from actors.embedders.base import Embedder

WRITTEN_TOGETHER = 1000
"""Documents per commit."""


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """Holds one document: its whole text, and its metadata as it was given."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class DocumentIndex:
    """Reads and writes one index. Thread-safe."""

    def __init__(self, index: Index, **options: Any) -> None:
        """Wraps an opened index. options: those of `open_index`, for opening it again."""
        self._index: Index | None = index
        self._options = {"table": index.snapshot.table, "storage_options": index.snapshot.storage_options, **options}
        self._embedder: Embedder | str | None = options.pop("embedder", None)
        self._indexed_rows = len(index)
        self._lock = RLock()
        self.uri = index.snapshot.uri

    @classmethod
    def open(
        cls, uri: str | Path, *, create: bool = True, embedder: Mapping[str, Any] | None = None, **options: Any
    ) -> DocumentIndex:
        """Opens the index at `uri`, or creates an empty one if there is none.

        embedder: the keys of `embedders.0` in a job's config, for an index that is made. options: of `open_index`.
        create: False raises ConfigError for a missing index instead.
        """
        made = {name: options[name] for name in ("table", "storage_options") if name in options}
        try:
            return cls(open_index(uri, **options), **options)
        except ConfigError:
            if not create or not _is_absent(uri):
                raise
        create_index(uri, embedder=embedder, **made)
        return cls(open_index(uri, **options), **options)

    @property
    def index(self) -> Index:
        """Returns the index as of this object's last write."""
        with self._lock:
            if self._index is None:
                options = {**self._options, "embedder": self._embedder}
                self._index = open_index(self.uri, **options)
            return self._index

    @property
    def embedder(self) -> Embedder:
        """Returns the index's model, loaded once for all versions."""
        with self._lock:
            found = self.index.encoder.embedder
            if not isinstance(self._embedder, str):
                self._embedder = found
            return found

    def refresh(self) -> None:
        """Opens the newest version at the next use, to see what other programs wrote."""
        with self._lock:
            if self._index is not None and not isinstance(self._embedder, str):
                self._embedder = self._index.encoder.loaded
            self._index = None

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Returns the metadata columns with their types."""
        snapshot = self.index.snapshot
        return {name: snapshot.schema.field(name).type for name in snapshot.metadata_columns}

    @property
    def metadata_keys(self) -> dict[str, pa.DataType]:
        """Returns the metadata keys that filters can name, with their types."""
        return {keys.key_of(name): kind for name, kind in self.columns.items() if name != keys.REST}

    def search(self, query: str, k: int = 10, **options: Any) -> Hits:
        """Searches as `Index.search` does; an empty index has no hits."""
        index = self.index
        return index.search(query, k, **options) if len(index) else Hits(query, (), "hybrid", None, {})

    def upsert(self, documents: Sequence[StoredDocument]) -> int:
        """Writes documents; one whose id exists is replaced. Searches through this object see them at once.

        Raises ConfigError that names the document at fault.
        """
        with self._lock:
            wanted = keys.new_columns((document.metadata for document in documents), self.columns)
            if wanted:
                add_metadata_columns(self.index, [pa.field(name, kind) for name, kind in wanted.items()])
                self.refresh()
            types = self.columns
            for first in range(0, len(documents), WRITTEN_TOGETHER):
                rows = [
                    {**keys.to_columns(d.metadata, types), "doc_id": d.id, "text": d.text}
                    for d in documents[first : first + WRITTEN_TOGETHER]
                ]
                self.index.upsert(rows)
                self.refresh()
            self._update_search_indexes()
        return len(documents)

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents; returns how many existed. Unknown ids are no error."""
        with self._lock:
            found = self._existing(ids)
            if found:
                self.index.delete(found)
                self.refresh()
        return len(found)

    def _existing(self, ids: Sequence[str]) -> list[str]:
        found: set[str] = set()
        for part in _parts(ids):
            found.update(self._scan(["doc_id"], sql_in("doc_id", part))["doc_id"].to_pylist())
        return sorted(found)

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Returns those of the ids that the index contains."""
        return set(self._existing(ids))

    def get(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Returns documents by id, in the order of the ids; unknown ids are left out."""
        found = {d.id: d for part in _parts(ids) for d in self.documents(sql_in("doc_id", part))}
        return [found[i] for i in ids if i in found]

    def documents(self, where: str | None = None) -> Iterator[StoredDocument]:
        """Returns documents that meet a SQL condition over the columns (None: all), in table order."""
        names = [*self.columns]
        table = self._scan(["doc_id", "chunk_index", "start", "end", "text", *names], where)
        chunks: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            chunks.setdefault(row["doc_id"], []).append(row)
        for doc_id, rows in chunks.items():
            values = {name: rows[0][name] for name in names}
            yield StoredDocument(doc_id, join_chunks(rows), keys.from_columns(values))

    def count(self, where: str | None = None) -> int:
        """Counts documents that meet a SQL condition (None: all)."""
        condition = "chunk_index = 0" if where is None else f"chunk_index = 0 AND {where}"
        return int(self.index.snapshot.dataset.count_rows(filter=condition))

    def values(self, key: str, where: str | None = None) -> list[Any]:
        """Returns the values of a metadata key, one per document that has one."""
        names = [name for name in (keys.column_of(key), keys.REST) if name in self.columns]
        condition = "chunk_index = 0" if where is None else f"chunk_index = 0 AND {where}"
        rows = self._scan(names, condition).to_pylist() if names else []
        found = (keys.from_columns(row).get(key) for row in rows)
        return [value for value in found if value is not None]

    def dense_vectors(self, chunk_ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Returns the stored dense vectors of some chunks."""
        if "dense" not in self.index.column_cache.outputs:
            return {}
        column = self.index.column_cache.column("dense")
        table = self._scan(["chunk_id", column], sql_in("chunk_id", chunk_ids))
        vectors = [np.asarray(v, np.float32) for v in table[column].to_pylist()]
        return dict(zip(table["chunk_id"].to_pylist(), vectors, strict=True))

    def dense_query(self, query: str) -> npt.NDArray[np.float32]:
        """Encodes a query as a dense vector."""
        dense = self.embedder.embed_queries([query], ["dense"]).dense
        if dense is None:
            raise ConfigError(f"{self.uri}: its model has no dense output")
        return np.asarray(dense[0], np.float32)

    def _scan(self, columns: Sequence[str], where: str | None) -> pa.Table:
        scanner = self.index.snapshot.dataset.scanner(columns=list(columns), filter=where, scan_in_order=True)
        return scanner.to_table()

    def _update_search_indexes(self) -> None:
        """Updates full-text index and token counts once the index has doubled: amortised constant cost per document."""
        index = self.index
        has_text = "text" in index.snapshot.indexes()
        if not len(index) or (has_text and len(index) < 2 * self._indexed_rows):
            return
        snapshot = index.snapshot
        update_full_text(Target(snapshot.uri, snapshot.schema, snapshot.table, snapshot.storage_options))
        update_document_frequencies(snapshot.uri, snapshot.table, snapshot.storage_options)
        self._indexed_rows = len(index)
        self.refresh()


def join_chunks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Joins overlapping chunks into a document's text; characters that no chunk holds (between two) become blanks.

    >>> join_chunks([{"start": 0, "end": 5, "text": "ab cd"}, {"start": 3, "end": 8, "text": "cd ef"}])
    'ab cd ef'
    """
    text = ""
    for row in sorted(rows, key=lambda row: row["start"]):
        text += " " * (row["start"] - len(text)) + row["text"][max(0, len(text) - row["start"]) :]
    return text


def _is_absent(uri: str | Path) -> bool:
    """Returns whether nothing exists at a location: a folder with other files in it must not become an index."""
    if "://" in str(uri):
        return True
    folder = Path(uri)
    return not folder.exists() or not any(folder.iterdir())


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), WRITTEN_TOGETHER):
        yield ids[first : first + WRITTEN_TOGETHER]
