"""ColBERT scores: the mean over query vectors of the best product with a document's vectors, as the codec stores them.

The query stays in float. One-bit codes are scored by popcounts (`bits`), exactly; all other codecs are decoded in
blocks that fit the cache and multiplied by BLAS.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from actors.outputs import IntArray, MultiVectors
from pipelines.retrieval.bits import BitQuery
from pipelines.retrieval.kernels import segment_max
from pipelines.store.codecs import decode

Floats = npt.NDArray[np.float32]
BLOCK_VECTORS = 4096


def normalised_weights(n: int, weights: Floats | None) -> Floats:
    """Weights of n query vectors with sum 1; None weighs all alike."""
    if weights is None or not weights.sum() > 0:
        return np.full(n, 1 / max(n, 1), np.float32)
    shares: Floats = weights / weights.sum()
    return shares


def maxsim(
    query: Floats, documents: MultiVectors, codec: str, weights: Floats | None = None, threads: int = 1
) -> Floats:
    """Scores of all documents: float32 (n,); a document without vectors scores 0.

    query: (m, dim); weights: (m,) or None, made to sum to 1.
    """
    shares = normalised_weights(len(query), weights)
    if not len(query) or not len(documents):
        return np.zeros(len(documents), np.float32)
    prepared = BitQuery(query) if codec == "sign" else None

    def score(rows: tuple[int, int]) -> Floats:
        part = slice_rows(documents, *rows)
        if prepared is not None:
            return prepared.scores(part.vectors, part.offsets, shares)
        return _decoded_scores(query, part, codec, shares)

    parts = row_blocks(documents.offsets, None if prepared is not None and threads == 1 else BLOCK_VECTORS)
    if threads == 1 or len(parts) == 1:
        return np.concatenate([score(p) for p in parts])
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(score, parts)))


def slice_rows(documents: MultiVectors, first: int, last: int) -> MultiVectors:
    """Rows first..last (exclusive), without copying vectors."""
    bounds = documents.offsets[first : last + 1]
    return MultiVectors(bounds - bounds[0], documents.vectors[bounds[0] : bounds[-1]])


def row_blocks(offsets: IntArray, vectors: int | None) -> list[tuple[int, int]]:
    """Cuts rows into ranges of about `vectors` vectors each (None: one range)."""
    n = len(offsets) - 1
    if vectors is None or offsets[-1] <= vectors:
        return [(0, n)]
    cuts = np.searchsorted(offsets, np.arange(vectors, offsets[-1], vectors))
    bounds = np.unique(np.concatenate([[0], np.clip(cuts, 1, n), [n]]))
    return [(int(a), int(b)) for a, b in pairwise(bounds)]


def _decoded_scores(query: Floats, part: MultiVectors, codec: str, shares: Floats) -> Floats:
    out = np.zeros(len(part), np.float32)
    products = query @ decode(part.vectors, codec, query.shape[1]).T
    segment_max(products, part.offsets, shares, out)
    return out


def best_matches(query: Floats, document: MultiVectors, codec: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For one document (a MultiVectors of one row): each query vector's best product, and which vector gave it."""
    products = query @ decode(document.vectors, codec, query.shape[1]).T
    best = products.argmax(axis=1)
    return products[np.arange(len(query)), best], best
