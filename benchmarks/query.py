"""Latency, throughput, memory and recall of a three-channel search without query encoding, beside other engines.

The index is a real one, or one recombined from real ones (`benchmarks/passages.py`); queries are real questions,
encoded by the packaged model before the clock runs. Hybrid: M3's weighted sum of dense, sparse and ColBERT, or with
--default the index's own rule, best 100 rows. The reference for recall scores every row by every channel. LanceDB
answers with its own hybrid: its vector index, its full-text index over the same texts, reciprocal ranks. Peers that are
found in --peers (a site-packages folder) get the dense and the sparse vectors. Run:

    OMP_NUM_THREADS=1 python -m benchmarks.query INDEX QUERIES.jsonl [--base INDEX --rows 1000000] [--local FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import lance
import lancedb
import numpy as np
import pyarrow as pa
from lancedb.rerankers import RRFReranker

from actors.outputs import Array, EmbeddingBatch, SparseVectors
from benchmarks.passages import Sentences, draw
from pipelines.config import Channel, search_options
from pipelines.retrieval.candidates import colbert_oversampling
from pipelines.retrieval.channels.bm25 import Bm25Channel
from pipelines.retrieval.channels.colbert import ColbertChannel
from pipelines.retrieval.fusion import FusionRule, fuse
from pipelines.retrieval.index import Index, open_index
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.scoring.kernels import top_n
from pipelines.search_indexes.full_text import update_full_text
from pipelines.search_indexes.update import update_indexes
from pipelines.store.schema import Identity, Target, documents_schema

M3_RULE = FusionRule("weighted", {"dense": 1.0, "sparse": 0.3, "colbert": 1.0})
N, K = 200, 100


def build(folder: Path, rows: int, bases: Sequence[str]) -> None:
    """A recombined index with all that `tridex optimize` makes; a text is the words of the passage's sparse row."""
    indexes = [open_index(base, memory=8 * 2**30) for base in bases]
    name, sentences = indexes[0].name, Sentences.of(indexes)
    words = np.array([word.removeprefix("##") for word in indexes[0].encoder.embedder.tokenizer.names], object)
    kind = documents_schema(Identity({"mode": "whole"}, "{text}", {name: dict(indexes[0].identity.embedders[name])}))

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        for batch in draw(sentences, rows):
            n = len(batch.n_tokens)
            ids = [f"p{i}" for i in range(first, first + n)]
            columns = {"doc_id": ids, "chunk_id": ids, "text": texts_of(batch, words), **batch.to_arrow(name)}
            arrays = [
                (c if isinstance(c, pa.Array) else pa.array(c)).cast(f.type) if c is not None else pa.nulls(n, f.type)
                for f in kind
                for c in [columns.get(f.name)]
            ]
            first += n
            yield pa.record_batch(arrays, schema=kind)

    lance.write_dataset(batches(), str(folder / "documents.lance"), schema=kind, max_rows_per_file=100_000)
    update_full_text(Target(str(folder), kind))
    update_indexes(str(folder))


def texts_of(passages: EmbeddingBatch, words: Array) -> list[str]:
    assert passages.sparse is not None
    return [" ".join(words[passages.sparse.row(i)[0]]) for i in range(len(passages.n_tokens))]


def one(queries: EncodedQueries, i: int) -> EncodedQueries:
    weights = None
    if queries.token_weights is not None and queries.encoded is not None and queries.encoded.colbert is not None:
        offsets = queries.encoded.colbert.offsets
        weights = queries.token_weights[offsets[i] : offsets[i + 1]]
    assert queries.encoded is not None
    return EncodedQueries((queries.texts[i],), queries.encoded.take(np.array([i])), weights)


def quantiles(seconds: Sequence[float]) -> str:
    return "".join(f"{1e3 * float(np.quantile(seconds, q)):9.2f}" for q in (0.5, 0.95, 0.99))


