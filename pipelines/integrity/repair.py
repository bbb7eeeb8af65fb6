"""Repairs an index (`tridex check --repair`): makes again what is made of the table, and removes exact copies of rows.

What only a build can make again, the rows of files that are gone, is removed if the caller says so: the rest of their
documents too, so that the next build misses them and embeds them. Rows and damaged indexes change under the index's
lease, each change in one commit, and a repair that was killed is completed by the same command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import ConfigError
from pipelines.integrity.check import CheckReport, check_index
from pipelines.integrity.search_indexes import find_damaged_frequencies, find_damaged_indexes, find_damaged_postings
from pipelines.integrity.subject import Subject, examine, first_line, read_failure
from pipelines.integrity.table import find_broken_documents
from pipelines.monitor.memory import last_config
from pipelines.search_indexes.document_frequencies import update_document_frequencies
from pipelines.search_indexes.document_ids import COLUMN as DOC_ID
from pipelines.search_indexes.document_ids import NAME as DOC_ID_INDEX
from pipelines.search_indexes.postings import update_postings
from pipelines.search_indexes.scalar_indexes import update_scalar_indexes
from pipelines.search_indexes.vectors import update_vector_indexes
from pipelines.store.commit import Committer, commit_once
from pipelines.store.documents import hold_lease, target_of
from pipelines.store.lease import Lease
from pipelines.store.maintain import find_orphans, now_of_the_store, remove_old_files
from pipelines.store.schema import Target
from pipelines.store.table import Snapshot, open_table

TEXT = "text"
KEEP_ALL = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Repair:
    """Reports what was done, what is left to another command, and a check of the result."""

    uri: str
    done: tuple[str, ...]
    left: tuple[str, ...]
    check: CheckReport

    def to_dict(self) -> dict[str, Any]:
        return {"uri": self.uri, "done": self.done, "left": self.left, "check": self.check.to_dict()}

    def text(self) -> str:
        lines = [f"repaired {line}" for line in self.done] or ["nothing was repaired"]
        return "\n".join([*lines, *(f"left     {line}" for line in self.left), self.check.text()])


def repair_index(
    uri: str,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    *,
    remove_lost: bool = False,
    remove_orphans: bool = False,
) -> Repair:
    """Repairs what can be made again. ConfigError while a job writes, or for an index that cannot be opened.

    remove_lost: also remove rows whose files are gone, and all of the documents that are not whole. remove_orphans:
    also remove files that nothing refers to, however young; a program that writes without the lease would lose its own.
    """
    target = target_of(open_table(uri, table, storage_options), "repair")
    done: list[str] = []
    with hold_lease(target) as lease:
        _repair_rows(target, lease, remove_lost, done)
        dropped = _drop_damaged_indexes(target, done)
        _drop_damaged_tables(target, done)
        if remove_orphans:
            _remove_orphans(target, done)
        left = _rebuild(target, dropped, done)
    return Repair(uri, tuple(done), left, check_index(uri, table, storage_options))


def _open(target: Target) -> Snapshot:
    return open_table(target.uri, target.table, target.storage_options)


def _examine(target: Target) -> Subject:
    """Examines the newest version; reads each fragment by itself if one cannot be read though its files are there."""
    subject = examine(_open(target))
    names = subject.snapshot.schema.names
    return subject if read_failure(lambda: subject.scan(names)) is None else examine(subject.snapshot, read=True)


def _repair_rows(target: Target, lease: Lease, remove_lost: bool, done: list[str]) -> None:
    """Removes exact copies of rows; with the caller's word, lost fragments and documents that are not whole."""
    subject = _examine(target)
    if remove_lost and subject.lost:
        _remove_fragments(target, lease, sorted(subject.lost))
        done.append(f"fragments {sorted(subject.lost)}: removed, their rows were lost")
        subject = _examine(target)
    if copies := find_copies(subject):
        Committer(replace(target, run=f"{target.run} copies"), lease).prune(copies)
        done.append(f"{len(copies):,} exact copies of rows: removed")
        subject = _examine(target)
    if remove_lost:
        rows = subject.read(["doc_id", "chunk_index", "chunk_count", "content_hash", "_rowaddr"])
        broken = find_broken_documents(rows)
        gone = rows.filter(pc.is_in(rows["doc_id"], value_set=broken.combine_chunks()))["_rowaddr"].to_pylist()
        if Committer(replace(target, run=f"{target.run} broken"), lease).prune(gone):
            names = broken.slice(0, 3).to_pylist()
            done.append(f"{len(broken):,} documents that were not whole: removed, such as {names}")


