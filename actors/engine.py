"""The encode loop of every embedder: batches by tokens, one forward pass each, all asked heads on its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from actors import heads
from actors.backbone import Backbone
from actors.backbones.hf import PaddedTransformer
from actors.batching import inverse, plan
from actors.compute import Compute
from actors.outputs import Array, EmbeddingBatch, IntArray, MultiVectors, SparseVectors, TokenBatch, concat
from actors.spec import Output, Pooling


@dataclass(frozen=True, slots=True)
class Ask:
    """What one call wants. budget: at most so many tokens in a pass; whole: leave truncate_dim aside; domain: for
    checkpoints with code of their own that route by domain."""

    outputs: tuple[Output, ...]
    budget: int | None = None
    whole: bool = False
    domain: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """A loaded model. `outputs`: what it can give; `colbert` None is the identity where colbert is among them."""

    backbone: Backbone
    compute: Compute
    outputs: tuple[Output, ...]
    pooling: Pooling
    normalize: bool
    truncate_dim: int | None
    sparse: nn.Linear | None
    colbert: nn.Linear | None
    excluded_ids: frozenset[int]

    @property
    def dim(self) -> int:
        return min(self.backbone.hidden_size, self.truncate_dim or self.backbone.hidden_size)

    @property
    def colbert_dim(self) -> int:
        width = self.backbone.hidden_size if self.colbert is None else self.colbert.out_features
        return min(width, self.truncate_dim or width)

    def embed_tokens(self, tokens: TokenBatch, ask: Ask) -> EmbeddingBatch:
        """The asked outputs in the order of the texts. A text without any token gets zeros and no vectors."""
        engine = replace(self, truncate_dim=None) if ask.whole else self
        lengths = tokens.lengths
        filled = np.flatnonzero(lengths)
        budget = min(ask.budget or self.compute.budget, self.compute.budget)
        batches = [filled[rows] for rows in plan(lengths[filled], budget)]
        empty = np.flatnonzero(lengths == 0)
        parts = [engine._embed_batch(tokens.take(rows), ask) for rows in batches]
        if len(empty) or not parts:
            parts.append(engine._zeros(tokens.take(empty), ask.outputs))
        return concat(parts).take(inverse([*batches, empty]))

    def _embed_batch(self, tokens: TokenBatch, ask: Ask) -> EmbeddingBatch:
        ids = torch.from_numpy(tokens.ids.astype(np.int64)).to(self.compute.device)
        hidden = self._forward(ids, tokens.offsets, ask.domain)
        dense = self._dense(hidden, tokens.offsets) if "dense" in ask.outputs else None
        sparse = self._sparse(hidden, ids, tokens.offsets) if "sparse" in ask.outputs else None
        colbert = self._colbert(hidden, tokens.offsets) if "colbert" in ask.outputs else None
        return self._batch(tokens, dense, sparse, colbert)

    def _forward(self, ids: Tensor, offsets: IntArray, domain: str | None) -> Tensor:
        if domain is not None and isinstance(self.backbone, PaddedTransformer):
            return self.backbone.forward(ids, offsets, domain)
        return self.backbone.forward(ids, offsets)

    def _dense(self, hidden: Tensor, offsets: IntArray) -> Array:
        cut, unit = self.truncate_dim, self.normalize
        return heads.dense(hidden, offsets, self.pooling, normalize=unit, truncate_dim=cut).cpu().numpy()

    def _colbert(self, hidden: Tensor, offsets: IntArray) -> MultiVectors:
        cut, unit = self.truncate_dim, self.normalize
        return heads.colbert(hidden, offsets, self.colbert, normalize=unit, truncate_dim=cut)

    def _sparse(self, hidden: Tensor, ids: Tensor, offsets: IntArray) -> SparseVectors:
        assert self.sparse is not None, "sparse is among the outputs only where the head exists"
        return heads.sparse(hidden, ids, offsets, self.sparse, self.excluded_ids)

    def _zeros(self, tokens: TokenBatch, outputs: Sequence[Output]) -> EmbeddingBatch:
        offsets = np.zeros(len(tokens) + 1, dtype=np.int64)
        return self._batch(
            tokens,
            np.zeros((len(tokens), self.dim), np.float32) if "dense" in outputs else None,
            SparseVectors(offsets, np.zeros(0, np.uint32), np.zeros(0, np.float32)) if "sparse" in outputs else None,
            MultiVectors(offsets, np.zeros((0, self.colbert_dim), np.float32)) if "colbert" in outputs else None,
        )

    @staticmethod
    def _batch(
        tokens: TokenBatch, dense: Array | None, sparse: SparseVectors | None, colbert: MultiVectors | None
    ) -> EmbeddingBatch:
        return EmbeddingBatch(dense, sparse, colbert, tokens.lengths.astype(np.int32), tokens.n_truncated)