def timed(name: str, n: int, run: Callable[[int], Any], reference: float | None = None) -> float:
    """Prints p50 / p95 / p99 of wall time in ms, p50 of the thread's CPU time, queries/s; returns the p50."""
    wall, cpu = [], []
    run(0)
    for i in range(n):
        a, b = time.perf_counter(), time.thread_time()
        run(i)
        wall.append(time.perf_counter() - a)
        cpu.append(time.thread_time() - b)
    p50 = float(np.median(wall))
    ratio = f"{p50 / reference:7.2f}" if reference else "      -"
    print(f"{name:44} {ratio} {quantiles(wall)} {1e3 * np.median(cpu):9.2f} {n / sum(wall):9.1f}", flush=True)
    return p50


def hybrid(index: Index, query: EncodedQueries, rule: FusionRule) -> Array:
    (found,) = index.candidates(query, rule.weights, N, sampled=rule.fusion == "zscore", rule=rule)
    places, _ = top_n(fuse(found.scores, rule, found.sample).astype(np.float32), K)
    return found.positions[places]


def all_scores(index: Index, queries: EncodedQueries, i: int, channel: Channel) -> Array:
    search, rows = index.channels[channel], len(index)
    if not isinstance(search, Bm25Channel):
        return search.scores(queries, i, np.arange(rows))
    return search.top(one(queries, i), rows, None)[0].at(np.arange(rows))


def recall(index: Index, queries: EncodedQueries, n: int, rule: FusionRule) -> None:
    """Of the best 100 by exhaustive scoring: how many the hybrid has, and how many candidates of other sizes hold."""
    sizes = (200, 400, 800, 1600, 3200)
    shared, ten, ties = [], [], []
    held: dict[tuple[str, int], list[int]] = {}
    for i in range(n):
        scores = {c: all_scores(index, queries, i, c) for c in rule.weights}
        fused = fuse(scores, rule, {c: s[index.candidate_generator.sample] for c, s in scores.items()}).astype(
            np.float32
        )
        best, values = top_n(fused, K)
        answer = hybrid(index, one(queries, i), rule)
        shared.append(len(np.intersect1d(best, answer)))
        ties.append(int((fused[answer] >= values[-1] - 1e-3).sum()))
        ten.append(len(np.intersect1d(best[:10], answer)))
        for size in sizes:
            found, names = np.zeros(0, np.int64), []
            for channel in rule.weights:
                found, names = np.union1d(found, top_n(scores[channel], size)[0]), [*names, channel]
                held.setdefault((" + ".join(names), size), []).append(len(np.intersect1d(best, found)))
    print(
        f"recall@100 {np.mean(shared) / K:.4f}, worst query {min(shared) / K:.2f}, "
        f"of the best 10 {np.mean(ten) / 10:.4f}"
    )
    print(f"within 0.001 of the 100th score: {np.mean(ties) / K:.4f} ({n} queries)")
    for (name, size), values in held.items():
        print(f"  exact best {size:5} of {name:24} hold {np.mean(values) / K:.4f}")


def stages(index: Index, queries: EncodedQueries, n: int, rule: FusionRule) -> float:
    """Every stage of the hybrid, then the whole, with and without texts."""
    colbert = cast(ColbertChannel, index.channels["colbert"])
    others = [c for c in rule.weights if c != "colbert"]
    wide = {c: N if colbert.scans else N * colbert_oversampling(c, rule) for c in others}
    singles = [one(queries, i) for i in range(n)]
    tops = [[index.channels[c].top(q, wide[c], None)[0].positions for c in others] for q in singles]
    brought = [np.unique(np.concatenate(positions)) for positions in tops]
    sampled = rule.fusion == "zscore"
    found = [index.candidates(q, rule.weights, N, sampled=sampled, rule=rule)[0].positions for q in singles]
    sizes = (np.mean([len(f) for f in rows]) for rows in (brought, found))
    print("{:.0f} candidates a query, {:.0f} of them scored exactly".format(*sizes))
    print(f"{'one query at a time':44}   ratio       p50      p95      p99   cpu p50  queries/s")
    whole = timed("hybrid, best 100", n, lambda i: hybrid(index, singles[i], rule))
    for channel in others:
        search = index.channels[channel]
        size = wide[channel]
        timed(f"  {channel}: best {size}", n, lambda i, s=search, w=size: s.top(singles[i], w, None), whole)
    for channel in rule.weights:
        search = index.channels[channel]
        rows = found if channel == "colbert" else brought
        timed(f"  {channel}: exact scores", n, lambda i, s=search, r=rows: s.scores(singles[i], 0, r[i]), whole)
    timed("  colbert: approximate scores", n, lambda i: colbert.approximate_scores(singles[i], 0, brought[i]), whole)
    request = index.request(search_options(k=K, fusion=rule.fusion, weights=dict(rule.weights), candidates=N))
    timed("hybrid with texts of the best 100", n, lambda i: index.answer(singles[i], request), whole)
    for threads in (1, 2, 4):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(lambda i: hybrid(index, singles[i % n], rule), range(3 * n)))
            print(f"hybrid, {threads} threads: {3 * n / (time.perf_counter() - start):.1f} queries/s", flush=True)
    return whole


