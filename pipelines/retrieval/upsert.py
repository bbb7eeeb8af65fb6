"""Small changes from Python: `Index.upsert(rows)` and `Index.delete(ids)`, each one commit under the index's lease.

This is for a handful of documents in a notebook or a service; a corpus goes through `tridex build`. Long documents are
cut as the index cuts them, so the next build finds nothing to do about how they were cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from actors.codecs.encode_batch import encode_batch
from actors.outputs import EmbeddingBatch, IntArray
from actors.text.windows import cut_all_into_windows
from pipelines.config import ChunkConfig, ConfigError
from pipelines.retrieval.handle import IndexHandle
from pipelines.store import lease
from pipelines.store.commit import Committer
from pipelines.store.schema import Target
from pipelines.store.table import sql_in
from pipelines.store.writer import REPLACES, write_block

SOURCE = "upsert"


def upsert(index: IndexHandle, rows: Sequence[Mapping[str, Any]]) -> int:
    """Embeds and writes documents; one whose `doc_id` is there takes its place. Returns their number.

    rows: `doc_id`, `text` (title and text joined, as the model shall read it) and the table's own columns; what a row
    leaves out is null. Searches see them after `open_index` is called again. ConfigError names the row at fault.
    """
    if set(index.identity.embedders) != {index.name}:
        raise ConfigError(f"upsert: this index has several embedders, {index.name!r} is open; use `tridex build`")
    _check(index, rows)
    if not rows:
        return 0
    target = _target(index)
    with lease.acquire(target.uri, target.table, target.job, storage_options=target.storage_options) as held:
        block = _block(index, rows)
        committer = Committer(target, held)
        for record in write_block(block, target).to_pylist():
            committer.add(record)
        committer.commit()
    return len(rows)


def delete(index: IndexHandle, ids: Sequence[str]) -> int:
    """Deletes documents with all their chunks; returns the rows deleted. Unknown ids are no error."""
    if isinstance(ids, str):
        raise ConfigError("delete: expected a list of ids, got one string")
    target = _target(index)
    with lease.acquire(target.uri, target.table, target.job, storage_options=target.storage_options) as held:
        addresses = [address for found in _addresses(index, ids).values() for address in found]
        return Committer(target, held).prune(addresses)


def _target(index: IndexHandle) -> Target:
    snapshot = index.snapshot
    return Target(
        snapshot.uri,
        snapshot.schema,
        table=snapshot.table,
        storage_options=snapshot.storage_options,
        job=SOURCE,
        run=uuid4().hex,
    )


def _check(index: IndexHandle, rows: Sequence[Mapping[str, Any]]) -> None:
    known = {"doc_id", "text", *index.snapshot.metadata_columns}
    seen: set[str] = set()
    for i, row in enumerate(rows):
        for key in ("doc_id", "text"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise ConfigError(f"upsert: row {i}: {key} must be a text that is not empty, got {row.get(key)!r}")
        unknown = sorted(row.keys() - known)
        if unknown:
            raise ConfigError(
                f"upsert: row {i}: the index has no column {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )
        if row["doc_id"] in seen:
            raise ConfigError(f"upsert: row {i}: doc_id {row['doc_id']!r} is there twice")
        seen.add(row["doc_id"])


def _addresses(index: IndexHandle, ids: Sequence[str]) -> dict[str, list[int]]:
    """Addresses of each document's rows in the newest version of the table, which the lease keeps still."""
    dataset = index.snapshot.dataset.checkout_version(index.snapshot.dataset.latest_version)
    found: dict[str, list[int]] = {}
    for first in range(0, len(ids), 1000):
        scanner = dataset.scanner(columns=["doc_id", "_rowaddr"], filter=sql_in("doc_id", ids[first : first + 1000]))
        table = scanner.to_table()
        for doc_id, address in zip(table["doc_id"].to_pylist(), table["_rowaddr"].to_pylist(), strict=True):
            found.setdefault(doc_id, []).append(address)
    return found


def _block(index: IndexHandle, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows, cut into chunks, as a block that `write_block` takes."""
    chunks = [chunk for row, spans in zip(rows, _spans(index, rows), strict=True) for chunk in _chunks(row, spans)]
    batch = _embedded(index, [chunk["text"] for chunk in chunks])
    there = _addresses(index, [row["doc_id"] for row in rows])
    computed = {"n_tokens": batch.n_tokens, "n_truncated": batch.n_truncated, **batch.to_arrow(index.name)}
    arrays = {
        f.name: _as(computed.get(f.name, [chunk.get(f.name) for chunk in chunks]), f.type)
        for f in index.snapshot.schema
    }
    arrays |= {
        "error": pa.nulls(len(chunks), pa.string()),
        REPLACES: pa.array([there.get(chunk["doc_id"], []) for chunk in chunks], pa.list_(pa.uint64())),
    }
    return pa.table(arrays)


def _spans(index: IndexHandle, rows: Sequence[Mapping[str, Any]]) -> list[IntArray]:
    """Where the documents are cut: (n, 2) characters of each."""
    texts, chunking = [row["text"] for row in rows], ChunkConfig(**index.identity.chunk)
    if chunking.mode == "whole":
        return [np.array([[0, len(text)]]) for text in texts]
    preparation = index.encoder.embedder.preparation
    window = chunking.window(preparation.room)
    assert window is not None, "only mode whole cuts nothing"
    return cut_all_into_windows(texts, preparation.tokenizer, window)


def _chunks(row: Mapping[str, Any], spans: IntArray) -> Iterator[dict[str, Any]]:
    """One document as the rows of its chunks, without what a model computes."""
    shared = {**row, "source": SOURCE, "content_hash": blake2b(row["text"].encode(), digest_size=16).digest()}
    for i, (start, end) in enumerate(spans.tolist()):
        place = {"chunk_id": f"{row['doc_id']}#{i}", "chunk_index": i, "chunk_count": len(spans)}
        yield shared | place | {"start": start, "end": end, "text": row["text"][start:end]}


def _as(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _embedded(index: IndexHandle, texts: Sequence[str]) -> EmbeddingBatch:
    described, embedder = index.column_cache.embedder, index.encoder.embedder
    tokens = embedder.tokenise(texts, "passage")
    batch = embedder.embed_tokens(tokens, index.column_cache.outputs)
    sparse, pooling = described.get("sparse", "max"), str(described["colbert_pooling"])
    return encode_batch(batch, tokens, described["dense"], sparse, index.column_cache.codec, pooling)
