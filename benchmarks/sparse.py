"""The sparse inverted index: time a query as the corpus grows, and bytes that a query reads from object storage.

Rows are the first ones of an index (for example one made by `benchmarks/query.py`), queries real questions. Times are
CPU time of one thread, best of three, postings in memory. Plain accumulation adds up the same lists as float32 weights
and int32 rows in memory and takes the best of the sums. The object store is moto's server on this machine. Run:

    OMP_NUM_THREADS=1 python -m benchmarks.sparse INDEX QUERIES.jsonl... [--rows 50000 200000 800000] [--stored 200000]
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from actors.outputs import IntArray, SparseVectors
from benchmarks.query import read_queries
from pipelines.retrieval.channels.sparse import CscInvertedIndex
from pipelines.retrieval.index import Index, open_index
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.scoring.inverted_index import InvertedIndex, Segment, as_lists
from pipelines.retrieval.scoring.kernels import top_n
from pipelines.search_indexes.posting_blocks import Blocks
from pipelines.search_indexes.postings import SegmentInfo, update_postings
from pipelines.store.schema import Identity, documents_schema
from pipelines.store.table import open_table

KEY = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "aws_region": "us-east-1"}


def first_rows(index: Index, n: int) -> SparseVectors:
    rows = index.column_cache.take("sparse", np.arange(min(n, len(index))))
    assert isinstance(rows, SparseVectors)
    return rows


def in_memory(rows: SparseVectors) -> InvertedIndex:
    blocks = Blocks.of(rows)
    info = SegmentInfo("t", "words", ((0, len(rows)),), len(blocks.weights), "")
    live = np.arange(len(rows), dtype=np.int32)
    segment = Segment(info, None, live, blocks.tokens, as_lists(blocks))
    return InvertedIndex((segment,), np.zeros(0, np.int64))


def best_of(run: object, repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        run()  # type: ignore[operator]
        seconds.append(time.thread_time() - start)
    return 1e3 * min(seconds)


def postings_of(inverted: CscInvertedIndex, queries: EncodedQueries, i: int) -> int:
    known = np.minimum(queries.sparse(i)[0], len(inverted.starts) - 2)
    return int((inverted.starts[known + 1] - inverted.starts[known]).sum())


def growth(index: Index, queries: EncodedQueries, sizes: list[int]) -> None:
    print(
        f"{'rows':>9} {'postings a query':>17} {'p50 ms':>8} {'mean':>8} {'p99':>8} {'plain p50':>10} {'MiB':>7} exact"
    )
    for size in sizes:
        rows = first_rows(index, size)
        made, plain = in_memory(rows), CscInvertedIndex.of(rows)
        ours, theirs, touched, same = [], [], [], 0
        for i in range(len(queries)):
            ids, weights = queries.sparse(i)
            scores = np.zeros(len(rows), np.float32)

            def accumulate(ids: IntArray = ids, weights: np.ndarray = weights, scores: np.ndarray = scores) -> IntArray:
                scores[:] = 0
                plain.add_scores(scores, ids, weights)  # noqa: B023
                return top_n(scores, 100, above=0)[0]

            ours.append(best_of(lambda ids=ids, weights=weights, made=made: made.promising(ids, weights, 100)))
            theirs.append(best_of(accumulate))
            best = accumulate()
            clear = best[scores[best] > scores[best[-1]] + 1e-5]
            same += set(clear) <= set(made.promising(ids, weights, 100))
            touched.append(postings_of(plain, queries, i))
        size_of = sum(a.nbytes for a in made.segments[0].lists or ()) / 2**20
        print(
            f"{len(rows):9} {np.mean(touched):17.0f} {np.median(ours):8.2f} {np.mean(ours):8.2f} "
            f"{np.quantile(ours, 0.99):8.2f} {np.median(theirs):10.2f} {size_of:7.0f} {same} of {len(queries)}",
            flush=True,
        )


def stored(index: Index, queries: EncodedQueries, n: int) -> None:
    """Bytes and requests of a query where the postings are in an object store and not held in memory."""
    import boto3  # type: ignore[import-not-found]
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="testing",
                          aws_secret_access_key="testing")  # fmt: skip
    client.create_bucket(Bucket="bench")
    options = {**KEY, "aws_endpoint": endpoint, "allow_http": "true", "aws_virtual_hosted_style_request": "false"}
    described = {**index.identity.embedders[index.name], "outputs": ["sparse"]}
    kind = documents_schema(Identity({"mode": "whole"}, "{text}", {index.name: described}))

    def batches() -> Iterator[pa.RecordBatch]:
        rows = first_rows(index, n)
        for part in np.array_split(np.arange(n), max(1, n // 10_000)):
            column = rows.take(part).to_arrow()
            arrays = [column.cast(f.type) if f.name.endswith("_sparse") else _filler(f, part) for f in kind]
            yield pa.record_batch(arrays, schema=kind)

    uri = "s3://bench/index"
    lance.write_dataset(batches(), f"{uri}/documents.lance", schema=kind, storage_options=options)
    print(update_postings(uri, storage_options=options))
    opened = InvertedIndex.open(open_table(uri, storage_options=options), index.name, memory=0)
    sizes, requests, wall = [], [], []
    for i in range(len(queries)):
        [segment.dataset.io_stats_incremental() for segment in opened.segments]
        start = time.perf_counter()
        opened.promising(*queries.sparse(i), 100)
        wall.append(time.perf_counter() - start)
        read = [segment.dataset.io_stats_incremental() for segment in opened.segments]
        sizes.append(sum(r.read_bytes for r in read))
        requests.append(sum(r.read_iops for r in read))
    print(
        f"object store, {n} rows: {np.median(sizes) / 2**10:.0f} KiB a query in {np.median(requests):.0f} requests "
        f"(most: {max(sizes) / 2**10:.0f} KiB), {1e3 * np.median(wall):.0f} ms"
    )
    server.stop()


def _filler(field: pa.Field, part: IntArray) -> pa.Array:
    if field.name in ("doc_id", "chunk_id"):
        return pa.array([f"p{i}" for i in part])
    return pa.nulls(len(part), field.type)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("questions", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, nargs="*", default=[50_000, 200_000, 800_000])
    parser.add_argument("--stored", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--local", type=Path)
    given = parser.parse_args()
    index = open_index(given.index, local=given.local)
    queries = index.encode(read_queries(given.questions, given.queries))
    growth(index, queries, given.rows)
    if given.column_cache:
        stored(index, queries, given.column_cache)


if __name__ == "__main__":
    main()
