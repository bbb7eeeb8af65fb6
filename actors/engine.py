"""The encode loop of every embedder: batches by tokens, one forward pass each, all asked heads on its result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from actors import heads
from actors.backbone import Backbone
from actors.backbones.hf import PaddedTransformer
from actors.batching import inverse
from actors.compute import Compute
from actors.lanes import Lanes
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
    lanes: Lanes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lanes", Lanes(self.compute))

    @property
    def dim(self) -> int:
        return _cut(self.backbone.hidden_size, self.truncate_dim)

    @property
    def colbert_dim(self) -> int:
        return _cut(self._colbert_width, self.truncate_dim)

    @property
    def _colbert_width(self) -> int:
        return self.backbone.hidden_size if self.colbert is None else self.colbert.out_features

    def embed_tokens(self, tokens: TokenBatch, ask: Ask) -> EmbeddingBatch:
        """The asked outputs in the order of the texts. A text without any token gets zeros and no vectors."""
        lengths = tokens.lengths
        filled, empty = np.flatnonzero(lengths), np.flatnonzero(lengths == 0)
        done, parts = self.lanes.run(
            lengths[filled], lambda rows: self._embed_batch(tokens.take(filled[rows]), ask), ask.budget
        )
        batches = [filled[rows] for rows in done]
        if len(empty) or not parts:
            parts.append(self._zeros(tokens.take(empty), ask))
        return concat(parts).take(inverse([*batches, empty]))

    def _embed_batch(self, tokens: TokenBatch, ask: Ask) -> EmbeddingBatch:
        ids = torch.from_numpy(tokens.ids.astype(np.int64)).to(self.compute.device)
        hidden = self._forward(ids, tokens.offsets, ask.domain)
        cut = None if ask.whole else self.truncate_dim
        dense = self._dense(hidden, tokens.offsets, cut) if "dense" in ask.outputs else None
        sparse = self._sparse(hidden, ids, tokens.offsets) if "sparse" in ask.outputs else None
        colbert = self._colbert(hidden, tokens.offsets, cut) if "colbert" in ask.outputs else None
        return self._batch(tokens, dense, sparse, colbert)

    def _forward(self, ids: Tensor, offsets: IntArray, domain: str | None) -> Tensor:
        if domain is not None and isinstance(self.backbone, PaddedTransformer):
            return self.backbone.forward(ids, offsets, domain)
        return self.backbone.forward(ids, offsets)

    def _dense(self, hidden: Tensor, offsets: IntArray, cut: int | None) -> Array:
        return heads.host(heads.dense(hidden, offsets, self.pooling, normalize=self.normalize, truncate_dim=cut))

    def _colbert(self, hidden: Tensor, offsets: IntArray, cut: int | None) -> MultiVectors:
        return heads.colbert(hidden, offsets, self.colbert, normalize=self.normalize, truncate_dim=cut)

    def _sparse(self, hidden: Tensor, ids: Tensor, offsets: IntArray) -> SparseVectors:
        assert self.sparse is not None, "sparse is among the outputs only where the head exists"
        return heads.sparse(hidden, ids, offsets, self.sparse, self.excluded_ids)

    def _zeros(self, tokens: TokenBatch, ask: Ask) -> EmbeddingBatch:
        offsets = np.zeros(len(tokens) + 1, dtype=np.int64)
        cut = None if ask.whole else self.truncate_dim
        dense = np.zeros((len(tokens), _cut(self.backbone.hidden_size, cut)), np.float32)
        sparse = SparseVectors(offsets, np.zeros(0, np.uint32), np.zeros(0, np.float32))
        colbert = MultiVectors(offsets, np.zeros((0, _cut(self._colbert_width, cut)), np.float32))
        return self._batch(
            tokens,
            dense if "dense" in ask.outputs else None,
            sparse if "sparse" in ask.outputs else None,
            colbert if "colbert" in ask.outputs else None,
        )

    @staticmethod
    def _batch(
        tokens: TokenBatch, dense: Array | None, sparse: SparseVectors | None, colbert: MultiVectors | None
    ) -> EmbeddingBatch:
        return EmbeddingBatch(dense, sparse, colbert, tokens.lengths.astype(np.int32), tokens.n_truncated)


def _cut(width: int, cut: int | None) -> int:
    return min(width, cut or width)
