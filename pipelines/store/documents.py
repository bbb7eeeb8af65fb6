"""Replaces and deletes documents of an index outside a job, each call in one commit.

They take the same lease as a job and go the same way (`write_block`, `Committer`), so a program that comes while a job
writes is refused and told which. The price is two small commits to the lease table for each call: change many documents
in one call rather than one in each.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence

import lance
import pyarrow as pa

from pipelines.store.commit import Committer, Totals, commit_fence, create_or_open
from pipelines.store.datasets import open_dataset
from pipelines.store.lease import Lease, acquire
from pipelines.store.schema import Target
from pipelines.store.table import Snapshot, sql_in
from pipelines.store.writer import REPLACES, write_block

Check = Callable[[lance.LanceDataset], None]
"""Looks at the table while the lease is held, and raises where a change must not be made."""
IDS_PER_SCAN = 2000
COMPARED = ("doc_id", "content_hash", "metadata_hash", "chunk_count")
"""Columns that decide whether a document is in the index unchanged."""


def target_of(snapshot: Snapshot, job: str) -> Target:
    """Returns the write target of an open index; `job` names the changes in the table's history."""
    return Target(snapshot.uri, snapshot.schema, snapshot.table, snapshot.storage_options, job, uuid.uuid4().hex)


def hold_lease(target: Target) -> Lease:
    """Holds the index's lease for a short change; LeaseHeld (a ConfigError) while a job writes."""
    lease = acquire(target.uri, target.table, target.job, lease_seconds=10, storage_options=target.storage_options)
    if lease.took_over and open_dataset(target.documents_uri, target.storage_options) is not None:
        commit_fence(target, lease)
    return lease


def find_rows(dataset: lance.LanceDataset, ids: Iterable[str], columns: Sequence[str] = ("doc_id",)) -> pa.Table:
    """Reads `columns` and `_rowaddr` of all rows of these documents."""
    rest = iter(ids)
    found = [dataset.schema.empty_table().select(list(columns)).append_column("_rowaddr", pa.array([], pa.uint64()))]
    while part := list(itertools.islice(rest, IDS_PER_SCAN)):
        scan = dataset.scanner(columns=list(columns), filter=sql_in("doc_id", part), with_row_address=True)
        found.append(scan.to_table())
    return pa.concat_tables(found)


def replace_documents(target: Target, lease: Lease, block: pa.Table) -> Totals:
    """Writes embedded rows and deletes the old rows of the same documents, in one commit.

    block: as `write_block` takes it, whole documents only (ValueError names one that lacks chunks); rows with `error`
    set go to quarantine and leave what the index has of their document as it is.
    """
    dataset = create_or_open(target, lease)
    rows = find_rows(dataset, block.column("doc_id").drop_null().unique().to_pylist())
    old: dict[str, list[int]] = {}
    for doc_id, address in zip(rows.column("doc_id").to_pylist(), rows.column("_rowaddr").to_pylist(), strict=True):
        old.setdefault(doc_id, []).append(address)
    replaces = [old.get(doc_id) for doc_id in block.column("doc_id").to_pylist()]
    block = block.append_column(REPLACES, pa.array(replaces, pa.list_(pa.uint64())))
    committer = Committer(target, lease)
    for record in write_block(block, target).to_pylist():
        committer.add(record)
    if committer.incomplete:
        raise ValueError(f"upsert: not all chunks of document {committer.incomplete[0]!r} are in the table")
    return committer.commit()


def delete_documents(target: Target, ids: Sequence[str | int], check: Check | None = None) -> int:
    """Deletes all rows of these documents in one commit; returns their number. Unknown ids are no error.

    check: is called under the lease; what it raises prevents the change.
    """
    wanted = dict.fromkeys(str(i) if isinstance(i, int) else i for i in ids)
    with hold_lease(target) as lease:
        dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
        if check is not None:
            check(dataset)
        found = find_rows(dataset, wanted)
        return Committer(target, lease).prune(found.column("_rowaddr").to_pylist())
