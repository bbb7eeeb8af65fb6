"""How lexical weights are stored: as M3 gives them, or with the counts that M3 throws away.

M3 keeps a term's largest weight, so ten mentions say no more than one. `counted` makes it w^0.75 x (1 + 0.2 ln n) for a
term that stands n times in the text: as in BM25, mentions count, each less than the one before, and large weights lose
their edge. Both numbers were chosen on training queries (benchmarks/RESULTS.md). The price is that scores are no longer
M3's own, so it is the default for the packaged model alone.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from actors.outputs import Array, IntArray, SparseVectors, TokenBatch

SparseCodec = Literal["max", "counted"]
POWER, REPEATS = 0.75, 0.2


def encode_sparse(vectors: SparseVectors, tokens: TokenBatch, codec: SparseCodec) -> SparseVectors:
    """The sparse output of an embedder to what the table stores; `tokens` are those of the same texts."""
    return vectors if codec == "max" else _counted(vectors, tokens)


def _counted(vectors: SparseVectors, tokens: TokenBatch) -> SparseVectors:
    places, counts = np.unique(_keys(tokens.offsets, tokens.ids), return_counts=True)
    mentions = counts[np.searchsorted(places, _keys(vectors.offsets, vectors.token_ids))]
    weights = vectors.weights**POWER * (1 + REPEATS * np.log(mentions))
    return SparseVectors(vectors.offsets, vectors.token_ids, weights.astype(np.float32))


def _keys(offsets: IntArray, ids: Array) -> IntArray:
    """int64: one number for each pair of a row and a token id."""
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return (rows << 32) + ids.astype(np.int64)
