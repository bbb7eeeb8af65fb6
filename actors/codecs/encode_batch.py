"""Applies an index's codecs to an embedder's outputs, for jobs and upserts alike."""

from __future__ import annotations

import numpy as np

from actors.codecs.codec import Codec
from actors.codecs.names import SparseWeighting
from actors.codecs.pooling import encode_colbert
from actors.codecs.sparse_weighting import weight_sparse
from actors.outputs import EmbeddingBatch, MultiVectors, TokenBatch


def encode_batch(
    batch: EmbeddingBatch, tokens: TokenBatch, dense: str, sparse: SparseWeighting, colbert: Codec, pooling: str
) -> EmbeddingBatch:
    """Encodes the outputs of one embedder; `tokens` are those of the same texts. ColBERT codes stay as they are."""
    return EmbeddingBatch(
        None if batch.dense is None else batch.dense.astype(dense, copy=False),
        None if batch.sparse is None else weight_sparse(batch.sparse, tokens, sparse),
        None if batch.colbert is None else _encode_colbert(batch.colbert, tokens, colbert, pooling),
        batch.n_tokens,
        batch.n_truncated,
    )


def _encode_colbert(vectors: MultiVectors, tokens: TokenBatch, codec: Codec, pooling: str) -> MultiVectors:
    if vectors.vectors.dtype == np.uint8:  # encoded on the device that computed them
        return vectors
    ids = np.delete(tokens.ids, tokens.offsets[:-1]) if pooling == "distinct" else None
    return encode_colbert(vectors, codec, pooling, ids)
