"""What an embedder gives to what a table keeps: the one place where jobs and upserts apply an index's codecs."""

from __future__ import annotations

import numpy as np

from actors.codecs.codecs import Codec, encode_colbert
from actors.codecs.sparse import SparseCodec, encode_sparse
from actors.outputs import EmbeddingBatch, MultiVectors, TokenBatch


def encode_batch(
    batch: EmbeddingBatch, tokens: TokenBatch, dense: str, sparse: SparseCodec, colbert: Codec, pooling: str
) -> EmbeddingBatch:
    """The outputs of one embedder, encoded; `tokens` are those of the same texts. ColBERT codes stay as they are."""
    return EmbeddingBatch(
        None if batch.dense is None else batch.dense.astype(dense, copy=False),
        None if batch.sparse is None else encode_sparse(batch.sparse, tokens, sparse),
        None if batch.colbert is None else _colbert(batch.colbert, tokens, colbert, pooling),
        batch.n_tokens,
        batch.n_truncated,
    )


def _colbert(vectors: MultiVectors, tokens: TokenBatch, codec: Codec, pooling: str) -> MultiVectors:
    if vectors.vectors.dtype == np.uint8:  # encoded on the device that computed them
        return vectors
    ids = np.delete(tokens.ids, tokens.offsets[:-1]) if pooling == "distinct" else None
    return encode_colbert(vectors, codec, pooling, ids)
