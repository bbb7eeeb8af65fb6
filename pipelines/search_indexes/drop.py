"""Drops an embedder from an index (`tridex drop`): columns, vector index, postings and document frequencies.

Searches go on meanwhile: an index that is open keeps the version that it opened, with all of its files, for
`keep_versions`; only then do the bytes come back, by this call or the next `tridex optimize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import lance

from pipelines.search_indexes.document_frequencies import GENERATION_KEY, ROWS_KEY, document_frequencies_table
from pipelines.search_indexes.postings import PREFIX, SegmentInfo, table_names
from pipelines.store.documents import hold_lease, target_of
from pipelines.store.drop import drop_columns, reclaim_dropped_columns, refuse_drop
from pipelines.store.event_positions import keep_event_positions
from pipelines.store.maintain import KEEP_VERSIONS, ORPHAN_AGE, count_old_bytes, now_of_the_store, remove_old_files
from pipelines.store.schema import Identity, generation, table_uri
from pipelines.store.table import Snapshot, open_table


@dataclass(frozen=True, slots=True)
class Dropped:
    """Reports a drop. bytes: what the columns took; bytes_kept: of old versions, which an open index may still read."""

    uri: str
    name: str
    bytes: int
    bytes_freed: int
    bytes_kept: int
    fragments_rewritten: int
    tables_removed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        kept = (
            f"; {self.bytes_kept / 1e6:,.1f} MB are kept for searches on older versions, `tridex optimize` frees them "
            "later"
        )
        return (
            f"{self.uri}: {self.name} is dropped, its columns took {self.bytes / 1e6:,.1f} MB; "
            f"{self.fragments_rewritten:,} fragments rewritten, {self.tables_removed:,} tables of its search indexes "
            f"removed, {self.bytes_freed / 1e6:,.1f} MB freed{kept if self.bytes_kept else ''}"
        )


def drop_embedder(
    uri: str,
    name: str,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    *,
    keep_versions: timedelta = KEEP_VERSIONS,
) -> Dropped:
    """Drops an embedder. ConfigError for one that is unknown, promoted or the only one, or while a job writes."""
    options = dict(storage_options or {})
    target = target_of(open_table(uri, table, options), "drop")
    with hold_lease(target) as lease:
        snapshot = open_table(uri, table, options)
        refuse_drop(snapshot, name)
        size = drop_columns(target, lease, snapshot, name)
        rewritten = reclaim_dropped_columns(target, lease)
        keep_event_positions(target, lease)
        dataset = open_table(uri, table, options).dataset
        removed = remove_old_files(dataset, keep_versions, ORPHAN_AGE, now_of_the_store(uri, options))
        kept = count_old_bytes(dataset)
        tables = remove_dropped_tables(open_table(uri, table, options))
    return Dropped(uri, name, size, removed["bytes_freed"], kept, rewritten, tables)


def remove_dropped_tables(snapshot: Snapshot) -> int:
    """Removes postings and counts of embedders that neither the newest nor the oldest kept version has."""
    dataset = snapshot.dataset
    options = dict(snapshot.storage_options) or None
    oldest = lance.dataset(dataset.uri, version=dataset.versions()[0]["version"], storage_options=options)
    used = {
        (name, generation(metadata, name))
        for metadata in (snapshot.schema.metadata, oldest.schema.metadata)
        for name in _embedders(metadata)
    }
    gone = [table for table in table_names(snapshot) if (made := _made_for(snapshot, table)) and made not in used]
    if gone:
        import lancedb

        database = lancedb.connect(snapshot.uri, storage_options=options)
        for table in gone:
            database.drop_table(table)
    return len(gone)


def _embedders(metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    identity = Identity.from_metadata(metadata)
    return () if identity is None else tuple(identity.embedders)


def _made_for(snapshot: Snapshot, table: str) -> tuple[str, int] | None:
    """Returns the embedder's name and generation that a side table was made for; None for any other table."""
    counts, postings = document_frequencies_table(""), PREFIX
    if not table.startswith((counts, postings)):
        return None
    uri, options = table_uri(snapshot.uri, table), dict(snapshot.storage_options) or None
    metadata = lance.dataset(uri, storage_options=options).schema.metadata or {}
    if table.startswith(counts) and ROWS_KEY in metadata:
        return table.removeprefix(counts), int(metadata.get(GENERATION_KEY, 0))
    info = SegmentInfo.from_metadata(table, metadata)
    return None if info is None else (info.name, info.generation)
