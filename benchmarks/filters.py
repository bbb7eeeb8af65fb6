"""What a filter costs: searches under conditions of 90% to .01% of the rows, first use and next, beside none.

The index is synthetic and written through the store: unit vectors around topics, sparse rows and texts of words by
Zipf's law, one-bit ColBERT vectors near the row's own vector, two metadata columns (`part`, a number from 0 to 9,999,
and `lang`, one of ten). Times are CPU time of all threads; only ratios within one run mean anything. Recall: of the
exact best 100 of the dense channel among the allowed rows, those that the index finds. Run:

    OMP_NUM_THREADS=1 python -m benchmarks.filters FOLDER --rows 500000 [--no-scalar-indexes]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from actors.outputs import EmbeddingBatch, MultiVectors, SparseVectors, offsets_of
from pipelines.config import search_options
from pipelines.retrieval.create import create_index
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.index import Index, open_index
from pipelines.retrieval.queries import EncodedQueries
from pipelines.search_indexes import scalar_indexes
from pipelines.search_indexes.full_text import update_full_text
from pipelines.search_indexes.update import update_indexes
from pipelines.store.schema import Target
from pipelines.store.table import sql_in

DIM, TOPICS, WORDS, TOKENS, VECTORS, BATCH = 384, 2000, 20_000, 20, 12, 20_000
CONDITIONS = {
    "90%": ("part < 9000", "part >= 1000"),
    "50%": ("part < 5000", "lang IN ('l0', 'l2', 'l4', 'l6', 'l8')"),
    "10%": ("lang = 'l3'", "part >= 9000"),
    "1%": ("part < 100", "part >= 9900"),
    ".01%": ("part = 7", "part = 8000"),
}


def rows_of_words(rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[str]]:
    """Draws TOKENS distinct tokens per row by Zipf's law, and a text of them."""
    tokens = np.minimum(rng.zipf(1.25, (n, 3 * TOKENS)) + 1000, WORDS + 999)
    rows = [np.unique(row)[:TOKENS] for row in tokens]
    return np.array(rows, object), [" ".join(f"w{t}" for t in row) for row in rows]


def draw(rng: np.random.Generator, topics: np.ndarray, n: int) -> tuple[EmbeddingBatch, list[str]]:
    """Draws the outputs and texts of n rows."""
    dense = topics[rng.integers(0, TOPICS, n)] + rng.standard_normal((n, DIM), np.float32) * np.float32(0.04)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    rows, texts = rows_of_words(rng, n)
    lengths = np.array([len(r) for r in rows])
    sparse = SparseVectors(
        offsets_of(lengths),
        np.concatenate(list(rows)).astype(np.uint32),
        rng.random(lengths.sum(), np.float32) + np.float32(0.1),
    )
    noise = rng.standard_normal((n * VECTORS, DIM), np.float32) * np.float32(0.05)
    bits = np.packbits(np.repeat(dense, VECTORS, axis=0) + noise > 0, 1)
    colbert = MultiVectors(offsets_of(np.full(n, VECTORS)), bits)
    return EmbeddingBatch(dense, sparse, colbert, lengths.astype(np.int32), np.zeros(n, np.int32)), texts


def as_array(values: Any, n: int, kind: pa.DataType) -> pa.Array:
    """Casts values to a column of a type; None becomes n nulls."""
    if values is None:
        return pa.nulls(n, kind)
    return (values if isinstance(values, pa.Array) else pa.array(values)).cast(kind)


def build(folder: Path, rows: int) -> None:
    """Writes the table and builds every search index."""
    made = create_index(folder, metadata={"part": pa.int64(), "lang": pa.string()})
    schema, name, rng = made.snapshot.schema, made.name, np.random.default_rng(0)
    topics = rng.standard_normal((TOPICS, DIM), np.float32)
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, BATCH):
            n = min(BATCH, rows - first)
            outputs, texts = draw(rng, topics, n)
            ids = [f"p{i}" for i in range(first, first + n)]
            part = rng.integers(0, 10_000, n)
            columns = {
                "doc_id": ids,
                "chunk_id": ids,
                "text": texts,
                "content_hash": [rng.bytes(16) for _ in range(n)],
                "part": part,
                "lang": [f"l{p % 10}" for p in part],
                **outputs.to_arrow(name),
            }
            yield pa.record_batch([as_array(columns.get(f.name), n, f.type) for f in schema], schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lance.write_dataset(reader, str(folder / "documents.lance"), mode="append", max_rows_per_file=100_000)
    for what, run in {
        "full text": lambda: update_full_text(Target(str(folder), schema)),
        "vectors, postings, filter columns": lambda: update_indexes(str(folder)),
    }.items():
        start = time.perf_counter()
        run()
        print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)


