"""Changes to an index by a program, outside a job: replace documents, delete documents, each in one commit.

They take the same lease as a job, so a program that comes while a job writes is refused and told which. The price is
two small commits to the lease table for each call: change many documents in one call rather than one in each.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence

import lance
import pyarrow as pa

from pipelines.store.commit import Committer, Totals, create_or_open
from pipelines.store.lease import Lease, acquire
from pipelines.store.schema import Target
from pipelines.store.table import Snapshot, sql_in
from pipelines.store.writer import REPLACES, write_block

_IDS_A_SCAN = 2000


def target_of(snapshot: Snapshot, job: str) -> Target:
    """Where changes to an open index go; `job` names them in the table's history."""
    table = snapshot.dataset.uri.rstrip("/").rpartition("/")[2].removesuffix(".lance")
    return Target(snapshot.uri, snapshot.schema, table, snapshot.storage_options, job, uuid.uuid4().hex)


def _lease(target: Target) -> Lease:
    return acquire(target.uri, target.table, target.job, lease_seconds=10, storage_options=target.storage_options)


def _addresses(dataset: lance.LanceDataset, ids: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(doc_id, row address) of all rows of these documents."""
    rest = iter(ids)
    while part := list(itertools.islice(rest, _IDS_A_SCAN)):
        rows = dataset.to_table(columns=["doc_id"], filter=sql_in("doc_id", part), with_row_address=True)
        yield from zip(rows.column("doc_id").to_pylist(), rows.column("_rowaddr").to_pylist(), strict=True)


def upsert_rows(target: Target, table: pa.Table) -> Totals:
    """Writes embedded rows; a document that is in the index already is replaced by its new rows in the same commit.

    table: a block as `write_block` takes it, whole documents only (ValueError names one that lacks chunks); rows with
    `error` set go to quarantine and leave what the index has of their document as it is.
    """
    with _lease(target) as lease:
        dataset = create_or_open(target, lease)
        old: dict[str, list[int]] = {}
        for doc_id, address in _addresses(dataset, table.column("doc_id").drop_null().unique().to_pylist()):
            old.setdefault(doc_id, []).append(address)
        replaces = [old.get(doc_id) for doc_id in table.column("doc_id").to_pylist()]
        table = table.append_column(REPLACES, pa.array(replaces, pa.list_(pa.uint64())))
        committer = Committer(target, lease)
        for record in write_block(table, target).to_pylist():
            committer.add(record)
        if committer.incomplete:
            raise ValueError(f"upsert: not all chunks of document {committer.incomplete[0]!r} are in the table")
        return committer.commit()


def delete_documents(target: Target, ids: Sequence[str | int]) -> int:
    """Deletes all rows of these documents in one commit; returns how many there were. Unknown ids are no error."""
    wanted = dict.fromkeys(str(i) if isinstance(i, int) else i for i in ids)
    with _lease(target) as lease:
        found = [address for _, address in _addresses(create_or_open(target, lease), wanted)]
        return Committer(target, lease).prune(found)
