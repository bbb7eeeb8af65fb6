"""Implements the encode loop of every embedder: batches by tokens, one forward pass each, all requested heads on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from actors.codecs.device_codec import DeviceCodec
from actors.compute.batch_executor import BatchExecutor
from actors.compute.batching import inverse_permutation
from actors.compute.resolve import Compute
from actors.models.preparation import Kind
from actors.network import heads
from actors.network.backbone import Backbone
from actors.outputs import (
    Array,
    EmbeddingBatch,
    IntArray,
    MultiVectors,
    SparseVectors,
    TokenBatch,
    offsets_of,
    ranges,
)
from actors.spec import Output, Pooling
from actors.transfers import to_device, to_host


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Holds the options of one call.

    budget: at most so many tokens in a pass; ignore_truncate_dim: whole vectors; domain: for checkpoints with code of
    their own that route by domain; device_codec: ColBERT vectors leave the device encoded.
    """

    outputs: tuple[Output, ...]
    budget: int | None = None
    ignore_truncate_dim: bool = False
    domain: str | None = None
    kind: Kind = "passage"
    prompt_length: int = 0
    """Leading tokens of every text that a chain's pooling leaves out."""
    device_codec: DeviceCodec | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """Holds a loaded model. `outputs`: what it can compute; `colbert` None is the identity if colbert is among them."""

    backbone: Backbone
    compute: Compute
    outputs: tuple[Output, ...]
    pooling: Pooling
    normalize: bool
    truncate_dim: int | None
    sparse: nn.Linear | None
    colbert: nn.Linear | None
    excluded_ids: frozenset[int]
    executor: BatchExecutor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "executor", BatchExecutor(self.compute))

    @property
    def dim(self) -> int:
        return _cut(self.backbone.hidden_size, self.truncate_dim)

    @property
    def colbert_dim(self) -> int:
        return _cut(self._colbert_width, self.truncate_dim)

    @property
    def _colbert_width(self) -> int:
        return self.backbone.hidden_size if self.colbert is None else self.colbert.out_features

    def embed_tokens(self, tokens: TokenBatch, request: EncodeRequest) -> EmbeddingBatch:
        """Computes the requested outputs in text order. A text without tokens gets zeros and no vectors."""
        lengths = tokens.lengths
        filled, empty = np.flatnonzero(lengths), np.flatnonzero(lengths == 0)
        dense, colbert = self._buffers(lengths, request)

        def embed(rows: IntArray) -> SparseVectors:
            return self._embed_batch(tokens, filled[rows], request, dense, colbert)

        done, parts = self.executor.run(lengths[filled], embed, request.budget)
        parts.append(SparseVectors.empty(len(empty)))
        places = inverse_permutation([*(filled[rows] for rows in done), empty])
        sparse = SparseVectors.join(parts).take(places) if "sparse" in request.outputs else None
        return EmbeddingBatch(dense, sparse, colbert, lengths.astype(np.int32), tokens.n_truncated)

    def _buffers(self, lengths: IntArray, request: EncodeRequest) -> tuple[Array | None, MultiVectors | None]:
        """Allocates outputs whose sizes are known before the pass; each batch writes its rows into place."""
        cut = None if request.ignore_truncate_dim else self.truncate_dim
        dense = np.zeros((len(lengths), _cut(self.backbone.hidden_size, cut)), np.float32)
        return (
            dense if "dense" in request.outputs else None,
            self._vectors(np.maximum(lengths - 1, 0), request) if "colbert" in request.outputs else None,
        )

    def _vectors(self, lengths: IntArray, request: EncodeRequest) -> MultiVectors:
        dim = _cut(self._colbert_width, None if request.ignore_truncate_dim else self.truncate_dim)
        dtype: type[np.generic] = heads.vector_dtype(self.compute.device, self.compute.dtype)
        if request.device_codec is not None:
            lengths, dim, dtype = request.device_codec.lengths(lengths), request.device_codec.width(dim), np.uint8
        offsets = offsets_of(lengths)
        return MultiVectors(offsets, np.zeros((offsets[-1], dim), dtype))

    def _embed_batch(
        self,
        tokens: TokenBatch,
        rows: IntArray,
        request: EncodeRequest,
        dense: Array | None,
        colbert: MultiVectors | None,
    ) -> SparseVectors:
        part = tokens.take(rows)
        found = self._compute_outputs(part, request)
        arrays = dict(zip(found, to_host(*found.values()), strict=True))
        if dense is not None:
            dense[rows] = arrays["dense"]
        if colbert is not None:
            where = ranges(colbert.offsets[rows], np.diff(colbert.offsets)[rows])
            colbert.vectors[where] = arrays["colbert"]
        if "sparse" not in arrays:
            return SparseVectors.empty(len(rows))
        return heads.collect(arrays["sparse"], part.ids, part.offsets, self.excluded_ids)

    def _compute_outputs(self, part: TokenBatch, request: EncodeRequest) -> dict[Output, Tensor]:
        """Computes the requested outputs of one batch, on the device; of the sparse one each token's weight."""
        ids = to_device(part.ids.astype(np.int64), self.compute.device)
        hidden = self._forward(ids, part.offsets, request.domain)
        cut, unit = None if request.ignore_truncate_dim else self.truncate_dim, self.normalize
        found: dict[Output, Tensor] = {}
        if "dense" in request.outputs:
            found["dense"] = heads.dense(hidden, part.offsets, self.pooling, normalize=unit, truncate_dim=cut)
        if "colbert" in request.outputs:
            found["colbert"] = heads.token_vectors(
                hidden, part.offsets, self.colbert, normalize=unit, truncate_dim=cut, device_codec=request.device_codec
            )
        if "sparse" in request.outputs:
            assert self.sparse is not None, "sparse is among the outputs only where the head exists"
            found["sparse"] = heads.token_weights(hidden, self.sparse)
        return found

    def _forward(self, ids: Tensor, offsets: IntArray, domain: str | None) -> Tensor:
        if domain is not None:
            from actors.network.transformers_backbone import PaddedTransformer  # imports transformers

            if isinstance(self.backbone, PaddedTransformer):
                return self.backbone.forward(ids, offsets, domain=domain)
        return self.backbone.forward(ids, offsets)


def _cut(width: int, cut: int | None) -> int:
    return min(width, cut or width)