def draw_queries(index: Index, n: int) -> list[EncodedQueries]:
    """Takes rows of the index, with noise, as queries of five tokens."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(index), n)
    dense = index.column_cache.take("dense", rows)
    queries = []
    for vector in np.asarray(dense):
        noisy = vector + rng.standard_normal(DIM).astype(np.float32) * np.float32(0.03)
        noisy /= np.linalg.norm(noisy)
        ids, _ = rows_of_words(rng, 1)
        tokens = np.asarray(ids[0])[rng.permutation(len(ids[0]))[:5]]
        near = noisy + rng.standard_normal((8, DIM)).astype(np.float32) * np.float32(0.03)
        batch = EmbeddingBatch(
            noisy[None],
            SparseVectors(offsets_of(np.array([5])), np.sort(tokens).astype(np.uint32), np.ones(5, np.float32)),
            MultiVectors(offsets_of(np.array([8])), near / np.linalg.norm(near, axis=1, keepdims=True)),
            np.array([5], np.int32),
            np.array([0], np.int32),
        )
        queries.append(EncodedQueries((" ".join(f"w{t}" for t in tokens),), batch))
    return queries


def timed_search(index: Index, query: EncodedQueries, where: str | None, k: int = 10) -> float:
    """Returns the CPU seconds of a hybrid search, all threads, from the check of its options to the hits."""
    start = time.process_time()
    index.answer(query, index.request(search_options(k=k, where=where)))
    return time.process_time() - start


def recall(index: Index, queries: list[EncodedQueries], allowed: Filter) -> float:
    """Of the exact best 100 of the dense channel among the allowed rows: the share that the search finds."""
    dense, shares = index.channels["dense"], []
    for query in queries:
        exact = dense.top(query, 100, allowed, exact=True)[0].positions
        found = dense.top(query, 200, allowed)[0].positions
        shares.append(len(np.intersect1d(exact, found)) / max(1, len(exact)))
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--no-scalar-indexes", action="store_true", help="Builds none, as in an older index.")
    given = parser.parse_args()
    if given.no_scalar_indexes:
        scalar_indexes.NO_INDEX_BELOW = 10**12
    if not (given.folder / "documents.lance").exists():
        build(given.folder, given.rows)
    index = open_index(given.folder, memory=8 * 2**30)
    print(index, index.warm(), sorted(index.snapshot.indexes()))
    queries = draw_queries(index, given.queries)
    for query in queries[:5]:
        timed_search(index, query, None)
    ids = [f"p{i}" for i in np.random.default_rng(2).permutation(given.rows)]
    conditions = {**CONDITIONS, "50,000 ids": (sql_in("doc_id", ids[:50_000]), sql_in("doc_id", ids[-50_000:]))}
    print(f"{'CPU ms':12}     none    first     next  ratio first  ratio next    mask  recall")
    for name, (first, second) in conditions.items():
        none, cold, warm = [], [], []
        for i, query in enumerate(queries):
            none.append(timed_search(index, query, None))
            where = (first, second)[i % 2]
            cold.append(timed_search(index, query, where))  # the last condition alone is kept
            warm.append(timed_search(index, query, where))
        start = time.process_time()
        mask = index.snapshot.matching_mask(first)
        mask_ms = 1e3 * (time.process_time() - start)
        found = recall(index, queries[:8], Filter(mask, index.snapshot.rows))
        a, b, c = (1e3 * float(np.median(x)) for x in (none, cold, warm))
        print(f"{name:12} {a:8.1f} {b:8.1f} {c:8.1f} {b / a:12.2f} {c / a:11.2f} {mask_ms:7.1f} {found:7.4f}")


if __name__ == "__main__":
    main()
