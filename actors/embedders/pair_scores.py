"""Scores (query, passage) pairs by each of M3's outputs.

Upstream scores every query of a batch against every passage and keeps the diagonal; its memory grows with the square
of the batch, and its ColBERT score sees the padding of other passages. Here a pair is scored alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from actors.outputs import Array, EmbeddingBatch

MODES = ("colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense")


def lexical_score(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Sums the products over the keys of both."""
    return sum(weight * b[key] for key, weight in a.items() if key in b)


def pair_scores(
    queries: EmbeddingBatch, passages: EmbeddingBatch, weights: tuple[float, float, float]
) -> dict[str, list[float]]:
    """Returns one score a pair by each of MODES; weights are for dense, sparse, colbert.

    All three outputs must be there.
    """
    dense, sparse, colbert = np.array([_pair(queries, passages, i) for i in range(len(queries))], np.float32).T
    w_dense, w_sparse, w_colbert = map(np.float64, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        two = (w_sparse * sparse + w_dense * dense) / (w_sparse + w_dense)
        three = (w_colbert * colbert + w_sparse * sparse + w_dense * dense) / (w_dense + w_sparse + w_colbert)
    return {name: part.tolist() for name, part in zip(MODES, (colbert, sparse, dense, two, three), strict=True)}


def _pair(queries: EmbeddingBatch, passages: EmbeddingBatch, i: int) -> tuple[float, float, float]:
    assert queries.dense is not None
    assert passages.dense is not None
    assert queries.sparse is not None
    assert passages.sparse is not None
    assert queries.colbert is not None
    assert passages.colbert is not None
    return (
        float(queries.dense[i] @ passages.dense[i]),
        sparse_score(queries.sparse.row(i), passages.sparse.row(i)),
        colbert_score(queries.colbert.row(i), passages.colbert.row(i)),
    )


def sparse_score(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Computes the dot product of two rows of (ids, weights)."""
    _, left, right = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
    return float(a[1][left] @ b[1][right])


def colbert_score(query: Array, passage: Array) -> float:
    """Averages over the query's vectors the best dot product with a passage vector; 0 if either has none."""
    similar = query @ passage.T
    return float(similar.max(axis=1).mean()) if similar.size else 0.0
