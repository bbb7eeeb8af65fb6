"""Upserts and deletes documents from Python, `Index.upsert(rows)` and `Index.delete(ids)`, under the index's lease.

This is for a handful of documents in a notebook or a service; a corpus goes through `tridex build`. Both go the same
way and use the same two hashes: a document that is there as it is costs nothing, one of which only the metadata changed
is not embedded, and a build that meets an upserted document again finds it the same. Long documents are cut as the
index cuts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.codecs.encode_batch import encode_batch
from actors.codecs.parameters import from_metadata
from actors.codecs.table import get_codec
from actors.outputs import EmbeddingBatch, IntArray
from actors.text.windows import cut_all_into_windows
from pipelines.changes.detect import to_table_rows
from pipelines.changes.diff import InputRows, PartitionDiff, diff_partition
from pipelines.config import ChunkConfig, ConfigError
from pipelines.retrieval.handle import IndexHandle
from pipelines.store.documents import (
    COMPARED,
    Check,
    delete_documents,
    find_rows,
    hold_lease,
    replace_documents,
    target_of,
)
from pipelines.store.evolve import UPSERTED, upgrade_hashes
from pipelines.store.hashes import hash_content, hash_metadata
from pipelines.store.ids import as_keys, hash_ids
from pipelines.store.lease import Lease
from pipelines.store.schema import Target
from pipelines.store.updates import ADDRESS, commit_updates, split_by_fragment, update_metadata


def upsert(index: IndexHandle, rows: Sequence[Mapping[str, Any]], check: Check | None = None) -> int:
    """Writes documents and returns their number; a document replaces the one with the same `doc_id`.

    rows: `doc_id`, `text` (title and text joined, as the model shall read it) and the table's own columns; what a row
    leaves out is null. Only new texts are embedded. Searches see them after `open_index` is called again. check: is
    called with the table as it is while the lease is held; what it raises prevents the write. ConfigError names the row
    at fault.
    """
    check_rows(index, rows)
    if not rows:
        return 0
    target = target_of(index.snapshot, UPSERTED)
    with hold_lease(target) as held:
        dataset = upgrade_hashes(target, held)
        if check is not None:
            check(dataset)
        target = replace(target, schema=dataset.schema)
        documents = to_documents(target, rows)
        diff = compare(documents, find_rows(dataset, documents.column("doc_id").to_pylist(), COMPARED))
        settled = set(diff.done[:, 1].tolist())
        changed = [i for i in range(len(rows)) if i not in settled]
        if len(diff.updated):
            write_metadata(target, held, documents, diff, dataset.version)
        if changed:
            replace_documents(
                target, held, build_block(index, target, documents.take(pa.array(changed)), rows, changed)
            )
    return len(rows)


def delete(index: IndexHandle, ids: Sequence[str], check: Check | None = None) -> int:
    """Deletes documents with all their chunks; returns the rows deleted. Unknown ids are no error. check: as above."""
    if isinstance(ids, str):
        raise ConfigError("delete: expected a list of ids, got one string")
    return delete_documents(target_of(index.snapshot, UPSERTED), ids, check)


def check_rows(index: IndexHandle, rows: Sequence[Mapping[str, Any]], place: str | None = None) -> None:
    """Raises ConfigError for the first row that cannot be written. place: names a single row in the message."""
    known = {"doc_id", "text", *index.snapshot.metadata_columns}
    seen: set[str] = set()
    for i, row in enumerate(rows):
        at = place or f"upsert: row {i}"
        for key in ("doc_id", "text"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise ConfigError(f"{at}: {key} must be a text that is not empty, got {row.get(key)!r}")
        unknown = sorted(row.keys() - known)
        if unknown:
            raise ConfigError(f"{at}: the index has no column {unknown[0]!r}; it has {', '.join(sorted(known))}")
        if row["doc_id"] in seen:
            raise ConfigError(f"{at}: doc_id {row['doc_id']!r} is there twice")
        seen.add(row["doc_id"])


def to_documents(target: Target, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Adds ids, metadata in the table's types, and both hashes to the documents."""
    metadata = {
        name: pa.array([row.get(name) for row in rows], target.schema.field(name).type) for name in target.metadata
    }
    text = pa.array([row["text"] for row in rows], pa.string())
    hashes = {"content_hash": hash_content(text), "metadata_hash": hash_metadata(metadata, len(rows))}
    return pa.table({"doc_id": pa.array([row["doc_id"] for row in rows], pa.string()), **metadata, **hashes})


