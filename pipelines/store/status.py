"""Reads the state of an index from its tables alone: no Ray, no model, nothing of the job that built it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lance

from pipelines.store import lease
from pipelines.store.commit import read_properties
from pipelines.store.datasets import open_dataset
from pipelines.store.quarantine import count_reasons
from pipelines.store.schema import QUARANTINE, table_uri
from pipelines.store.skipped import Skipped, read_skipped, skipped_lines
from pipelines.store.table import Snapshot, open_table
from pipelines.store.writer import describe_place


@dataclass(frozen=True, slots=True)
class Coverage:
    """Reports how many rows a search index of Lance covers, and how many are scanned instead."""

    name: str
    column: str
    kind: str
    indexed_rows: int
    unindexed_rows: int


@dataclass(frozen=True, slots=True)
class Status:
    """Reports facts about an index. Rows are chunks; `deleted_rows` still take space until `optimize`."""

    uri: str
    rows: int
    documents: int
    fragments: int
    deleted_rows: int
    bytes: int
    version: int
    versions: int
    last_commit: str
    last_job: str | None
    embedders: dict[str, dict[str, Any]]
    promoted: str | None
    """The embedder that a search takes if it names none."""
    chunk: dict[str, Any]
    indexes: tuple[Coverage, ...]
    quarantine: int
    quarantine_reasons: tuple[dict[str, Any], ...]
    skipped: tuple[Skipped, ...]
    """Files and values that the last job left out."""
    writer: str | None
    """Who holds the lease, or held it when it died; None if no driver is at work."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [
            f"index       {self.uri}: {self.documents:,} documents in {self.rows:,} rows, {self.bytes / 1e6:,.1f} MB",
            *(
                f"embedder    {name}: {e['model']} ({', '.join(e['outputs'])}; colbert {e['colbert']})"
                + (", promoted" if len(self.embedders) > 1 and name == self.promoted else "")
                for name, e in self.embedders.items()
            ),
            f"fragments   {self.fragments:,}, with {self.deleted_rows:,} deleted rows",
            f"versions    {self.versions:,}, the last one {self.version} of {self.last_commit}, job {self.last_job}",
            *(
                f"index on    {i.column}: {i.kind}, {i.indexed_rows:,} rows, {i.unindexed_rows:,} not covered yet"
                for i in self.indexes
            ),
            f"quarantine  {self.quarantine:,} rows",
            *(
                f"            {r['rows']:,} x {r['error']} ({describe_place(r['source'], r['position'])})"
                for r in self.quarantine_reasons
            ),
            *skipped_lines(self.skipped),
            f"writer      {self.writer or 'none'}",
        ]
        return "\n".join(lines)


def read_status(uri: str, table: str = "documents", storage_options: Mapping[str, str] | None = None) -> Status:
    """Reads the facts; ConfigError if there is no index."""
    options = dict(storage_options or {})
    snapshot = open_table(uri, table, options)
    dataset = snapshot.dataset
    fragments, held = dataset.get_fragments(), lease.read_holder(uri, table, options)
    return Status(
        uri=uri,
        rows=dataset.count_rows(),
        documents=dataset.count_rows(filter="chunk_index = 0"),
        fragments=len(fragments),
        deleted_rows=sum(f.num_deletions for f in fragments),
        bytes=sum(file.file_size_bytes or 0 for f in fragments for file in f.metadata.files),
        version=dataset.version,
        versions=len(dataset.version_refs()),
        last_commit=dataset.versions()[-1]["timestamp"].isoformat(timespec="seconds"),
        last_job=_last_job(dataset) or (held.job if held else None),
        embedders={name: dict(e) for name, e in snapshot.identity.embedders.items()},
        promoted=snapshot.promoted,
        chunk=dict(snapshot.identity.chunk),
        indexes=tuple(_read_coverage(snapshot)),
        quarantine=_count_rows(table_uri(uri, QUARANTINE), options),
        quarantine_reasons=tuple(count_reasons(uri, options)),
        skipped=read_skipped(uri, options),
        writer=None if held is None or held.released else str(held),
    )


def _last_job(dataset: lance.LanceDataset) -> str | None:
    """Returns the job of the newest commit that names one, among the last ten."""
    versions = range(dataset.version, max(0, dataset.version - 10), -1)
    return next((job for version in versions if (job := read_properties(dataset, version).get("job"))), None)


def _read_coverage(snapshot: Snapshot) -> list[Coverage]:
    found = []
    for column, index in snapshot.indexes().items():
        stats = snapshot.index_statistics(index.name)
        rows, missing = stats["num_indexed_rows"], stats["num_unindexed_rows"]
        found.append(Coverage(index.name, column, index.index_type, rows, missing))
    return found


def _count_rows(uri: str, options: Mapping[str, str]) -> int:
    dataset = open_dataset(uri, options)
    return 0 if dataset is None else int(dataset.count_rows())
