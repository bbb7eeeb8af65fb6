"""Weights sparse (lexical) vectors in the index: by M3's own weights, or by saturated term frequency as well.

M3 keeps the largest weight of a term, so ten mentions count no more than one. `counted` makes it
w^0.75 x (1 + 0.2 ln tf): as in BM25, further mentions count with diminishing returns, and large weights are damped.
Both are chosen on training queries: benchmarks/RESEARCH_LOG.md. The price is that scores are no longer M3's own,
so it is the default for the packaged model alone.
"""

from __future__ import annotations

import numpy as np

from actors.codecs.names import SparseWeighting
from actors.outputs import Array, IntArray, SparseVectors, TokenBatch

POWER, REPEATS = 0.75, 0.2


def weight_sparse(vectors: SparseVectors, tokens: TokenBatch, weighting: SparseWeighting) -> SparseVectors:
    """Weights an embedder's sparse output as the table stores it; `tokens` are those of the same texts."""
    return vectors if weighting == "max" else _weight_by_term_frequency(vectors, tokens)


def _weight_by_term_frequency(vectors: SparseVectors, tokens: TokenBatch) -> SparseVectors:
    terms, counts = np.unique(_row_and_token(tokens.offsets, tokens.ids), return_counts=True)
    frequency = counts[np.searchsorted(terms, _row_and_token(vectors.offsets, vectors.token_ids))]
    weights = vectors.weights**POWER * (1 + REPEATS * np.log(frequency))
    return SparseVectors(vectors.offsets, vectors.token_ids, weights.astype(np.float32))


def _row_and_token(offsets: IntArray, ids: Array) -> IntArray:
    """Packs row number and token id into one int64 key."""
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return (rows << 32) + ids.astype(np.int64)
