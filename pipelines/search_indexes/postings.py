"""Maintains the sparse inverted index: tables `postings_NAME_*`, one per segment, each over fragments of the documents.

A segment is one atomic write and is never changed. New fragments get a new segment; when segments grow many, one is
written over all of them; a segment of which a fragment has vanished (compaction) is void. What no valid segment covers
is scored from the forward column, so that a search is complete at any moment and the index is a matter of speed alone.
Postings name physical rows of fragments: deletions need no rewriting, a deleted row is dropped when it is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import lance
import numpy as np
import pyarrow as pa

from actors.outputs import IntArray, SparseVectors, offsets_of
from pipelines.search_indexes.posting_blocks import BLOCK_SCHEMA, Blocks
from pipelines.store.schema import generation, table_uri
from pipelines.store.table import Snapshot, open_table

PREFIX = "postings_"
SEGMENT_KEY = b"tridex.segment"
SEGMENT_ROWS = 2**20
"""Rows of one segment: building one takes some 40 bytes a posting of memory, 5 GB at 128 tokens a row."""
MAX_SEGMENTS = 8
KEEP_VOID = timedelta(hours=1)
"""Void segments are dropped only after this time, for the sake of searches on an older version."""


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """Describes a segment in its table's metadata. fragments: (id, physical rows) in the order of row numbers."""

    table: str
    name: str
    fragments: tuple[tuple[int, int], ...]
    postings: int
    created: str
    generation: int = 0
    """Of the embedder's name (`store.schema.generation`): postings of a dropped embedder never serve another."""

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.fragments)

    def to_metadata(self) -> dict[bytes, bytes]:
        tree = {"name": self.name, "fragments": self.fragments, "postings": self.postings, "created": self.created}
        return {SEGMENT_KEY: json.dumps(tree | {"generation": self.generation}).encode()}

    @classmethod
    def from_metadata(cls, table: str, metadata: Mapping[bytes, bytes] | None) -> SegmentInfo | None:
        text = (metadata or {}).get(SEGMENT_KEY)
        if text is None:
            return None
        tree = json.loads(text)
        fragments = tuple((f, n) for f, n in tree["fragments"])
        return cls(table, tree["name"], fragments, tree["postings"], tree["created"], tree.get("generation", 0))

    def is_valid(self, snapshot: Snapshot) -> bool:
        if self.generation != generation(snapshot.schema.metadata, self.name):
            return False
        present = {f.fragment_id: f.physical_rows for f in snapshot.dataset.get_fragments()}
        return all(present.get(fragment) == rows for fragment, rows in self.fragments)


def prefix(name: str) -> str:
    return f"{PREFIX}{name}_"


def _options(snapshot: Snapshot) -> dict[str, str] | None:
    return dict(snapshot.storage_options) or None


def sparse_embedders(snapshot: Snapshot) -> list[str]:
    """Lists the embedders that have a sparse output, and so postings."""
    return [name for name, embedder in snapshot.identity.embedders.items() if "sparse" in embedder["outputs"]]


def open_side_table(snapshot: Snapshot, table: str) -> lance.LanceDataset:
    """Opens the newest version of another table of the index, such as a segment of postings."""
    return lance.dataset(table_uri(snapshot.uri, table), storage_options=_options(snapshot))


def find_segments(snapshot: Snapshot, name: str) -> list[tuple[SegmentInfo, Any]]:
    """Lists all segments of an embedder, void ones included, with their datasets."""
    found = []
    for table in table_names(snapshot):
        if table.startswith(prefix(name)):
            dataset = open_side_table(snapshot, table)
            info = SegmentInfo.from_metadata(table, dataset.schema.metadata)
            if info is not None and info.name == name:
                found.append((info, dataset))
    return found


def table_names(snapshot: Snapshot) -> Iterator[str]:
    """Lists the tables of the database; a local one by its folders, since importing LanceDB takes a second."""
    if "://" not in snapshot.uri:
        yield from (folder.stem for folder in Path(snapshot.uri).glob("*.lance"))
        return
    import lancedb

    database, page = lancedb.connect(snapshot.uri, storage_options=_options(snapshot)), None
    while True:
        listed = database.list_tables(page_token=page)
        yield from listed.tables
        page = listed.page_token
        if not page:
            return


def valid_segments(snapshot: Snapshot, name: str) -> list[tuple[SegmentInfo, Any]]:
    """Lists the segments to search: valid, not overlapping, large ones first."""
    chosen: list[tuple[SegmentInfo, Any]] = []
    covered: set[int] = set()
    for info, dataset in sorted(find_segments(snapshot, name), key=lambda found: (-found[0].rows, found[0].table)):
        fragments = {fragment for fragment, _ in info.fragments}
        if not fragments & covered and info.is_valid(snapshot):
            chosen.append((info, dataset))
            covered |= fragments
    return chosen