def lancedb_hybrid(index: Index, queries: EncodedQueries, n: int, reference: float) -> None:
    table = lancedb.connect(index.snapshot.uri).open_table("documents")
    column, dense = index.column_cache.column("dense"), queries.dense()

    def vector(i: int) -> Any:
        search = table.search(dense[i], vector_column_name=column).metric("dot").limit(N).select(["doc_id"])
        return search.refine_factor(10).to_arrow()

    def both(i: int) -> Any:
        search = table.search(query_type="hybrid", vector_column_name=column).vector(dense[i]).text(queries.texts[i])
        return search.metric("dot").rerank(RRFReranker()).limit(K).select(["doc_id"]).to_arrow()

    timed("LanceDB vector search, refine 10", n, vector, reference)
    if "text" in index.snapshot.indexes():
        timed("LanceDB hybrid (vector, full text, RRF)", n, both, reference)


def _sparse(index: Index) -> SparseVectors:
    rows = index.column_cache.take("sparse", np.arange(len(index)))
    assert isinstance(rows, SparseVectors)
    return rows


def qdrant(index: Index, queries: EncodedQueries, n: int, reference: float) -> None:
    """Qdrant's local mode: dense and sparse, reciprocal ranks."""
    from qdrant_client import QdrantClient, models  # type: ignore[import-not-found]

    client, rows, dense = (
        QdrantClient(":memory:"),
        _sparse(index),
        index.column_cache.take("dense", np.arange(len(index))),
    )
    client.create_collection(
        "d",
        vectors_config={"dense": models.VectorParams(size=dense.shape[1], distance=models.Distance.DOT)},
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )
    for first in range(0, len(index), 5000):
        points = [
            models.PointStruct(
                id=i,
                vector={
                    "dense": dense[i].tolist(),
                    "sparse": models.SparseVector(indices=a.tolist(), values=b.tolist()),
                },
            )
            for i in range(first, min(first + 5000, len(index)))
            for a, b in [rows.row(i)]
        ]
        client.upsert("d", points)

    def ask(i: int) -> Any:
        ids, weights = queries.sparse(i)
        sparse = models.SparseVector(indices=ids.tolist(), values=weights.tolist())
        legs = [
            models.Prefetch(query=queries.dense()[i].tolist(), using="dense", limit=N),
            models.Prefetch(query=sparse, using="sparse", limit=N),
        ]
        return client.query_points("d", prefetch=legs, query=models.FusionQuery(fusion=models.Fusion.RRF), limit=K)

    timed("Qdrant, local mode (dense, sparse, RRF)", min(n, 10), ask, reference)


def milvus(index: Index, queries: EncodedQueries, n: int, reference: float) -> None:
    """Milvus Lite: dense and sparse, reciprocal ranks."""
    from pymilvus import AnnSearchRequest, DataType, MilvusClient, RRFRanker  # type: ignore[import-not-found]

    path = Path(f"/tmp/milvus-{os.getpid()}.db")
    client, rows, dense = (
        MilvusClient(str(path)),
        _sparse(index),
        index.column_cache.take("dense", np.arange(len(index))),
    )
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dense.shape[1])
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    made = client.prepare_index_params()
    made.add_index("dense", index_type="AUTOINDEX", metric_type="IP")
    made.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection("d", schema=schema, index_params=made)
    for first in range(0, len(index), 2000):
        client.insert(
            "d",
            [
                {"id": i, "dense": dense[i], "sparse": dict(zip(a.tolist(), b.tolist(), strict=True))}
                for i in range(first, min(first + 2000, len(index)))
                for a, b in [rows.row(i)]
            ],
        )

    def ask(i: int) -> Any:
        sparse = dict(zip(*(x.tolist() for x in queries.sparse(i)), strict=True))
        legs = [
            AnnSearchRequest([queries.dense()[i]], "dense", {"metric_type": "IP"}, limit=N),
            AnnSearchRequest([sparse], "sparse", {"metric_type": "IP"}, limit=N),
        ]
        return client.hybrid_search("d", legs, RRFRanker(), limit=K)

    timed("Milvus Lite (dense, sparse, RRF)", n, ask, reference)


