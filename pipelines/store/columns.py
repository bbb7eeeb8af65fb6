"""Adds new outputs to an existing index: only the new columns are computed and written, no row moves.

The columns are made first, all null, and filled fragment by fragment; a fragment is filled by one commit that adds a
data file to it, so a job that dies goes on with the fragments that are left. The index takes on its new identity when
none is. Blocks and fragments need not match: parts of a fragment wait as files of their own and are joined when the
last one is there, which costs a second write of the new columns wherever a fragment came in more than one part.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, write_fragments

from pipelines.config import ConfigError
from pipelines.store.commit import CommitState, Totals, commit_once
from pipelines.store.lance_schema import iterate_field_ids
from pipelines.store.lease import Lease
from pipelines.store.schema import FILLING_KEY, PROMOTED_KEY, Identity, Target, only_embedder, output_field
from pipelines.store.writer import conform_to_schema, quarantine_record

PART_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("fragment", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("n_tokens", pa.int64()),
        pa.field("id", pa.int64()),
        pa.field("offsets", pa.list_(pa.uint32())),
    ]
)
"""What `write_columns` returns: files with the new columns of some rows of fragment `id`, by their offsets in it."""


def new_fields(have: Identity, target: Target) -> list[pa.Field]:
    """Returns output columns of `target` that an index of identity `have` lacks; ConfigError if more differs."""
    wanted = target.identity
    if (difference := have.difference(have.common(wanted))) is not None:
        raise ConfigError(f"{target.documents_uri}: the index was built with other settings: {difference}")
    added = have.additions(wanted).items()
    return [output_field(name, wanted.embedders[name], o) for name, outputs in added for o in outputs]


def add_null_columns(target: Target) -> tuple[lance.LanceDataset, list[pa.Field]]:
    """Adds the new columns, all null, unless they exist; returns the dataset and the fields to fill."""
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    have = Identity.from_metadata(dataset.schema.metadata)
    if have is None:
        raise ConfigError(f"{target.documents_uri}: this table is not a tridex index (no identity in its schema)")
    fields = new_fields(have, target)
    missing = [f for f in fields if f.name not in dataset.schema.names]
    if missing:
        dataset.update_schema_metadata({FILLING_KEY.decode(): json.dumps([f.name for f in fields])})
        dataset.add_columns(missing)
    return dataset, fields


def unfilled_fragments(dataset: lance.LanceDataset, fields: Sequence[pa.Field]) -> list[int]:
    """Lists the fragments that have no data file for one of the columns."""
    wanted = {f.name for f in fields}
    families = [set(iterate_field_ids(f)) for f in dataset.lance_schema.fields() if f.name() in wanted]
    stored = {f.fragment_id: {i for file in f.metadata.files for i in file.fields} for f in dataset.get_fragments()}
    return [number for number, ids in stored.items() if any(ids.isdisjoint(family) for family in families)]


def read_fragments(dataset: lance.LanceDataset, ids: Sequence[int], batch_rows: int) -> Iterator[pa.Table]:
    """Reads live rows of some fragments as the stages take them: `text`, an empty `error`, and `_rowaddr`."""
    scan = dataset.scanner(
        columns=["doc_id", "chunk_id", "text", "source"],
        fragments=[dataset.get_fragment(i) for i in ids],
        with_row_address=True,
        batch_size=batch_rows,
        scan_in_order=True,
    )
    for batch in scan.to_batches():
        n = batch.num_rows
        table = pa.Table.from_batches([batch])
        yield table.append_column("position", pa.nulls(n, pa.int64())).append_column("error", pa.nulls(n, pa.string()))


def write_columns(table: pa.Table, target: Target, fields: Sequence[pa.Field]) -> pa.Table:
    """Writes the new columns of a block's rows, on a worker; returns a record for each fragment in it.

    Rows with `error` keep nulls in the new columns and are listed in the quarantine.
    """
    table = table.sort_by("_rowaddr")
    addresses = table.column("_rowaddr").to_numpy()
    owners = (addresses >> np.uint64(32)).astype(np.int64)
    records = []
    for fragment in np.unique(owners):
        rows = np.flatnonzero(owners == fragment)
        part = conform_to_schema(table.slice(rows[0], len(rows)), pa.schema(list(fields)))
        offsets = (addresses[rows] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        records.append(_write_part(part, int(fragment), offsets, target) | {"n_tokens": _count_tokens(table, rows)})
    failed = table.filter(table.column("error").is_valid())
    if failed.num_rows:
        records.append(quarantine_record(failed, target, []))
    return pa.Table.from_pylist(records, schema=PART_SCHEMA)


def _count_tokens(table: pa.Table, rows: np.ndarray[Any, Any]) -> int:
    counts = table.column("n_tokens") if "n_tokens" in table.column_names else []
    return int(np.sum(np.asarray(counts)[rows])) if len(counts) else 0


def _write_part(rows: pa.Table, fragment: int, offsets: np.ndarray[Any, Any], target: Target) -> dict[str, Any]:
    file = write_file(rows.to_reader(), rows.num_rows, target)
    return {"kind": "columns", "fragment": file, "rows": rows.num_rows, "id": fragment, "offsets": offsets}


def write_file(rows: pa.RecordBatchReader, count: int, target: Target) -> str:
    """Writes one data file with these columns and nothing else; returns the JSON of the fragment with it."""
    options = dict(target.storage_options)
    dataset = lance.dataset(target.documents_uri, storage_options=options)
    (written,) = write_fragments(rows, dataset, schema=rows.schema, max_rows_per_file=count, storage_options=options)
    if written.physical_rows != count:
        raise RuntimeError(f"{target.documents_uri}: {count} rows went in, {written.physical_rows} came out")
    return json.dumps(written.to_json())


def _expand_in_order(
    parts: Iterable[Mapping[str, Any]], physical_rows: int, target: Target, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Expands rows to all physical rows of a fragment, null where deleted; holds one part in memory at a time."""
    end = 0
    for part in parts:
        offsets = np.asarray(part["offsets"], np.int64)
        where = np.full(offsets[-1] + 1 - end, -1, np.int64)
        where[offsets - end] = np.arange(len(offsets))
        rows = _read_part(part, target).take(pa.array(where, mask=where < 0))
        yield from conform_to_schema(rows, schema).combine_chunks().to_batches()
        end = int(offsets[-1]) + 1
    if end < physical_rows:
        yield pa.RecordBatch.from_pylist([{}] * (physical_rows - end), schema=schema)