def uncovered_fragments(snapshot: Snapshot, segments: Sequence[SegmentInfo]) -> list[Any]:
    """Lists the fragments of the documents table that no segment covers."""
    covered = {fragment for info in segments for fragment, _ in info.fragments}
    return [f for f in snapshot.dataset.get_fragments() if f.fragment_id not in covered]


@dataclass(frozen=True, slots=True)
class PostingsUpdate:
    """Reports what `update_postings` did for one embedder."""

    segments: int
    segments_written: int
    segments_dropped: int
    postings: int


def update_postings(
    uri: str, table: str = "documents", storage_options: Mapping[str, str] | None = None
) -> dict[str, PostingsUpdate]:
    """Covers every fragment of every embedder that has a sparse output; run it after `maintain.optimize`."""
    snapshot = open_table(uri, table, storage_options)
    return {name: _update_embedder(snapshot, name) for name in sorted(sparse_embedders(snapshot))}


def _update_embedder(snapshot: Snapshot, name: str) -> PostingsUpdate:
    valid = [info for info, _ in valid_segments(snapshot, name)]
    missing = uncovered_fragments(snapshot, valid)
    small = [info for info in valid if info.rows < SEGMENT_ROWS // 2]
    if missing and len(small) + 1 > MAX_SEGMENTS:
        merged = {fragment for info in small for fragment, _ in info.fragments}
        missing += [f for f in snapshot.dataset.get_fragments() if f.fragment_id in merged]
        valid = [info for info in valid if info not in small]
    written = [_write_segment(snapshot, name, group) for group in _group_fragments(missing)]
    kept = [*valid, *written]
    return PostingsUpdate(len(kept), len(written), _drop_void(snapshot, name, kept), sum(i.postings for i in kept))


def _group_fragments(fragments: Sequence[Any]) -> Iterator[list[Any]]:
    """Groups consecutive fragments of at most SEGMENT_ROWS rows together; a larger fragment stays alone."""
    group: list[Any] = []
    for fragment in fragments:
        if group and sum(f.physical_rows for f in group) + fragment.physical_rows > SEGMENT_ROWS:
            yield group
            group = []
        group.append(fragment)
    if group:
        yield group


def _write_segment(snapshot: Snapshot, name: str, fragments: Sequence[Any]) -> SegmentInfo:
    blocks = Blocks.of(read_fragments(snapshot, name, fragments))
    info = SegmentInfo(
        prefix(name) + uuid4().hex[:12],
        name,
        tuple((f.fragment_id, f.physical_rows) for f in fragments),
        len(blocks.weights),
        datetime.now(timezone.utc).isoformat(),
        generation(snapshot.schema.metadata, name),
    )
    schema = BLOCK_SCHEMA.with_metadata(info.to_metadata())
    reader = pa.RecordBatchReader.from_batches(
        schema, (b.replace_schema_metadata(schema.metadata) for b in blocks.to_arrow())
    )
    lance.write_dataset(
        reader, table_uri(snapshot.uri, info.table), schema=schema, mode="create", storage_options=_options(snapshot)
    )
    return info


def read_fragments(snapshot: Snapshot, name: str, fragments: Sequence[Any]) -> SparseVectors:
    """Reads the sparse rows of the fragments by physical row; deleted rows are empty."""
    first = dict(
        zip((f.fragment_id for f in fragments), np.cumsum([0, *(f.physical_rows for f in fragments)]), strict=False)
    )
    total = sum(f.physical_rows for f in fragments)
    lengths, token_ids, weights = np.zeros(total, np.int64), [np.zeros(0, np.uint32)], [np.zeros(0, np.float32)]
    scan = snapshot.dataset.scanner(
        columns=[f"{name}_sparse", "_rowaddr"], fragments=list(fragments), scan_in_order=True
    )
    for batch in scan.to_batches():
        rows = SparseVectors.from_arrow(batch.column(0))
        lengths[physical_rows(batch.column(1).to_numpy(), first)] = np.diff(rows.offsets)
        token_ids.append(rows.token_ids)
        weights.append(rows.weights)
    return SparseVectors(offsets_of(lengths), np.concatenate(token_ids), np.concatenate(weights))


def physical_rows(addresses: Any, first: Mapping[int, int]) -> IntArray:
    """Converts row addresses to row numbers of a segment; `first` holds the first row of each fragment."""
    owners = (addresses >> np.uint64(32)).astype(np.int64)
    rows: IntArray = (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64)
    for owner in np.unique(owners):
        rows[owners == owner] += first[int(owner)]
    return rows


def _drop_void(snapshot: Snapshot, name: str, kept: Sequence[SegmentInfo]) -> int:
    """Drops segments that are not in use and were written more than KEEP_VOID ago."""
    tables = {info.table for info in kept}
    limit = datetime.now(timezone.utc) - KEEP_VOID
    old = [
        info.table
        for info, _ in find_segments(snapshot, name)
        if info.table not in tables and datetime.fromisoformat(info.created) < limit
    ]
    import lancedb

    database = lancedb.connect(snapshot.uri, storage_options=_options(snapshot))
    for table in old:
        database.drop_table(table)
    return len(old)
