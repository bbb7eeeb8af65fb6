"""Migrates the table of an index to the columns that a job writes, before any row is written.

Metadata columns that the job adds are made, all null: change detection then finds every document's metadata hash to be
another, and the rows get their values without being embedded. Columns that the job lacks are never dropped unasked:
the request is refused. Each step is one commit that leaves a table which opens, so a driver that dies between two of
them is taken up by the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import lance
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import ConfigError
from pipelines.store.commit import commit_fence, compare_settings
from pipelines.store.datasets import open_dataset
from pipelines.store.hashes import HASH, digest, hash_content, hash_metadata
from pipelines.store.lease import Lease
from pipelines.store.schema import FORMAT_VERSION, IDENTITY_KEY, Identity, Target, metadata_columns
from pipelines.store.updates import ADDRESS, FragmentUpdate, commit_updates, rewrite_columns

UPSERTED = "upsert"
"""Source of rows that `Index.upsert` wrote."""
FRAGMENTS_PER_COMMIT = 64
MADE_OF_PICTURES = ("thumbnail",)
"""Columns that only embedding fills: an index without them is refused, not back-filled."""


def check_columns(target: Target, drop: Sequence[str] = ()) -> None:
    """Raises ConfigError if the index has a metadata column that the job lacks, unless it is to be dropped.

    Also where a column is to be dropped that the job writes, or that is not the user's.
    """
    if wanted := next((name for name in drop if name in target.schema.names), None):
        raise ConfigError(f"--drop-column {wanted}: the job writes this column; leave one of the two out")
    dataset = open_dataset(target.documents_uri, target.storage_options)
    if dataset is None:
        return
    theirs = metadata_columns(dataset.schema)
    if made := next((n for n in drop if n in dataset.schema.names and n not in theirs), None):
        raise ConfigError(f"--drop-column {made}: this column is not metadata, the index itself makes it")
    lacking = next((name for name in theirs if name not in target.schema.names and name not in drop), None)
    if lacking is not None:
        raise ConfigError(
            f"{target.uri}: the index has the metadata column {lacking!r}, this job does not: name it in "
            f"input.columns.metadata to keep it, or drop it with --drop-column {lacking}"
        )
    compare_settings(dataset, target)


def evolve_table(target: Target, lease: Lease, drop: Sequence[str] = ()) -> Target:
    """Upgrades the hashes of an older index, drops `drop` and adds the metadata columns that the table lacks.

    Returns the target with its columns in the table's order. Nothing happens to a table that matches the job, or
    to none. ConfigError as `check_columns`, before anything is changed.
    """
    check_columns(target, drop)
    dataset = open_dataset(target.documents_uri, target.storage_options)
    if dataset is None:
        return target
    if lease.took_over:
        commit_fence(target, lease)
    dataset = upgrade_hashes(target, lease)
    dropped = [name for name in drop if name in dataset.schema.names]
    if dropped:
        lease.check()
        dataset.drop_columns(dropped)
    wanted = [field for field in target.schema if field.name in target.metadata and field.name not in MADE_OF_PICTURES]
    added = [field for field in wanted if field.name not in dataset.schema.names]
    if added:
        lease.check()
        dataset.add_columns(added)
    return order_columns(target, dataset.schema)


def retype_columns(target: Target, lease: Lease, types: Mapping[str, pa.DataType]) -> Target:
    """Gives metadata columns another type, those of `types` that hold no value in the table; returns the new target."""
    dataset = open_dataset(target.documents_uri, target.storage_options)
    there = set() if dataset is None else {*dataset.schema.names} & {*types}
    filled = {name for name in there if dataset is not None and dataset.count_rows(filter=f"`{name}` IS NOT NULL")}
    fields = {name: target.schema.field(name).with_type(type_) for name, type_ in types.items() if name not in filled}
    schema = pa.schema([fields.get(f.name, f) for f in target.schema], metadata=target.schema.metadata)
    empty = sorted(there - filled)
    if dataset is not None and empty:
        lease.check()
        dataset.drop_columns(empty)
        dataset.add_columns([fields[name] for name in empty])
        return order_columns(replace(target, schema=schema), dataset.schema)
    return replace(target, schema=schema)


def order_columns(target: Target, schema: pa.Schema) -> Target:
    """Orders the target's columns as `schema` has them: the fragments of one table should agree."""
    order = {name: i for i, name in enumerate(schema.names)}
    fields = sorted(target.schema, key=lambda field: order.get(field.name, len(order)))
    return replace(target, schema=pa.schema(fields, metadata=target.schema.metadata))