def _read_part(part: Mapping[str, Any], target: Target) -> pa.Table:
    path = json.loads(part["fragment"])["files"][0]["path"]
    reader = LanceFileReader(f"{target.documents_uri}/data/{path}", storage_options=dict(target.storage_options))
    return reader.read_all().to_table()


def join_parts(
    parts: Sequence[Mapping[str, Any]], physical_rows: int, target: Target, fields: Sequence[pa.Field]
) -> str:
    """Joins the parts of one fragment to one data file, as JSON; a part that is the whole fragment is kept as it is."""
    if len(parts) == 1 and parts[0]["rows"] == physical_rows:
        return str(parts[0]["fragment"])
    parts = sorted(parts, key=lambda part: int(part["offsets"][0]))
    offsets = np.concatenate([np.asarray(part["offsets"], np.int64) for part in parts])
    there, times = np.unique(offsets, return_counts=True)
    if len(there) < len(offsets):
        raise ValueError(f"fragment {parts[0]['id']}: its parts overlap at row {there[times > 1][0]}")
    schema = pa.schema(list(fields))
    in_turn = all(a["offsets"][-1] < b["offsets"][0] for a, b in itertools.pairwise(parts))
    batches = (_expand_in_order if in_turn else _expand_interleaved)(parts, physical_rows, target, schema)
    return write_file(pa.RecordBatchReader.from_batches(schema, batches), physical_rows, target)


