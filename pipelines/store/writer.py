"""Writes one block of embedded rows, on a worker, as Lance fragments that no commit refers to yet.

Workers write, the driver commits. A worker that dies leaves files behind, never rows; `maintain.optimize` removes them.
A document whose chunks lie in several blocks gets a fragment of its own in each, so that the driver can hold it back
until it is whole without holding anything else: a block cut through a document costs two small fragments, which a
compaction joins.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import write_fragments

from pipelines.store.schema import Target, quarantine_schema

DUPLICATE = "duplicate id"
"""How the error of a duplicate begins."""

REPLACES = "replaces"
"""Optional block column, `list<uint64>`: addresses of the table's rows that a changed document's new rows replace."""

COSTS = ("n_padding", "n_halvings")
"""Optional block columns, int64: tokens that were computed for nothing, and how often a device ran out of memory."""

RECORD_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("fragment", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("documents", pa.int64()),
        pa.field("n_tokens", pa.int64()),
        pa.field("n_truncated", pa.int64()),
        pa.field("rows_truncated", pa.int64()),
        *(pa.field(name, pa.int64()) for name in COSTS),
        pa.field("bytes", pa.int64()),
        pa.field("duplicates", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("replaces", pa.list_(pa.uint64())),
        pa.field("partial", pa.list_(pa.struct([("doc_id", pa.string()), ("rows", pa.int64()), ("of", pa.int64())]))),
    ]
)
"""What `write_block` returns, one row a fragment.

documents: documents whose first chunk is in the fragment, so that the sum counts each once. n_tokens, n_truncated:
sums; rows_truncated: rows that lost tokens. duplicates: rows of a `quarantine` fragment that only repeat an id; reason:
file, row and error of the first that does not. partial: documents that are only partly in this block; a `documents`
fragment has at most one, and then holds nothing else; a `quarantine` fragment lists the chunks that will never come.
"""


def _has_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    return any(_has_extension(kind.field(i).type) for i in range(kind.num_fields))


def conform_to_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Selects the columns of `schema`, in its order and types. Errors name the column.

    Ray's tensor types are refused: a process without Ray reads their storage, and LanceDB finds no vector in it.
    """
    columns = []
    for column in schema:
        if column.name not in table.column_names:
            raise ValueError(f"write_block: column {column.name!r} is missing; the block has {table.column_names}")
        values = table.column(column.name)
        if _has_extension(values.type):
            raise TypeError(f"write_block: column {column.name!r} has extension type {values.type}: return pyarrow")
        try:
            columns.append(values if values.type == column.type else values.cast(column.type))
        except pa.ArrowException as error:
            raise TypeError(
                f"write_block: column {column.name!r} is {values.type}, not {column.type}: {error}"
            ) from None
    return pa.table(columns, schema=schema)


def _write(table: pa.Table, uri: str, target: Target) -> dict[str, Any]:
    fragments = write_fragments(
        table,
        uri,
        schema=table.schema,
        mode="append",
        max_rows_per_file=max(table.num_rows, 1),
        storage_options=dict(target.storage_options),
    )
    written = [f.physical_rows for f in fragments]
    if written != [table.num_rows]:
        raise RuntimeError(f"{uri}: {table.num_rows} rows went in, fragments of {written} rows came out")
    return {
        "fragment": json.dumps(fragments[0].to_json()),
        "rows": table.num_rows,
        "bytes": sum(f.file_size_bytes or 0 for f in fragments[0].files),
    }


