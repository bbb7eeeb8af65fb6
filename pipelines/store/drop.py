"""Drops an embedder's columns, and gives back the bytes of dropped columns.

One commit takes columns and identity away together, so no reader meets one without the other. The bytes come back in
two steps: a data file that holds nothing else leaves the table with that commit; one that holds other columns as well
is written again without the dropped ones, fragment by fragment, and no row moves. That costs reading and writing what
is kept, once, on one machine; it resumes, and `tridex optimize` does what a killed drop left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from actors.codecs.parameters import KEY as CODEBOOK_KEY
from pipelines.config import ConfigError
from pipelines.store.columns import write_file
from pipelines.store.commit import CommitError, commit_once
from pipelines.store.embedder_choice import read_channels
from pipelines.store.lance_schema import change_schema, iterate_field_ids
from pipelines.store.lease import Lease
from pipelines.store.schema import DROPPED_KEY, IDENTITY_KEY, Identity, Target, output_fields, promotions
from pipelines.store.table import Snapshot
from pipelines.store.updates import as_json
from pipelines.store.writer import conform_to_schema

FRAGMENTS_PER_COMMIT = 64
READ_ROWS = 1024


def refuse_drop(snapshot: Snapshot, name: str) -> None:
    """Raises ConfigError if the index has no such embedder, or cannot do without it."""
    names = tuple(snapshot.identity.embedders)
    if name not in names:
        raise ConfigError(f"{snapshot.uri}: the index has no {name!r}; it has {', '.join(names)}")
    if len(names) == 1:
        raise ConfigError(f"{snapshot.uri}: {name!r} is the only embedder; an index needs one")
    promoted = promotions(snapshot.schema.metadata)
    if not promoted:
        raise ConfigError(f"{snapshot.uri}: promote one of {', '.join(names)} first, so that searches have a model")
    channels = read_channels(snapshot.schema.metadata)
    if name in channels.values():
        used = ", ".join(f"{output}={embedder}" for output, embedder in channels.items())
        raise ConfigError(f"{snapshot.uri}: {name!r} is a channel of searches ({used}); promote an embedder first")
    if promoted[0] == name:
        raise ConfigError(f"{snapshot.uri}: {name!r} is promoted, searches use it; promote another embedder first")


def drop_columns(target: Target, lease: Lease, snapshot: Snapshot, name: str) -> int:
    """Removes an embedder from the table and its identity in one commit; returns the bytes of its columns."""
    identity = snapshot.identity
    fields = [f.name for f in output_fields(replace(identity, embedders={name: identity.embedders[name]}))]
    size = _count_bytes(snapshot.dataset, fields)

    def operation(dataset: lance.LanceDataset) -> Any:
        return lance.LanceOperation.Project(change_schema(dataset.lance_schema, _without(dataset, name), fields))

    properties = {"job": target.job, "run": target.run, "seq": f"drop {name}"}
    commit_once(target.documents_uri, target.storage_options, operation, properties, lease.check)
    return size


def _without(dataset: lance.LanceDataset, name: str) -> dict[str, str | None]:
    """Returns changes of the schema metadata: the identity, codec parameters and generation without the embedder."""
    metadata = dataset.schema.metadata
    identity = Identity.from_metadata(metadata)
    assert identity is not None
    kept = {n: e for n, e in identity.embedders.items() if n != name}
    dropped = json.loads(metadata.get(DROPPED_KEY, b"{}"))
    return {
        IDENTITY_KEY.decode(): replace(identity, embedders=kept).to_metadata()[IDENTITY_KEY].decode(),
        DROPPED_KEY.decode(): json.dumps({**dropped, name: dropped.get(name, 0) + 1}),
        f"{CODEBOOK_KEY}{name}": None,
    }


def _count_bytes(dataset: lance.LanceDataset, names: list[str]) -> int:
    ids = {i for f in dataset.lance_schema.fields() if f.name() in names for i in iterate_field_ids(f)}
    return sum(field.bytes_on_disk for field in dataset.stats.data_stats().fields if field.id in ids)


def reclaim_dropped_columns(target: Target, lease: Lease) -> int:
    """Rewrites data files that hold dropped columns beside others; returns the number of fragments rewritten."""
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    pending, done = {}, 0
    for fragment in list(_fragments_with_dropped_columns(dataset)):
        pending[fragment.fragment_id] = (as_json(fragment.metadata), _rewrite_fragment(dataset, fragment, target))
        if len(pending) >= FRAGMENTS_PER_COMMIT:
            done += _commit(target, lease, pending, done)
            pending = {}
    return done + (_commit(target, lease, pending, done) if pending else 0)


def _fragments_with_dropped_columns(dataset: lance.LanceDataset) -> Iterator[Any]:
    live = _live_columns(dataset)
    for fragment in dataset.get_fragments():
        if any(i >= 0 and i not in live for file in fragment.metadata.files for i in file.fields):
            yield fragment


def count_fragments_with_dropped_columns(dataset: lance.LanceDataset) -> int:
    """Counts the fragments whose files still hold columns that the table has no more."""
    return sum(1 for _ in _fragments_with_dropped_columns(dataset))


def _live_columns(dataset: lance.LanceDataset) -> dict[int, str]:
    """Maps each field id of the table to the name of its column."""
    return {i: field.name() for field in dataset.lance_schema.fields() for i in iterate_field_ids(field)}


def _rewrite_fragment(dataset: lance.LanceDataset, fragment: Any, target: Target) -> str:
    """Writes the fragment's files without dropped columns; returns its new metadata as JSON."""
    live = _live_columns(dataset)
    tree = fragment.metadata.to_json()
    for i, file in enumerate(tree["files"]):
        names = dict.fromkeys(live[f] for f in file["fields"] if f in live)
        if any(f >= 0 and f not in live for f in file["fields"]):
            schema = pa.schema([dataset.schema.field(name) for name in names])
            rows = pa.RecordBatchReader.from_batches(schema, _read_columns(target, file["path"], schema))
            tree["files"][i] = json.loads(write_file(rows, fragment.physical_rows, target))["files"][0]
    return json.dumps(tree)


def _read_columns(target: Target, path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Reads columns of one data file, deleted rows included."""
    options = dict(target.storage_options)
    reader = LanceFileReader(f"{target.documents_uri}/data/{path}", storage_options=options, columns=schema.names)
    for batch in reader.read_all(batch_size=READ_ROWS).to_batches():
        yield from conform_to_schema(pa.Table.from_batches([batch]), schema).combine_chunks().to_batches()


def _commit(target: Target, lease: Lease, pending: Mapping[int, tuple[str, str]], done: int) -> int:
    def operation(dataset: lance.LanceDataset) -> Any:
        """An update without modified fields: a merge would take the fragments out of all search indexes."""
        there = {f.fragment_id: f.metadata for f in dataset.get_fragments()}
        return lance.LanceOperation.Update(
            updated_fragments=[_replaced(i, there, pending, dataset.uri) for i in pending]
        )

    properties = {"job": target.job, "run": target.run, "seq": f"reclaim {done}"}
    commit_once(target.documents_uri, target.storage_options, operation, properties, lease.check)
    return len(pending)


def _replaced(
    number: int, there: Mapping[int, FragmentMetadata], pending: Mapping[int, tuple[str, str]], uri: str
) -> FragmentMetadata:
    """Returns the rewritten fragment; CommitError if the table's is not the one that was rewritten."""
    before, after = pending[number]
    if number not in there or as_json(there[number]) != before:
        raise CommitError(f"{uri}: fragment {number} was changed by another program meanwhile; start again")
    return FragmentMetadata.from_json(after)