def upgrade_hashes(target: Target, lease: Lease) -> lance.LanceDataset:
    """Upgrades an index of format 1, whose one hash covered text and metadata, to the two hashes of format 2.

    They are computed from what the table holds, on this machine; nothing is embedded. Fragments are committed some at a
    time and a fragment that has its hashes is skipped, so it resumes. The index is of format 2 when all have them.
    """
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    identity = Identity.from_metadata(dataset.schema.metadata)
    if identity is None or identity.format_version >= FORMAT_VERSION:
        return dataset
    lease.check()
    if "metadata_hash" not in dataset.schema.names:
        dataset.add_columns([pa.field("metadata_hash", HASH)])
    updates: list[FragmentUpdate] = []
    for i, update in enumerate(_hash_updates(dataset)):
        updates.append(update)
        if len(updates) >= FRAGMENTS_PER_COMMIT:
            commit_updates(target, lease, updates, f"hashes-{i}")
            updates = []
    if updates:
        commit_updates(target, lease, updates, "hashes-last")
    lease.check()
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    upgraded = replace(identity, format_version=FORMAT_VERSION).to_metadata()[IDENTITY_KEY]
    dataset.update_schema_metadata({IDENTITY_KEY.decode(): upgraded.decode()})
    return lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))


def _hash_updates(dataset: lance.LanceDataset) -> Iterator[FragmentUpdate]:
    """Hashes the rows of each fragment that has no hashes yet; the hash of a cut document takes all of its chunks."""
    names = [name for name in metadata_columns(dataset.schema) if name not in MADE_OF_PICTURES]
    cut = _hash_cut_documents(dataset) if names or _has_upserts(dataset) else {}
    for fragment in dataset.get_fragments():
        columns = ["doc_id", "text", "source", "chunk_count", "content_hash", "metadata_hash", *names]
        rows = fragment.scanner(columns=columns, with_row_address=True).to_table()
        if rows.column("metadata_hash").null_count:
            yield rewrite_columns(dataset, fragment.fragment_id, _hash_rows(rows, names, cut))


def _has_upserts(dataset: lance.LanceDataset) -> bool:
    return bool(dataset.scanner(columns=["doc_id"], filter=f"source = '{UPSERTED}'", limit=1).to_table().num_rows)


def _hash_rows(rows: pa.Table, names: Sequence[str], cut: dict[str, bytes | None]) -> pa.Table:
    """Returns `_rowaddr` and both hashes of some rows; keeps a content hash that did not cover metadata."""
    metadata = hash_metadata({name: rows.column(name) for name in names}, len(rows))
    whole = hash_content(rows.column("text").combine_chunks()).to_pylist()
    chunks, ids = rows.column("chunk_count").to_pylist(), rows.column("doc_id").to_pylist()
    content = [whole[i] if chunks[i] == 1 else cut.get(ids[i]) for i in range(len(rows))]
    upserted = pc.equal(rows.column("source"), UPSERTED).to_pylist()
    kept = rows.column("content_hash").to_pylist()
    content = [new if names or by_hand else old for new, old, by_hand in zip(content, kept, upserted, strict=True)]
    return pa.table({ADDRESS: rows.column(ADDRESS), "content_hash": pa.array(content, HASH), "metadata_hash": metadata})


def _hash_cut_documents(dataset: lance.LanceDataset) -> dict[str, bytes | None]:
    """Hashes each document of several chunks, joined where they overlap.

    None if they leave a gap (an index cut without overlap): such a document counts as changed.
    """
    scan = dataset.scanner(
        columns=["doc_id", "chunk_index", "chunk_count", "start", "end", "text"], filter="chunk_count > 1"
    )
    open_documents: dict[str, dict[int, tuple[int, int, str]]] = {}
    hashes: dict[str, bytes | None] = {}
    for batch in scan.to_batches():
        for row in batch.to_pylist():
            chunks = open_documents.setdefault(row["doc_id"], {})
            chunks[row["chunk_index"]] = row["start"], row["end"], row["text"]
            if len(chunks) == row["chunk_count"]:
                text = _join_chunks([chunks[i] for i in sorted(chunks)])
                hashes[row["doc_id"]] = None if text is None else digest(text.encode())
                del open_documents[row["doc_id"]]
    return hashes


def _join_chunks(chunks: Sequence[tuple[int, int, str]]) -> str | None:
    text = ""
    for start, _, chunk in chunks:
        if start > len(text):
            return None
        text += chunk[len(text) - start :]
    return text