def find_copies(subject: Subject) -> list[int]:
    """Returns addresses of rows that equal an earlier row of the same chunk id in every column."""
    ids = subject.read(["chunk_id", "_rowaddr"])
    counts = ids["chunk_id"].combine_chunks().value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    chosen = ids.filter(pc.is_in(ids["chunk_id"], value_set=repeated))
    if not len(chosen):
        return []
    dataset = subject.snapshot.dataset
    positions = pa.array(subject.snapshot.rows.positions(chosen["_rowaddr"].to_numpy()))
    first: dict[str, pa.Table] = {}
    copies = []
    for chunk, address, position in zip(
        chosen["chunk_id"].to_pylist(), chosen["_rowaddr"].to_pylist(), positions.to_pylist(), strict=True
    ):
        row = dataset.take([position])
        if chunk not in first:
            first[chunk] = row
        elif row.equals(first[chunk]):
            copies.append(address)
    return copies


def _remove_fragments(target: Target, lease: Lease, numbers: list[int]) -> None:
    def operation(_: lance.LanceDataset) -> Any:
        return lance.LanceOperation.Delete([], numbers, "files are lost")

    properties = {"job": target.job, "run": target.run, "seq": "lost"}
    commit_once(target.documents_uri, target.storage_options, operation, properties, lease.check)


def _drop_damaged_indexes(target: Target, done: list[str]) -> dict[str, str]:
    """Drops Lance's damaged indexes; returns the kind of each by its column."""
    subject, kinds = examine(_open(target)), {}
    described = {index.name: index for index in subject.snapshot.dataset.describe_indices()}
    for name, reason in find_damaged_indexes(subject).items():
        kinds[described[name].field_names[0]] = str(described[name].index_type).upper()
        _open(target).dataset.drop_index(name)
        done.append(f"index {name}: dropped to be built again ({reason})")
    return kinds


def _drop_damaged_tables(target: Target, done: list[str]) -> None:
    """Drops damaged postings and document frequencies; twice, since postings are compared once all can be opened."""
    for _ in range(2):
        subject = _examine(target)
        damaged = {**find_damaged_postings(subject), **find_damaged_frequencies(subject)}
        if not damaged:
            return
        import lancedb

        database = lancedb.connect(target.uri, storage_options=dict(target.storage_options) or None)
        for table, reason in damaged.items():
            database.drop_table(table)
            done.append(f"table {table}: dropped to be made again ({reason})")


def _remove_orphans(target: Target, done: list[str]) -> None:
    dataset = _open(target).dataset
    if n := len(find_orphans(dataset)):
        now = now_of_the_store(target.uri, dict(target.storage_options))
        remove_old_files(dataset, KEEP_ALL, timedelta(0), now)
        done.append(f"{n:,} files that nothing referred to: removed")


def _rebuild(target: Target, dropped: Mapping[str, str], done: list[str]) -> tuple[str, ...]:
    """Builds what was dropped or is missing; returns what another command has to make."""
    if _examine(target).lost:
        return ("search indexes: not built while rows are lost",)
    place = (target.uri, target.table, target.storage_options)
    if TEXT in dropped or _lacks_full_text(target):
        from pipelines.search_indexes.full_text import update_full_text

        update_full_text(target)
        done.append("full-text index: built")
    for column, kind in dropped.items():
        if column.endswith("_dense") and kind.startswith("IVF"):
            update_vector_indexes(*place, kind=kind)  # type: ignore[arg-type]
            done.append(f"{kind} on {column}: built")
    if DOC_ID in dropped:
        _open(target).dataset.create_scalar_index(DOC_ID, "BTREE", name=DOC_ID_INDEX)
        done.append(f"BTREE on {DOC_ID}: built")
    filters = [column for column in dropped if column in _open(target).metadata_columns]
    done += [f"filter index on {c}: built" for c in update_scalar_indexes(target.uri, filters, *place[1:])]
    for name, made in update_postings(*place).items():
        if made.segments_written:
            done.append(f"postings of {name}: {made.segments_written} segments written")
    try:
        done += [f"document frequencies of {name}: counted" for name in update_document_frequencies(*place)]
    except (ValueError, OSError) as error:
        why = first_line(error)
        return (f"document frequencies: `tridex build` counts them; the model's tokenizer cannot be read here: {why}",)
    return ()


def _lacks_full_text(target: Target) -> bool:
    """Returns whether the last build's config has a full-text index that is not there."""
    if TEXT in _open(target).indexes():
        return False
    try:
        return last_config(target.uri).index.full_text
    except ConfigError:
        return False
