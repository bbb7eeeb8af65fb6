"""Implements static embeddings (StaticEmbedding, model2vec): a table of token vectors, no network.

The table stays in float32 whatever the dtype of the pass: a lookup is bound by memory, and bf16 would cost three digits
for nothing. Pooling is the chain's mean, so one engine serves tables and transformers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.loading import load_tensors
from actors.checkpoints.module_chain import STATIC_TABLES, module_weights
from actors.network.attention import Counts
from actors.outputs import IntArray


class StaticEmbedding:
    """Looks up a vector per token; satisfies `Backbone`."""

    max_positions = 2**31

    def __init__(self, table: Tensor) -> None:
        """table: float32 (vocab_size, h)."""
        self.words, self.device = table, table.device
        self.vocab_size, self.hidden_size = table.shape

    def to(self, device: torch.device) -> StaticEmbedding:
        return StaticEmbedding(self.words.to(device))

    @torch.inference_mode()
    def forward(self, ids: Tensor, offsets: IntArray, *, attended: Counts | None = None) -> Tensor:
        """Maps int64 ids (T,) to float32 (T, h); a token's neighbours change nothing."""
        return embedding(ids, self.words)


def load_static_embedding(folder: Path) -> StaticEmbedding:
    """Loads a StaticEmbedding's table. CheckpointError if the weights hold none.

    model2vec may store fewer rows than tokens (`mapping`: token to row) and a factor per token (`weights`).
    """
    path = module_weights(folder)
    tensors = load_tensors(path)
    table = next((tensors[name] for name in STATIC_TABLES if name in tensors), None)
    if table is None:
        raise CheckpointError(f"{path} holds no table of a StaticEmbedding: expected {' or '.join(STATIC_TABLES)}")
    stored = table.dtype
    if "mapping" in tensors:
        table = table[tensors["mapping"].long()]
    if "weights" in tensors:
        table = (table.float() * tensors["weights"].float()[:, None]).to(stored)
    return StaticEmbedding(table.float())
