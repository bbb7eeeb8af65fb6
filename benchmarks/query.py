"""Latency and recall of a search without query encoding, on a synthetic index, beside LanceDB's own vector search.

Documents are drawn around topics, so that near neighbours exist: a dense vector of 384 dimensions, about 100 sparse
tokens of a Zipf vocabulary of 250,002, and 100 ColBERT vectors of one bit a dimension. Queries are noisy copies of
documents (16 ColBERT vectors, 12 tokens). The reference scores every document by every channel. Times are CPU seconds
of the calling thread as well as wall time, because the second is worth little on a shared machine. Run:

    OMP_NUM_THREADS=1 python benchmarks/query.py FOLDER --rows 200000 [--keep]
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa

from actors.outputs import EmbeddingBatch, MultiVectors, SparseVectors, offsets_of
from pipelines.retrieval import candidates as channels
from pipelines.retrieval.candidates import Queries
from pipelines.retrieval.fusion import Rule, fuse
from pipelines.retrieval.indexes import update_vector_indexes
from pipelines.retrieval.kernels import top_n
from pipelines.retrieval.query import Index, open_index
from pipelines.store.codecs import encode
from pipelines.store.postings import update_postings
from pipelines.store.schema import Identity, documents_schema

DIM, TOKENS, VECTORS, VOCABULARY = 384, 100, 100, 250_002
VARIANTS = 30
"""ColBERT vectors drawn around one topic; drawing each of a hundred million anew would take most of an hour."""
RULE = Rule("weighted", {"dense": 1.0, "sparse": 0.3, "colbert": 1.0})
CHANNELS = ("dense", "sparse", "colbert")
NAME = "synthetic"


class Source:
    """Draws documents around topics."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.topics = self.rng.standard_normal((2000, DIM)).astype(np.float32)
        self.codes = encode(self.noisy(np.repeat(self.topics, VARIANTS, axis=0), 0.8), "sign")
        share = 1 / np.arange(1, VOCABULARY + 1)
        self.zipf = np.cumsum(share / share.sum())

    def noisy(self, base: np.ndarray, noise: float) -> np.ndarray:
        x = base + noise * self.rng.standard_normal(base.shape, np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def documents(self, n: int) -> EmbeddingBatch:
        topic = self.rng.integers(0, len(self.topics), n)
        ids = np.searchsorted(self.zipf, self.rng.random((n, TOKENS + 28)))
        ids[:, :10] = 20_000 + topic[:, None] * 100 + self.rng.integers(0, 100, (n, 10))
        ids.sort(axis=1)
        new = np.ones(ids.shape, bool)
        new[:, 1:] = ids[:, 1:] != ids[:, :-1]
        kept = ids[new].astype(np.uint32)
        weights = (self.rng.gamma(2.0, 0.1, len(kept)) * np.log(2 + kept / 10)).astype(np.float32) / 4 + 1e-3
        words = (topic[:, None] * 7 + self.rng.integers(0, 40, (n, VECTORS))) % len(self.topics)
        codes = self.codes[(words * VARIANTS + self.rng.integers(0, VARIANTS, words.shape)).ravel()]
        return EmbeddingBatch(
            self.noisy(self.topics[topic], 1.0),
            SparseVectors(offsets_of(new.sum(axis=1)), kept, weights),
            MultiVectors(np.arange(n + 1) * VECTORS, codes),
            np.full(n, TOKENS, np.int32),
            np.zeros(n, np.int32),
        )


def schema() -> pa.Schema:
    described = {
        "model": "synthetic", "dim": DIM, "colbert_dim": DIM, "outputs": list(CHANNELS),
        "dense": "float32", "colbert": "sign", "colbert_pooling": "none",
    }  # fmt: skip
    return documents_schema(Identity({"mode": "whole"}, "{text}", {NAME: described}))


def batches(rows: int, kind: pa.Schema, step: int = 5_000) -> Iterator[pa.RecordBatch]:
    source = Source()
    for first in range(0, rows, step):
        n = min(step, rows - first)
        batch, ids = source.documents(n), [f"d{i}" for i in range(first, first + n)]
        columns = {
            "doc_id": pa.array(ids), "chunk_id": pa.array(ids), "text": pa.array(ids), **batch.to_arrow(NAME),
        }  # fmt: skip
        yield pa.record_batch(
            [columns[f.name] if f.name in columns else pa.nulls(n, f.type) for f in kind], schema=kind
        )


def build(folder: Path, rows: int) -> None:
    kind = schema()
    start = time.perf_counter()
    lance.write_dataset(batches(rows, kind), str(folder / "documents.lance"), schema=kind, max_rows_per_file=100_000)
    print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
    for what, update in (("postings", update_postings), ("vector index", update_vector_indexes)):
        start = time.perf_counter()
        print(f"{what}: {update(str(folder))} in {time.perf_counter() - start:.0f} s", flush=True)


def queries_from(index: Index, n: int) -> Queries:
    """Noisy parts of n documents."""
    rng = np.random.default_rng(5)
    rows = rng.choice(len(index), n, replace=False)
    dense = np.asarray(index.stored.take("dense", rows))
    dense = dense + 0.6 * rng.standard_normal(dense.shape).astype(np.float32) / np.sqrt(DIM)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    sparse, colbert = index.stored.take("sparse", rows), index.stored.take("colbert", rows)
    assert isinstance(sparse, SparseVectors)
    assert isinstance(colbert, MultiVectors)
    chosen = [np.sort(rng.choice(len(sparse.row(i)[0]), 12, replace=False)) for i in range(n)]
    picked = [rng.choice(VECTORS, 16, replace=False) for _ in range(n)]
    signs = [np.unpackbits(colbert.row(i)[p], axis=1, bitorder="little") * 2.0 - 1 for i, p in enumerate(picked)]
    vectors = np.concatenate(signs).astype(np.float32) + 0.7 * rng.standard_normal((16 * n, DIM)).astype(np.float32)
    encoded = EmbeddingBatch(
        dense.astype(np.float32),
        SparseVectors(
            np.arange(n + 1) * 12,
            np.concatenate([sparse.row(i)[0][c] for i, c in enumerate(chosen)]),
            np.concatenate([sparse.row(i)[1][c] for i, c in enumerate(chosen)]),
        ),
        MultiVectors(np.arange(n + 1) * 16, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),
        np.full(n, 16, np.int32),
        np.zeros(n, np.int32),
    )
    return Queries(tuple(f"q{i}" for i in range(n)), encoded)


def one(queries: Queries, i: int) -> Queries:
    assert queries.encoded is not None
    return Queries((queries.texts[i],), queries.encoded.take(np.array([i])))


def timed(name: str, n: int, run: Callable[[int], Any]) -> None:
    """p50 / p95 / p99 of wall time, and p50 of the CPU time of this thread, in ms."""
    wall, cpu = [], []
    for i in range(n):
        a, b = time.perf_counter(), time.thread_time()
        run(i)
        wall.append(time.perf_counter() - a)
        cpu.append(time.thread_time() - b)
    p50, p95, p99 = (1e3 * float(np.quantile(wall, q)) for q in (0.5, 0.95, 0.99))
    rate = n / sum(wall)
    print(f"{name:34} {p50:8.2f} {p95:8.2f} {p99:8.2f} {1e3 * np.median(cpu):9.2f} {rate:8.1f}", flush=True)


def hybrid(index: Index, query: Queries, k: int = 100) -> np.ndarray:
    (found,) = index.candidates(query, CHANNELS, 200)
    places, _ = top_n(fuse(found.scores, RULE).astype(np.float32), k)
    return found.positions[places]


def exhaustive(index: Index, query: Queries, k: int = 100) -> np.ndarray:
    everything = np.arange(len(index))
    scores = {c: index.channels[c].scores(query, 0, everything) for c in CHANNELS}
    return top_n(fuse(scores, RULE).astype(np.float32), k)[0]


def measure(folder: Path, n: int, exact: int, memory: int) -> None:
    channels.SCANNED_ROWS = 0  # a small index is searched as a large one is: ColBERT ranks what the others bring
    index = open_index(folder, memory=memory, embedder=SimpleNamespace(identity=dict))  # type: ignore[arg-type]
    print(index)
    queries = queries_from(index, n)
    start = time.perf_counter()
    hybrid(index, one(queries, 0))
    print(f"first query (columns loaded, kernels compiled): {time.perf_counter() - start:.1f} s")
    candidates = [index.candidates(one(queries, i), CHANNELS, 200)[0].positions for i in range(n)]
    print(f"{'stage, one query at a time, ms':34} {'p50':>8} {'p95':>8} {'p99':>8} {'cpu p50':>9} {'queries/s':>8}")
    for channel in ("dense", "sparse"):
        timed(f"{channel}: best 200", n, lambda i, c=channel: index.channels[c].top(one(queries, i), 200, None))
    for channel in CHANNELS:
        search = index.channels[channel]
        timed(
            f"{channel}: exact, {len(candidates[0])} candidates",
            n,
            lambda i, s=search: s.scores(queries, i, candidates[i]),
        )
    timed("three-channel hybrid, best 100", n, lambda i: hybrid(index, one(queries, i)))
    table = lancedb.connect(str(folder)).open_table("documents")
    dense = queries.dense()
    timed(
        "LanceDB vector search, refine 10", n,
        lambda i: table.search(dense[i], vector_column_name=f"{NAME}_dense").metric("dot").limit(200).refine_factor(10)
        .select(["doc_id"]).to_arrow(),
    )  # fmt: skip
    shared = [
        len(np.intersect1d(hybrid(index, one(queries, i)), exhaustive(index, one(queries, i)))) for i in range(exact)
    ]
    print(f"recall@100 of the hybrid against exhaustive scoring, {exact} queries: {np.mean(shared) / 100:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--exact", type=int, default=10)
    parser.add_argument("--memory", type=int, default=12 * 2**30)
    parser.add_argument("--keep", action="store_true", help="Use the index that is in the folder already.")
    arguments = parser.parse_args()
    if not arguments.keep:
        shutil.rmtree(arguments.folder, ignore_errors=True)
        build(arguments.folder, arguments.rows)
    measure(arguments.folder, arguments.queries, arguments.exact, arguments.memory)


if __name__ == "__main__":
    main()