def _sum_column(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


def _document_record(rows: pa.Table, target: Target, partial: list[dict[str, Any]]) -> dict[str, Any]:
    replaces = rows.column(REPLACES).combine_chunks().flatten().unique() if REPLACES in rows.column_names else []
    return _write(conform_to_schema(rows, target.schema), target.documents_uri, target) | {
        "kind": "documents",
        "documents": _sum_column(pc.equal(rows.column("chunk_index"), 0)),
        "n_tokens": _sum_column(rows.column("n_tokens")),
        "n_truncated": _sum_column(rows.column("n_truncated")),
        "rows_truncated": _sum_column(pc.greater(rows.column("n_truncated"), 0)),
        "replaces": replaces,
        "partial": partial,
    }


def quarantine_rows(rows: pa.Table, target: Target) -> pa.Table:
    """Formats failed rows for the quarantine: the first line of `error`, and the rest as the traceback."""
    parts = [str(e).partition("\n") for e in rows.column("error").to_pylist()]
    n = rows.num_rows
    columns = {
        name: rows.column(name) if name in rows.column_names else pa.nulls(n)
        for name in ("source", "position", "doc_id", "chunk_id")
    } | {
        "error": pa.array([p[0] for p in parts], pa.string()),
        "traceback": pa.array([p[2] or None for p in parts], pa.string()),
        "job": pa.array([target.job] * n, pa.string()),
        "run": pa.array([target.run] * n, pa.string()),
        "time": pa.array([datetime.now(timezone.utc)] * n, pa.timestamp("us", "UTC")),
    }
    return conform_to_schema(pa.table(columns), quarantine_schema())


def describe_failure(row: Mapping[str, Any]) -> str:
    """Formats `FILE line 4: text is empty` from a row with `source`, `position` and `error`."""
    error = str(row["error"]).partition("\n")[0]
    return f"{describe_place(row['source'], row['position'])}: {error}"


def describe_place(source: str | None, position: int | None) -> str:
    """Formats a row's place: `FILE line 4` of formats of lines, `FILE row 3` of others, `FILE` for a whole file.

    Lines count from 1, rows from 0. A piece of a large file is FILE@BYTE, and its rows count from that byte.
    """
    if source is None or position is None or position < 0:
        return str(source)
    lines = re.search(r"\.(jsonl|ndjson|csv|tsv|tab)(\.\w+)?$", source)
    return f"{source} line {position + 1}" if lines else f"{source} row {position}"


def quarantine_record(rows: pa.Table, target: Target, partial: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes failed rows as a fragment of the quarantine."""
    counts = {"documents": 0, "n_tokens": 0, "n_truncated": 0, "rows_truncated": 0, "replaces": []}
    repeated = pc.starts_with(rows.column("error"), DUPLICATE)
    bad = rows.filter(pc.invert(repeated)).slice(0, 1).to_pylist()
    said = {"duplicates": _sum_column(repeated), "reason": describe_failure(bad[0]) if bad else None}
    written = _write(quarantine_rows(rows, target), target.quarantine_uri, target)
    return written | counts | said | {"kind": "quarantine", "partial": partial}


def _partial_documents(table: pa.Table) -> list[dict[str, Any]]:
    """Lists documents with fewer rows in this block, good and failed together, than they have chunks."""
    chunks = table.filter(pc.greater(table.column("chunk_count"), 1)).select(["doc_id", "chunk_count"])
    if not chunks.num_rows:
        return []
    seen = chunks.group_by("doc_id").aggregate([("chunk_count", "max"), ("chunk_count", "count")])
    short = seen.filter(pc.less(seen.column("chunk_count_count"), seen.column("chunk_count_max"))).to_pylist()
    return [{"doc_id": s["doc_id"], "rows": s["chunk_count_count"], "of": s["chunk_count_max"]} for s in short]


def _exclude_rows(table: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """Returns the rows outside `mask`; the table itself, without copying vectors, if the mask is empty."""
    return table.filter(pc.invert(mask)) if pc.any(mask).as_py() else table


def _write_records(table: pa.Table, target: Target) -> Iterator[dict[str, Any]]:
    failed = pc.is_valid(table.column("error"))
    good, bad = _exclude_rows(table, failed), table.filter(failed)
    partial = _partial_documents(table)
    ids = pa.array([p["doc_id"] for p in partial], pa.string())
    whole = _exclude_rows(good, pc.is_in(good.column("doc_id"), value_set=ids))
    if whole.num_rows:
        yield _document_record(whole, target, [])
    in_bad = dict.fromkeys((p["doc_id"] for p in partial), 0)
    for entry in partial:
        rows = good.filter(pc.equal(good.column("doc_id"), entry["doc_id"]))
        in_bad[entry["doc_id"]] = entry["rows"] - rows.num_rows
        if rows.num_rows:
            yield _document_record(rows, target, [entry | {"rows": rows.num_rows}])
    if bad.num_rows:
        failed_chunks = [p | {"rows": in_bad[p["doc_id"]]} for p in partial if in_bad[p["doc_id"]]]
        yield quarantine_record(bad, target, failed_chunks)


def write_block(table: pa.Table, target: Target) -> pa.Table:
    """Writes the rows of one block as fragments and returns their records (`RECORD_SCHEMA`); commits nothing.

    Rows with `error` set become a fragment of the quarantine. Columns of the block that the table does not have are
    left out. Raises ValueError or TypeError that names the column where the block does not fit the table, and OSError
    as it comes from the store (disk full, access denied): such a block must not count as done.
    """
    records = list(_write_records(table, target))
    for name in COSTS:
        for i, record in enumerate(records):
            record[name] = _sum_column(table.column(name)) if i == 0 and name in table.column_names else 0
    return pa.Table.from_pylist(records, schema=RECORD_SCHEMA)


def split_addresses(addresses: npt.NDArray[np.uint64]) -> dict[int, list[int]]:
    """Groups row addresses, in any order, to ascending row offsets for each fragment."""
    ordered = np.unique(addresses)
    fragments, offsets = ordered >> np.uint64(32), (ordered & np.uint64(0xFFFFFFFF)).astype(np.int64)
    bounds = np.flatnonzero(np.diff(fragments, prepend=np.uint64(2**32), append=np.uint64(2**32)))
    return {int(fragments[a]): offsets[a:b].tolist() for a, b in itertools.pairwise(bounds)}
