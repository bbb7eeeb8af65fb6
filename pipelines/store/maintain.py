"""Compacts small fragments, drops old versions, and removes unreferenced files (`tridex optimize`).

All of it runs under the index's lease, so no job of ours is writing. A program that writes to the table by other means
holds no lease: files younger than `orphan_age` are left alone for its sake, and as Lance removes unreferenced files all
or none, one young file postpones the removal of all. Compaction moves rows: postings and other things that point at row
addresses are void for the fragments it joined and have to be built again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.store import lease
from pipelines.store.commit import commit_fence
from pipelines.store.datasets import open_dataset
from pipelines.store.documents import target_of
from pipelines.store.drop import reclaim_dropped_columns
from pipelines.store.event_positions import keep_event_positions
from pipelines.store.schema import LEASES, QUARANTINE, table_uri
from pipelines.store.table import open_table

FRAGMENT_BYTES = 2**30
"""Aim of a compaction: large enough that 100 million documents are some hundred files, small enough to rewrite one."""
KEEP_VERSIONS = timedelta(hours=1)
"""A version is kept so long after a newer one replaced it: an open index reads the version that it opened."""
ORPHAN_AGE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Optimized:
    """Reports what `optimize` did. `orphans_kept`: unreferenced files kept because one of them is too young."""

    fragments_before: int
    fragments_after: int
    bytes_freed: int
    versions_removed: int
    orphans_removed: int
    orphans_kept: int
    bytes_kept: int = 0
    """Bytes of files that only old versions need, which an open index may still read."""
    fragments_rewritten: int = 0
    """Fragments whose files held dropped columns."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        text = (
            f"{self.fragments_before:,} fragments became {self.fragments_after:,}; {self.versions_removed:,} old "
            f"versions and {self.orphans_removed:,} orphaned files removed, {self.bytes_freed / 1e6:,.1f} MB in all"
        )
        young = f"; {self.orphans_kept:,} unreferenced files are too young to remove" if self.orphans_kept else ""
        kept = f"; {self.bytes_kept / 1e6:,.1f} MB are kept for searches on older versions" if self.bytes_kept else ""
        return text + young + kept


def find_orphans(dataset: lance.LanceDataset) -> pa.Table:
    """Lists `path, last_modified` of data, deletion and index files that no version refers to."""
    present = dataset.all_files().read_all().select(["path", "last_modified"])
    known = dataset.tracked_files().read_all().column("path")
    ours = pc.match_substring_regex(present.column("path"), "^(data|_deletions)/")
    return present.filter(pc.and_(ours, pc.invert(pc.is_in(present.column("path"), value_set=known.combine_chunks()))))


def now_of_the_store(uri: str, options: Mapping[str, str]) -> datetime:
    """Returns the store's own clock, the write time of the lease just acquired: all ages use this one clock."""
    files = lance.dataset(table_uri(uri, LEASES), storage_options=dict(options)).all_files().read_all()
    newest: datetime = pc.max(files.column("last_modified")).as_py()
    return newest


def target_rows(dataset: lance.LanceDataset, fragment_bytes: int = FRAGMENT_BYTES) -> int:
    """Returns the rows of a fragment of about that many bytes, from 1,024 to Lance's own 1,048,576."""
    files = [f for fragment in dataset.get_fragments() for f in fragment.metadata.files]
    size = sum(f.file_size_bytes or 0 for f in files)
    rows = max(1, dataset.count_rows())
    return int(min(max(1024, fragment_bytes * rows // max(1, size)), 2**20))


def optimize(
    uri: str,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    *,
    keep_versions: timedelta = KEEP_VERSIONS,
    orphan_age: timedelta = ORPHAN_AGE,
    lease_seconds: float = 60,
) -> Optimized:
    """Compacts the table and removes old files. LeaseHeld (a ConfigError) while a job writes to the index."""
    options = dict(storage_options or {})
    snapshot = open_table(uri, table, options)
    with lease.acquire(uri, table, "optimize", lease_seconds=lease_seconds, storage_options=options) as held:
        target = target_of(snapshot, "optimize")
        if held.took_over:
            commit_fence(target, held)
        keep_event_positions(target, held)
        rewritten = reclaim_dropped_columns(target, held)
        dataset = lance.dataset(table_uri(uri, table), storage_options=options)
        before = len(dataset.get_fragments())
        dataset.optimize.compact_files(target_rows_per_fragment=target_rows(dataset))
        dataset.optimize.optimize_indices()
        now = now_of_the_store(uri, options)
        removed = remove_old_files(dataset, keep_versions, orphan_age, now)
        quarantine = open_dataset(table_uri(uri, QUARANTINE), options)
        if quarantine is not None:
            quarantine.optimize.compact_files()
            remove_old_files(quarantine, keep_versions, orphan_age, now)
        kept = count_old_bytes(dataset)
        fragments = len(dataset.get_fragments())
        return Optimized(before, fragments, **removed, bytes_kept=kept, fragments_rewritten=rewritten)


def count_old_bytes(dataset: lance.LanceDataset) -> int:
    """Sums the bytes of data files that some older version refers to and the newest does not."""
    files = dataset.all_files().read_all()
    used = {f"data/{f.path}" for fragment in dataset.get_fragments() for f in fragment.metadata.files}
    known = set(dataset.tracked_files().read_all().column("path").to_pylist())
    named = zip(files.column("path").to_pylist(), files.column("size_bytes").to_pylist(), strict=True)
    return sum(size or 0 for path, size in named if path.startswith("data/") and path in known and path not in used)


def count_versions_in_use(dataset: lance.LanceDataset, keep: timedelta) -> int:
    """Counts the newest versions that an index opened within `keep` may have: those replaced no longer ago, and one."""
    limit = datetime.now() - keep  # naive local time, as Lance reports a version's
    replaced = [version["timestamp"] for version in dataset.versions()][1:]
    return 1 + sum(1 for moment in replaced if moment > limit)


def remove_old_files(
    dataset: lance.LanceDataset, keep: timedelta, orphan_age: timedelta, now: datetime
) -> dict[str, int]:
    """Removes versions that were replaced more than `keep` ago, and unreferenced files if all are old enough."""
    found = find_orphans(dataset)
    ages = [now - modified for modified in found.column("last_modified").to_pylist()]
    removable = all(age >= orphan_age for age in ages)
    stats = dataset.cleanup_old_versions(
        timedelta(0),
        count_versions_in_use(dataset, keep),
        delete_unverified=removable,
        error_if_tagged_old_versions=False,
    )
    return {
        "bytes_freed": stats.bytes_removed,
        "versions_removed": stats.old_versions,
        "orphans_removed": len(ages) if removable else 0,
        "orphans_kept": 0 if removable else len(ages),
    }