def compare(documents: pa.Table, stored: pa.Table) -> PartitionDiff:
    """Compares documents with their rows in the table, by the rule that jobs use."""
    n = np.arange(len(documents))
    content, metadata = (as_keys(documents.column(c).combine_chunks()) for c in ("content_hash", "metadata_hash"))
    keys = hash_ids(documents.column("doc_id").combine_chunks())
    upserted = InputRows(keys, content, metadata, np.zeros(len(n), np.int32), n, n, np.ones(len(n), bool))
    return diff_partition(upserted, to_table_rows(stored.to_batches()))


def write_metadata(target: Target, lease: Lease, documents: pa.Table, diff: PartitionDiff, version: int) -> None:
    """Writes new metadata values to the rows of documents whose content is unchanged, in one commit."""
    rows = documents.take(pa.array(diff.updated[:, 1])).append_column(ADDRESS, pa.array(diff.update_addresses))
    updates = [update_metadata(target, version, i, part) for i, part in split_by_fragment(rows).items()]
    commit_updates(target, lease, [update for update in updates if update is not None], "metadata")


def build_block(
    index: IndexHandle, target: Target, documents: pa.Table, rows: Sequence[Mapping[str, Any]], chosen: Sequence[int]
) -> pa.Table:
    """Chunks and embeds the chosen rows, which `documents` describes, as a block for `write_block`."""
    texts = [rows[i]["text"] for i in chosen]
    spans = _chunk_spans(index, texts)
    chunks = [chunk for i, span in enumerate(spans) for chunk in _chunk_rows(rows[chosen[i]]["doc_id"], texts[i], span)]
    shared = documents.take(pa.array(np.repeat(np.arange(len(chosen)), [len(span) for span in spans])))
    computed = _embed_texts(index, [chunk["text"] for chunk in chunks])
    columns = {name: shared.column(name).combine_chunks() for name in shared.column_names} | computed
    arrays = {
        f.name: _as(columns[f.name] if f.name in columns else [chunk[f.name] for chunk in chunks], f.type)
        for f in target.schema
    }
    return pa.table(arrays | {"error": pa.nulls(len(chunks), pa.string())})


def _chunk_spans(index: IndexHandle, texts: Sequence[str]) -> list[IntArray]:
    """Returns the character spans (n, 2) of each document's chunks."""
    chunking = ChunkConfig(**index.identity.chunk)
    if chunking.mode == "whole":
        return [np.array([[0, len(text)]]) for text in texts]
    preparation = index.encoder_of(next(iter(index.identity.embedders))).embedder.preparation
    window = chunking.window(preparation.room)
    assert window is not None, "only mode whole cuts nothing"
    return cut_all_into_windows(texts, preparation.tokenizer, window)


def _chunk_rows(doc_id: str, text: str, spans: IntArray) -> Iterator[dict[str, Any]]:
    """Builds the columns that differ between the chunks of a document."""
    for i, (start, end) in enumerate(spans.tolist()):
        place = {"chunk_id": f"{doc_id}#{i}", "chunk_index": i, "chunk_count": len(spans), "source": UPSERTED}
        yield place | {"start": start, "end": end, "text": text[start:end]}


def _as(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _embed_texts(index: IndexHandle, texts: Sequence[str]) -> dict[str, Any]:
    """Embeds texts by every embedder of the index: the output columns, and the largest token counts."""
    columns: dict[str, Any] = {}
    for name, described in index.identity.embedders.items():
        batch = _embed_by_one(index, name, described, texts)
        columns |= batch.to_arrow(name)
        for count in ("n_tokens", "n_truncated"):
            columns[count] = np.maximum(columns.get(count, 0), getattr(batch, count))
    return columns


def _embed_by_one(index: IndexHandle, name: str, described: Mapping[str, Any], texts: Sequence[str]) -> EmbeddingBatch:
    embedder = index.encoder_of(name).embedder
    tokens = embedder.tokenise(texts, "passage")
    batch = embedder.embed_tokens(tokens, tuple(described["outputs"]))
    codec = get_codec(described["colbert"], from_metadata(index.snapshot.schema.metadata, name))
    sparse, pooling = described.get("sparse", "max"), str(described["colbert_pooling"])
    return encode_batch(batch, tokens, embedder.colbert_ids, described["dense"], sparse, codec, pooling)
