"""Makes ColBERT heads: the identity, a PCA, or a linear layer trained from either.

The identity costs nothing and is hard to beat: MaxSim over the last hidden states is the strongest single output of
all-MiniLM-L6-v2, and trained layers of this size gained in domain what they lost outside. So training starts at the
identity (or at PCA, where fewer dimensions are requested) and has to earn its place on the development split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from actors.fitting.mining import Mined, token_vectors
from actors.fitting.states import States
from actors.outputs import IntArray

TEMPERATURE = 0.03


def identity(hidden: int) -> nn.Linear:
    """Makes the identity head: the hidden states as they are."""
    return _layer(torch.eye(hidden), torch.zeros(hidden))


def pca_projection(collections: list[States], dim: int, sample: int, rng: np.random.Generator) -> nn.Linear:
    """Makes a projection hidden -> dim onto the directions of largest second moment, not centred, so that dot products
    survive best."""
    states = torch.cat(
        [c.at(np.sort(rng.permutation(len(c.hidden))[: sample // len(collections)])) for c in collections]
    )
    _, vectors = torch.linalg.eigh((states.T @ states).double())
    return _layer(vectors[:, -dim:].T.flip(0).float().contiguous(), torch.zeros(dim))


def _layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def scores(head: nn.Linear, queries: States, passages: States, mined: Mined, rows: IntArray, count: int) -> Tensor:
    """Computes (len(rows), count): MaxSim over the first candidates of each query, divided by the temperature."""
    lists = []
    for row in rows:
        query = token_vectors(queries, int(row), head)
        found = [token_vectors(passages, int(p), head) for p in mined.rows[row, :count]]
        lists.append(torch.stack([(query @ vectors.T).amax(1).mean() for vectors in found]))
    return torch.stack(lists) / TEMPERATURE