def bm25s(index: Index, queries: EncodedQueries, n: int, reference: float) -> None:
    """bm25s: words alone."""
    import bm25s as engine  # type: ignore[import-not-found]

    table = index.snapshot.dataset.to_table(columns=["text"])
    made = engine.BM25()
    made.index(engine.tokenize(table["text"].to_pylist(), show_progress=False), show_progress=False)
    asked = [engine.tokenize(text, show_progress=False) for text in queries.texts]
    timed("bm25s (words alone)", n, lambda i: made.retrieve(asked[i], k=K, show_progress=False), reference)


def memory() -> str:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(fields[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile"))
    return f"{own:.2f} GiB of its own, {mapped:.2f} GiB of mapped files"


def forget(*folders: Path) -> None:
    """Drops files from the page cache, so that the next read is a cold one."""
    os.sync()
    for path in (p for folder in folders for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(index: str, local: Path | None, queries: EncodedQueries, n: int, rule: FusionRule) -> None:
    """A fresh opening whose files are not in the page cache."""
    forget(*(Path(p) for p in (index, local) if p is not None))
    opened = open_index(index, local=local, memory=2**33)
    wall = []
    for i in range(n):
        start = time.perf_counter()
        hybrid(opened, one(queries, i), rule)
        wall.append(time.perf_counter() - start)
    print(f"cold: first query {1e3 * wall[0]:.0f} ms, the {n - 1} after it p50, p95, p99 {quantiles(wall[1:])} ms")


def read_queries(paths: Sequence[Path], n: int) -> list[str]:
    """n questions, as many of each file."""
    rng, texts = np.random.default_rng(0), []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        picked = rng.choice(len(lines), -(-n // len(paths)), replace=len(lines) < n)
        texts += [json.loads(lines[i])["text"] for i in picked]
    return [texts[i] for i in rng.permutation(len(texts))[:n]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("questions", type=Path, nargs="+")
    parser.add_argument("--base", nargs="*", default=[], help="Recombine these into a new index.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--default", action="store_true", help="The index's own rule in place of M3's weights.")
    parser.add_argument("--exact", type=int, default=20, help="EncodedQueries that are scored exhaustively.")
    parser.add_argument("--local", type=Path, help="Folder for local copies.")
    parser.add_argument("--memory", type=int, default=4 * 2**30)
    parser.add_argument("--peers", type=Path, help="site-packages with qdrant_client, pymilvus, bm25s.")
    given = parser.parse_args()
    if given.base:
        build(Path(given.index), given.rows, given.base)
    index = open_index(given.index, memory=given.memory, local=given.local)
    queries = index.encode(read_queries(given.questions, given.queries))
    start = time.perf_counter()
    print(index, index.warm(), f"read or copied in {time.perf_counter() - start:.1f} s")
    rule = index.default_fusion if given.default else M3_RULE
    hybrid(index, one(queries, 0), rule)
    whole = stages(index, queries, given.queries, rule)
    print(f"memory: {memory()}")
    lancedb_hybrid(index, queries, given.queries, whole)
    sys.path.append(str(given.peers))
    for peer in (bm25s, milvus, qdrant) if given.peers else ():
        try:
            peer(index, queries, given.queries, whole)
        except Exception as error:
            print(f"{peer.__name__}: not measured, {type(error).__name__}: {str(error)[:150]}")
    recall(index, queries, given.exact, rule)
    cold(given.index, given.local, queries, 20, rule)


if __name__ == "__main__":
    main()
