"""Applies an index's codecs to an embedder's outputs, for jobs and upserts alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from actors.codecs.codec import Codec
from actors.codecs.names import SparseWeighting
from actors.codecs.pooling import encode_colbert
from actors.codecs.sparse_weighting import weight_sparse
from actors.outputs import EmbeddingBatch, MultiVectors, TokenBatch

ColbertIds = Callable[[TokenBatch], npt.NDArray[np.int32]]
"""Returns the token id of each ColBERT vector of a batch: `Embedder.colbert_ids`. Only one pooling needs them."""


def encode_batch(
    batch: EmbeddingBatch,
    tokens: TokenBatch,
    colbert_ids: ColbertIds,
    dense: str,
    sparse: SparseWeighting,
    colbert: Codec,
    pooling: str,
) -> EmbeddingBatch:
    """Encodes the outputs of one embedder; `tokens` are those of the same texts. ColBERT codes stay as they are."""
    ids = colbert_ids(tokens) if batch.colbert is not None and pooling == "distinct" else None
    return EmbeddingBatch(
        None if batch.dense is None else batch.dense.astype(dense, copy=False),
        None if batch.sparse is None else weight_sparse(batch.sparse, tokens, sparse),
        None if batch.colbert is None else _encode_colbert(batch.colbert, ids, colbert, pooling),
        batch.n_tokens,
        batch.n_truncated,
    )


def _encode_colbert(
    vectors: MultiVectors, ids: npt.NDArray[np.int32] | None, codec: Codec, pooling: str
) -> MultiVectors:
    if vectors.vectors.dtype == np.uint8:  # encoded on the device that computed them
        return vectors
    return encode_colbert(vectors, codec, pooling, ids)
