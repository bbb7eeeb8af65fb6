"""Runs a sentence-transformers chain: dense vectors, SPLADE weights or ColBERT vectors out of packed batches.

It has the interface of `Engine`, whose batching, back-off and threads it shares; what differs is that a chain has one
output, that queries and passages may differ, and that vectors go through the chain's own modules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from actors.compute.batch_executor import BatchExecutor
from actors.compute.batching import inverse_permutation
from actors.compute.resolve import Compute
from actors.embedders.engine import EncodeRequest
from actors.network import heads
from actors.network.backbone import Backbone
from actors.network.splade import QueryTable, SpladeHead
from actors.network.vector_modules import LoadedChain
from actors.outputs import Array, EmbeddingBatch, IntArray, MultiVectors, SparseVectors, TokenBatch, offsets_of, ranges
from actors.spec import Output
from actors.text.late_interaction import TokenRules, scored_offsets
from actors.transfers import to_device, to_host


@dataclass(frozen=True, slots=True, eq=False)
class ModuleEngine:
    """Holds a loaded chain.

    chain: None in a SPLADE model; splade, query_table: set only there; rules: of ColBERT types.
    """

    backbone: Backbone
    compute: Compute
    outputs: tuple[Output, ...]
    chain: LoadedChain | None = None
    splade: SpladeHead | None = None
    query_table: QueryTable | None = None
    rules: TokenRules | None = None
    truncate_dim: int | None = None
    query: ModuleEngine | None = None
    """Embeds queries instead, where a Router sends them through modules of their own."""
    normalize: bool = False
    """Normalise after the dimensions were cut, because the call said so; the chain's own Normalize is in the chain."""
    executor: BatchExecutor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "executor", BatchExecutor(self.compute))

    @property
    def dim(self) -> int:
        return self._width(self.truncate_dim)

    @property
    def colbert_dim(self) -> int:
        return self._width(self.truncate_dim)

    def _width(self, cut: int | None) -> int:
        width = self.backbone.hidden_size if self.chain is None else self.chain.dim
        return min(width, cut or width)

    def embed_tokens(self, tokens: TokenBatch, request: EncodeRequest) -> EmbeddingBatch:
        """Computes the chain's output in text order; a text without any token gets zeros, or nothing."""
        if request.kind == "query" and self.query is not None:
            return self.query.embed_tokens(tokens, request)
        lengths = tokens.lengths
        if request.kind == "query" and self.query_table is not None:
            sparse = self.query_table(tokens.ids.astype(np.int64), tokens.offsets)
            return EmbeddingBatch(None, sparse, None, lengths.astype(np.int32), tokens.n_truncated)
        filled, empty = np.flatnonzero(lengths), np.flatnonzero(lengths == 0)
        dense = self._dense_buffer(len(tokens), request)
        colbert = self._colbert_buffer(tokens, request)

        def embed(rows: IntArray) -> SparseVectors:
            return self._embed_batch(tokens.take(filled[rows]), filled[rows], request, dense, colbert)

        done, parts = self.executor.run(lengths[filled], embed, request.budget)
        places = inverse_permutation([*(filled[rows] for rows in done), empty])
        parts.append(SparseVectors.empty(len(empty)))
        found = SparseVectors.join(parts).take(places) if "sparse" in request.outputs else None
        return EmbeddingBatch(dense, found, colbert, lengths.astype(np.int32), tokens.n_truncated)

    def _dense_buffer(self, texts: int, request: EncodeRequest) -> Array | None:
        if "dense" not in request.outputs:
            return None
        return np.zeros((texts, self._width(None if request.ignore_truncate_dim else self.truncate_dim)), np.float32)

    def _colbert_buffer(self, tokens: TokenBatch, request: EncodeRequest) -> MultiVectors | None:
        if "colbert" not in request.outputs:
            return None
        offsets = scored_offsets(self._scored(tokens, request), tokens.offsets)
        width = self._width(None if request.ignore_truncate_dim else self.truncate_dim)
        dtype: type[np.generic] = heads.vector_dtype(self.compute.device, self.compute.dtype)
        if request.device_codec is not None:
            offsets = offsets_of(request.device_codec.lengths(np.diff(offsets)))
            width, dtype = request.device_codec.width(width), np.uint8
        return MultiVectors(offsets, np.zeros((offsets[-1], width), dtype))

    def _scored(self, tokens: TokenBatch, request: EncodeRequest) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        assert self.rules is not None, "a multi-vector encoder has token rules"
        return self.rules.scored(tokens.ids, request.kind == "query")

    def _embed_batch(
        self,
        part: TokenBatch,
        rows: IntArray,
        request: EncodeRequest,
        dense: Array | None,
        colbert: MultiVectors | None,
    ) -> SparseVectors:
        ids = to_device(part.ids.astype(np.int64), self.compute.device)
        hidden = self.backbone.forward(ids, part.offsets, attended=part.attended)
        cut = None if request.ignore_truncate_dim else self.truncate_dim
        if dense is not None:
            assert self.chain is not None, "a dense output has a chain"
            pooled = self.chain.pooled(hidden, part.offsets, request.prompt_length)
            dense[rows] = to_host(self._finish(pooled, cut))[0]
        if colbert is not None:
            found = self._token_vectors(hidden, part, request, cut)
            where = ranges(colbert.offsets[rows], np.diff(colbert.offsets)[rows])
            colbert.vectors[where] = found
        if "sparse" not in request.outputs:
            return SparseVectors.empty(len(rows))
        assert self.splade is not None, "a sparse output has a SPLADE head"
        return self.splade(hidden, part.offsets)

    def _finish(self, vectors: Tensor, cut: int | None) -> Tensor:
        vectors = vectors[:, :cut]
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def _token_vectors(self, hidden: Tensor, part: TokenBatch, request: EncodeRequest, cut: int | None) -> Array:
        assert self.chain is not None, "a multi-vector encoder has a chain"
        scored = self._scored(part, request)
        kept = hidden[to_device(np.flatnonzero(scored), hidden.device)]
        vectors = self._finish(self.chain.token_vectors(kept).float(), cut)
        if request.device_codec is not None:
            return to_host(request.device_codec(vectors, np.diff(scored_offsets(scored, part.offsets))))[0]
        halved = heads.vector_dtype(self.compute.device, self.compute.dtype) is np.float16
        return to_host(vectors.half() if halved else vectors)[0]
