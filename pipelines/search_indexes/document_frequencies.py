"""Counts document frequencies, the rows in which each token of the model occurs, for IDF weights of query tokens.

A rare query token discriminates documents better than a full stop does. Late interaction weighs query tokens by
inverse document frequency, shared by the pieces of a word, lexical matching by IDF times the root of the head's
weight (benchmarks/RESULTS.md has the effect of both). `open_index(..., idf_weighting=False)` gives M3's own scores. The
counts come from a sample of rows, so they cost seconds at any size, and lie in a table of their own, so that they can
be replaced without touching the documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.outputs import Array, EmbeddingBatch, IntArray, SparseVectors
from actors.spec import EmbedderSpec
from pipelines.search_indexes.content_sample import sample_by_content
from pipelines.store.datasets import open_dataset
from pipelines.store.schema import generation, table_uri
from pipelines.store.table import Snapshot, open_table

SAMPLE_ROWS = 50_000
STALE_SHARE = 0.05
ROWS_KEY = b"tridex.rows"
FRAGMENT_KEY = b"tridex.fragment"
"""Schema metadata: rows that were counted, and the newest fragment that the table had then."""
GENERATION_KEY = b"tridex.generation"
"""Schema metadata: of the embedder's name (`store.schema.generation`); absent: 0."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DocumentFrequencies:
    """Holds counts[t], the number of `rows` rows that contain token t."""

    rows: int
    counts: npt.NDArray[np.int64]

    def idf(self, token_ids: Array) -> Floats:
        """Computes BM25's IDF, log(1 + (rows - count + .5) / (count + .5)); a token outside the counts has count 0."""
        known = token_ids < len(self.counts)
        count = np.where(known, self.counts[np.where(known, token_ids, 0)], 0)
        return np.log1p((self.rows - count + 0.5) / (count + 0.5)).astype(np.float32)


def apply_idf(
    encoded: EmbeddingBatch, words: tuple[IntArray, IntArray] | None, statistics: DocumentFrequencies
) -> tuple[EmbeddingBatch, Floats | None]:
    """Weights queries by IDF: lexical weights w become sqrt(w) x IDF, ColBERT vectors weigh IDF / sqrt(pieces).

    A linear head cannot hold IDF, and in a query of ten words one wrong weight decides: the root takes the edge off.
    words: see `Encoder.words`. Each piece of a rare word is rare, so that a word of four would count four times.
    """
    if encoded.sparse is not None:
        lexical = encoded.sparse
        weights = np.sqrt(lexical.weights) * statistics.idf(lexical.token_ids)
        encoded = replace(encoded, sparse=SparseVectors(lexical.offsets, lexical.token_ids, weights))
    return encoded, None if words is None else (statistics.idf(words[0]) / np.sqrt(words[1])).astype(np.float32)


def document_frequencies_table(name: str) -> str:
    return f"tokens_{name}"


def count_document_frequencies(
    snapshot: Snapshot, tokenizer: Any, max_length: int, sample: int = SAMPLE_ROWS
) -> DocumentFrequencies:
    """Counts over at most `sample` rows, chosen by content hash, each cut to the model's length."""
    rows = np.sort(sample_by_content(snapshot, sample))
    counts = np.zeros(0, np.int64)
    for part in np.array_split(rows, max(1, len(rows) // 4096)):
        tokens = tokenizer.tokenise(snapshot.take(part, ["text"])["text"].to_pylist(), max_length)
        owner = np.repeat(np.arange(len(tokens)), tokens.lengths)
        once = np.unique(owner << 32 | tokens.ids.astype(np.int64)) & 0xFFFFFFFF
        found = np.bincount(once, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return DocumentFrequencies(len(rows), counts)


def update_document_frequencies(
    uri: str, table: str = "documents", storage_options: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Recounts for every embedder with token outputs if more than 5% of the rows are newer than the counts.

    Returns the rows counted for each embedder that was counted. Run it when a job has ended: counts that lag behind
    the table cost accuracy, never correctness, and a job that edits a few rows should not tokenise 50,000.
    """
    snapshot = open_table(uri, table, storage_options)
    counted: dict[str, int] = {}
    for name, embedder in snapshot.identity.embedders.items():
        if {"sparse", "colbert"} & set(embedder["outputs"]) and len(snapshot) and _is_stale(snapshot, name):
            from actors.text.tokenizer import load_tokenizer

            statistics = count_document_frequencies(
                snapshot, load_tokenizer(EmbedderSpec.from_identity(embedder)), embedder["passage_max_length"]
            )
            write_document_frequencies(snapshot, name, statistics)
            counted[name] = statistics.rows
    return counted


def _is_stale(snapshot: Snapshot, name: str) -> bool:
    counts = _open_counts(snapshot, name)
    if counts is None or FRAGMENT_KEY not in counts.schema.metadata:
        return True
    newest = int(counts.schema.metadata[FRAGMENT_KEY])
    new: int = sum(f.count_rows() for f in snapshot.dataset.get_fragments() if f.fragment_id > newest)
    return new > STALE_SHARE * len(snapshot)


def write_document_frequencies(snapshot: Snapshot, name: str, statistics: DocumentFrequencies) -> None:
    seen = np.flatnonzero(statistics.counts)
    newest = max((f.fragment_id for f in snapshot.dataset.get_fragments()), default=-1)
    schema = pa.schema(
        [pa.field("token", pa.uint32()), pa.field("rows", pa.uint32())],
        metadata={
            ROWS_KEY: str(statistics.rows).encode(),
            FRAGMENT_KEY: str(newest).encode(),
            GENERATION_KEY: str(generation(snapshot.schema.metadata, name)).encode(),
        },
    )
    columns = [pa.array(seen, pa.uint32()), pa.array(statistics.counts[seen], pa.uint32())]
    lance.write_dataset(
        pa.table(columns, schema=schema),
        table_uri(snapshot.uri, document_frequencies_table(name)),
        mode="overwrite",
        storage_options=dict(snapshot.storage_options) or None,
    )


def _open_counts(snapshot: Snapshot, name: str) -> lance.LanceDataset | None:
    """Opens the counts of this embedder; None if there are none, or they were of one that was dropped."""
    dataset = open_dataset(table_uri(snapshot.uri, document_frequencies_table(name)), snapshot.storage_options)
    counted = None if dataset is None else int((dataset.schema.metadata or {}).get(GENERATION_KEY, 0))
    return dataset if counted == generation(snapshot.schema.metadata, name) else None


def read_document_frequencies(snapshot: Snapshot, name: str) -> DocumentFrequencies | None:
    """Reads the counts; None if there are none yet, and query tokens then all weigh the same."""
    dataset = _open_counts(snapshot, name)
    if dataset is None:
        return None
    table = dataset.to_table()
    tokens, rows = table["token"].to_numpy(), table["rows"].to_numpy()
    counts = np.zeros(int(tokens.max(initial=0)) + 1, np.int64)
    counts[tokens] = rows
    return DocumentFrequencies(int(dataset.schema.metadata[ROWS_KEY]), counts)
