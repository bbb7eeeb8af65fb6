"""Computes ColBERT scores (MaxSim): the mean over query vectors of the best product with a document's stored vectors.

The query stays in float. One-bit codes are scored in integers first (`maxsim_1bit`), exactly, product-quantised ones
by looking products up (`maxsim_pq`); all other codecs are decoded in blocks that fit the cache and multiplied by BLAS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from actors.codecs.codec import Codec, Scorer, TrainedCodec
from actors.codecs.table import decode, get_codec
from actors.kernels.jit import HAS_NUMBA
from actors.outputs import IntArray, MultiVectors
from pipelines.retrieval.scoring.kernels import segment_max, top_n, workers

if HAS_NUMBA:
    from pipelines.retrieval.scoring.maxsim_1bit import BitQuery, SignQuery
    from pipelines.retrieval.scoring.maxsim_1bit_scan import BitScan
    from pipelines.retrieval.scoring.maxsim_pq import TableQuery

Floats = npt.NDArray[np.float32]
BLOCK_VECTORS = 4096


def normalised_weights(n: int, weights: Floats | None) -> Floats:
    """Scales the weights of n query vectors to sum to 1; None weighs all alike."""
    if weights is None or not weights.sum() > 0:
        return np.full(n, 1 / max(n, 1), np.float32)
    shares: Floats = weights / weights.sum()
    return shares


def maxsim(
    query: Floats,
    documents: MultiVectors,
    codec: str | Codec,
    weights: Floats | None = None,
    threads: int = 1,
    rows: IntArray | None = None,
    approximate: bool = False,
) -> Floats:
    """Computes the weighted MaxSim of one query with all documents, or with these rows of them: float32 (n,).

    A document without vectors scores 0. query: (m, dim); weights: (m,) or None, scaled to sum to 1. approximate:
    approximate scores for preselection, which compare the signs of the query with one-bit codes (other codes are
    scored exactly).
    """
    n = len(documents) if rows is None else len(rows)
    shares = normalised_weights(len(query), weights)
    if not len(query) or not n:
        return np.zeros(n, np.float32)
    query, codec = get_codec(codec).transform_query(query)
    prepare = KERNELS.get(codec.scorer)
    prepared = None if prepare is None else prepare(query, codec, approximate)
    if rows is not None and (prepared is None or documents.vectors.shape[1] % 8):  # codes in whole words stay in place
        documents, rows = documents.take(rows), None
    starts, ends = documents.offsets[:-1], documents.offsets[1:]
    if rows is not None:
        starts, ends = starts[rows], ends[rows]

    def score(part: slice) -> Floats:
        if prepared is not None:
            return prepared.scores(documents.vectors, starts[part], ends[part], shares)
        return _decoded_scores(query, documents, part, codec, shares)

    lengths = ends - starts
    size = max(BLOCK_VECTORS, int(lengths.sum()) // threads + 1) if prepared is not None else BLOCK_VECTORS
    parts = row_blocks(lengths, size)
    if threads == 1 or len(parts) == 1:
        return np.concatenate([score(p) for p in parts])
    return np.concatenate(list(workers(threads).map(score, parts)))


def _prepare_sign_bits(query: Floats, codec: Codec, approximate: bool) -> BitQuery | SignQuery:
    return SignQuery(query) if approximate else BitQuery(query)


def _prepare_lookup_table(query: Floats, codec: Codec, approximate: bool) -> TableQuery:
    assert isinstance(codec, TrainedCodec)
    return TableQuery(query, codec.required_parameters())


KERNELS: dict[Scorer, Callable[[Floats, Codec, bool], BitQuery | SignQuery | TableQuery]] = (
    {"sign_bits": _prepare_sign_bits, "lookup_table": _prepare_lookup_table} if HAS_NUMBA else {}
)
"""Prepares a query for the kernel that scores a codec's codes without decoding them; other codes are decoded."""


def rows_within_reach(
    queries: Sequence[tuple[Floats, Floats | None]],
    documents: MultiVectors,
    codec: Codec,
    n: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    threads: int = 1,
) -> list[IntArray]:
    """Returns, for each query, the documents that can be among its n best, ascending; a few more than n.

    One pass for all queries over one-bit codes; for other codecs all documents that have vectors. queries: vectors
    (m, dim) and weights of each; allowed: which documents count, None for all. The n best of the returned documents by
    `maxsim` are those of all.
    """
    starts, ends = documents.offsets[:-1], documents.offsets[1:]
    every = np.flatnonzero(ends > starts if allowed is None else (ends > starts) & allowed)
    if not HAS_NUMBA or len(every) <= n or not all(len(vectors) for vectors, _ in queries):
        return [every] * len(queries)
    transformed = [codec.transform_query(vectors) for vectors, _ in queries]
    if any(target.scorer != "sign_bits" for _, target in transformed):
        return [every] * len(queries)
    shares = [normalised_weights(len(vectors), weights) for vectors, weights in queries]
    scan = BitScan([vectors for vectors, _ in transformed], shares)

    def score(part: slice) -> Floats:
        return scan.approximate_scores(documents.vectors, starts[every[part]], ends[every[part]])

    lengths = ends[every] - starts[every]
    parts = row_blocks(lengths, max(BLOCK_VECTORS, int(lengths.sum()) // threads + 1))
    scores = np.concatenate(list(workers(threads).map(score, parts)))
    return [every[within_reach(scores[:, i], n, scan.widths[i])] for i in range(len(queries))]


def within_reach(scores: Floats, n: int, width: float) -> IntArray:
    """Returns the places of scores that are at most `width` below the n-th best."""
    best = top_n(np.ascontiguousarray(scores), n)[1]
    return np.flatnonzero(scores >= best[-1] - width)


def row_blocks(lengths: IntArray, vectors: int | None) -> list[slice]:
    """Cuts rows into ranges of about `vectors` vectors each (None: one range)."""
    n, ends = len(lengths), np.cumsum(lengths)
    if vectors is None or ends[-1] <= vectors:
        return [slice(0, n)]
    cuts = np.searchsorted(ends, np.arange(vectors, ends[-1], vectors)) + 1
    bounds = np.unique(np.concatenate([[0], np.clip(cuts, 1, n), [n]]))
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


def _decoded_scores(query: Floats, documents: MultiVectors, rows: slice, codec: Codec, shares: Floats) -> Floats:
    bounds = documents.offsets[rows.start : rows.stop + 1]
    out = np.zeros(len(bounds) - 1, np.float32)
    products = query @ decode(documents.vectors[bounds[0] : bounds[-1]], codec, query.shape[1]).T
    segment_max(products, bounds - bounds[0], shares, out)
    return out


def best_matches(query: Floats, document: MultiVectors, codec: str | Codec) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Returns each query vector's largest product with one document (a MultiVectors of one row), and its vector."""
    query, codec = get_codec(codec).transform_query(query)
    products = query @ decode(document.vectors, codec, query.shape[1]).T
    best = products.argmax(axis=1)
    return products[np.arange(len(query)), best], best
