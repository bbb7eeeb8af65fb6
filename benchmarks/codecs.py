"""ColBERT codecs and poolings on judged queries: bytes a document, ms for 200 candidates, nDCG@10 and its loss.

Every codec scores the same candidates: the union of the best of each channel of an index that was built from the
collection. The documents among them are embedded again in float32, encoded by each codec and ranked by ColBERT alone,
so that nothing but the codec differs. `pq` and `sign_half` are trained on 32,768 of their vectors. Run:

    python benchmarks/codecs.py INDEX QUERIES QRELS [--queries 150]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from actors.codecs.codec import Codec
from actors.codecs.pooling import encode_colbert
from actors.codecs.table import TRAINED, get_codec, width
from actors.outputs import IntArray, MultiVectors, concat
from pipelines.evaluation import read_qrels, read_queries
from pipelines.evaluation.metrics import paired_p, per_query
from pipelines.evaluation.qrels import judged
from pipelines.evaluation.runs import Judged, rank
from pipelines.retrieval import open_index
from pipelines.retrieval.index import Index
from pipelines.retrieval.scoring.maxsim import maxsim

CASES = [
    ("float16", "none"), ("int8", "none"), ("bits2", "none"), ("sign", "none"), ("rotated_sign", "none"),
    ("float16", "sequential2"), ("float16", "distinct"), ("sign", "sequential2"), ("sign", "sequential3"),
    ("sign", "distinct"), ("sign_half", "none"), ("pq", "none"),
]  # fmt: skip


def embedded(index: Index, positions: IntArray) -> tuple[MultiVectors, IntArray]:
    """Float vectors of the rows at these positions, and the token id of each vector."""
    embedder, batches, ids = index.encoder.embedder, [], []
    for part in np.array_split(positions, max(1, len(positions) // 256)):
        tokens = embedder.tokenise(index.snapshot.take(part, ["text"])["text"].to_pylist(), "passage")
        batches.append(embedder.embed_tokens(tokens, ["colbert"]))
        ids.append(np.delete(tokens.ids, tokens.offsets[:-1]))
    vectors = concat(batches).colbert
    assert vectors is not None
    return vectors, np.concatenate(ids).astype(np.int64)


def milliseconds(index: Index, stored: MultiVectors, codec: Codec, repeats: int = 30) -> float:
    """Best of several, one thread: a query of 16 vectors against 200 documents."""
    query = index.encode(["what is the effect of the temperature on the growth of the cells"]).colbert(0)[0][:16]
    rows = stored.take(np.arange(min(200, len(stored))))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        maxsim(query, rows, codec)
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def scores_of(index: Index, ranked: Sequence[Judged], places: IntArray, stored: MultiVectors, codec: Codec) -> dict:
    queries = index.encode([q.text for q in ranked])
    run = {}
    for i, query in enumerate(ranked):
        vectors, weights = queries.colbert(i)
        rows = stored.take(np.searchsorted(places, query.found.positions))
        scores = maxsim(vectors, rows, codec, weights)
        best_last = np.argsort(scores, kind="stable")  # of a document's chunks the best one counts
        run[query.query_id] = {query.documents[j]: float(scores[j]) for j in best_last}
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("queries")
    parser.add_argument("qrels")
    parser.add_argument("--queries", dest="limit", type=int, default=150)
    parser.add_argument("--candidates", type=int, default=200, help="Of each channel.")
    arguments = parser.parse_args()
    index, qrels = open_index(arguments.index), read_qrels(arguments.qrels)
    kept = dict(list(judged(read_queries(arguments.queries), qrels).items())[: arguments.limit])
    ranked = rank(index, kept, arguments.candidates)
    places = np.unique(np.concatenate([q.found.positions for q in ranked]))
    vectors, token_ids = embedded(index, places)
    reference = None
    print(f"{len(kept)} queries, {len(places)} documents of {len(vectors.vectors) / len(places):.0f} vectors")
    print(
        f"{'codec':9} {'pooling':12} {'nDCG@10':>8} {'loss':>8} {'p':>6} {'bytes/vector':>13} "
        f"{'KiB/doc':>8} {'ms/200':>7}"
    )
    sample = np.random.default_rng(0).permutation(len(vectors.vectors))[:32_768]
    for name, pooling in CASES:
        codec = get_codec(name, TRAINED[name].train(vectors.vectors[sample]) if name in TRAINED else None)
        stored = encode_colbert(vectors, codec, pooling, token_ids)
        values = per_query(scores_of(index, ranked, places, stored, codec), qrels, list(kept))["nDCG@10"]
        reference = values if reference is None else reference
        size = width(codec, vectors.vectors.shape[1])
        print(
            f"{name:9} {pooling:12} {values.mean():8.4f} {reference.mean() - values.mean():+8.4f} "
            f"{paired_p(reference, values):6.3f} {size:13} {size * len(stored.vectors) / len(stored) / 1024:8.2f} "
            f"{milliseconds(index, stored, codec):7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