def _expand_interleaved(
    parts: Sequence[Mapping[str, Any]], physical_rows: int, target: Target, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Expands as `_expand_in_order`, for parts whose rows interleave because blocks mix pieces of the fragment.

    All in memory.
    """
    rows = pa.concat_tables([conform_to_schema(_read_part(part, target), schema) for part in parts])
    where = np.full(physical_rows, -1, np.int64)
    where[np.concatenate([np.asarray(part["offsets"], np.int64) for part in parts])] = np.arange(len(rows))
    yield from rows.take(pa.array(where, mask=where < 0)).combine_chunks().to_batches()


@dataclass(slots=True)
class ColumnCommitter:
    """Collects records of `write_columns` and commits fragments whose rows are complete."""

    target: Target
    lease: Lease
    dataset: lance.LanceDataset
    fields: Sequence[pa.Field]
    totals: Totals = field(default_factory=Totals)
    """What has arrived: rows count as documents."""
    _parts: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)
    _ready: dict[int, str] = field(default_factory=dict)
    _failed: list[Mapping[str, Any]] = field(default_factory=list)
    _seq: int = 0
    _outcome: CommitState = field(default_factory=CommitState)

    def add(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "quarantine":
            self._failed.append(record)
            self.totals = replace(self.totals, quarantined=self.totals.quarantined + record["rows"])
            return
        rows, n_tokens = self.totals.rows + record["rows"], self.totals.n_tokens + (record.get("n_tokens") or 0)
        self.totals = replace(self.totals, rows=rows, documents=rows, n_tokens=n_tokens)
        parts = self._parts.setdefault(record["id"], [])
        parts.append(record)
        fragment = self.dataset.get_fragment(record["id"])
        if sum(p["rows"] for p in parts) == fragment.count_rows():
            del self._parts[record["id"]]
            self._ready[record["id"]] = join_parts(parts, fragment.physical_rows, self.target, self.fields)

    @property
    def pending(self) -> int:
        """Counts the fragments that the next commit would fill."""
        return len(self._ready)

    @property
    def incomplete(self) -> list[int]:
        """Lists fragments with missing rows; after the last block: fragments that lost a block."""
        return list(self._parts)

    def commit(self) -> None:
        """Commits the complete fragments; writes failed rows to the quarantine first.

        After a CommitError every later call raises it again (`CommitState`).
        """
        with self._outcome.settled():
            if self._failed:
                new = [FragmentMetadata.from_json(r["fragment"]) for r in self._failed]
                self._operate(self.target.quarantine_uri, lambda _: lance.LanceOperation.Append(new))
                self._failed = []
            if self._ready:
                self._operate(self.target.documents_uri, self._filled)
                self._ready = {}

    def _filled(self, dataset: lance.LanceDataset) -> Any:
        fragments = [f.metadata for f in dataset.get_fragments()]
        return lance.LanceOperation.Merge([self._with_file(f) for f in fragments], dataset.lance_schema)

    def _with_file(self, fragment: FragmentMetadata) -> FragmentMetadata:
        if fragment.id not in self._ready:
            return fragment
        tree = fragment.to_json()
        tree["files"] = [*tree["files"], *json.loads(self._ready[fragment.id])["files"]]
        return FragmentMetadata.from_json(json.dumps(tree))

    def _operate(self, uri: str, operation: Any) -> None:
        self._seq += 1
        properties = {"job": self.target.job, "run": self.target.run, "seq": f"columns-{self._seq}"}
        commit_once(uri, self.target.storage_options, operation, properties, self.lease.check)


def record_identity(target: Target, fields: Sequence[pa.Field]) -> None:
    """Writes the index's new identity; RuntimeError while a fragment is not filled.

    The only embedder of an index is promoted when a second one joins it, so that searches that name none go on.
    """
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    left = unfilled_fragments(dataset, fields)
    if left:
        raise RuntimeError(
            f"{target.documents_uri}: {len(left)} fragments have no data for the new columns: {left[:5]}"
        )
    metadata = {key.decode(): value.decode() for key, value in target.schema.metadata.items()}
    have = Identity.from_metadata(dataset.schema.metadata)
    only = None if have is None else only_embedder(have)
    if only is not None and PROMOTED_KEY not in dataset.schema.metadata:
        metadata[PROMOTED_KEY.decode()] = json.dumps([only])
    dataset.update_schema_metadata({**metadata, FILLING_KEY.decode(): None})
