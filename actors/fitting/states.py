"""Caches hidden states of texts on disk as float16: training then costs minutes, not encoder passes.

A token of a 384-wide encoder takes 768 bytes, a million tokens 0.8 GB of disk and little memory (the file is mapped).
Half precision changes a head's output in the fourth digit, which is below what bf16 does to the encoder itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.compute.batching import plan_batches
from actors.network.backbone import Backbone
from actors.outputs import Array, IntArray, TokenBatch, ranges

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Holds texts as tokens and hidden states.

    hidden: float16 (tokens, h); weighted: bool (tokens,), those that may get a lexical weight.
    """

    tokens: TokenBatch
    hidden: Array
    weighted: Flags

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, positions: IntArray) -> Tensor:
        """Returns float32 (n, h): the states at these token positions."""
        return torch.from_numpy(self.hidden[positions]).float()

    def positions(self, rows: IntArray) -> IntArray:
        """Returns the token positions of the given texts, one after the other."""
        return ranges(self.tokens.offsets[:-1][rows], self.tokens.lengths[rows])

    def rows(self) -> IntArray:
        """Returns the text that each token belongs to."""
        return np.repeat(np.arange(len(self)), self.tokens.lengths)


def compute_states(
    backbone: Backbone, tokens: TokenBatch, excluded: frozenset[int], budget: int, folder: Path, model: str
) -> States:
    """Computes the states of all tokens, or reads them from the cache in `folder` for the same model and ids.

    model: the fingerprint of the weights. Raises ValueError if a state is not finite, with the text's row.
    """
    path = folder / f"{_key(tokens, model)}.npy"
    if not path.exists():
        _write(backbone, tokens, budget, path)
    hidden: Array = np.load(path, mmap_mode="r")
    return States(tokens, hidden, ~np.isin(tokens.ids, list(excluded)))


def _key(tokens: TokenBatch, model: str) -> str:
    digest = hashlib.sha256(model.encode())
    digest.update(tokens.ids.tobytes())
    digest.update(tokens.offsets.tobytes())
    return digest.hexdigest()[:32]


@torch.inference_mode()
def _write(backbone: Backbone, tokens: TokenBatch, budget: int, path: Path) -> None:
    part = path.with_suffix(".part")
    hidden = np.lib.format.open_memmap(part, "w+", np.float16, (len(tokens.ids), backbone.hidden_size))
    for rows in plan_batches(tokens.lengths, budget):
        batch = tokens.take(rows)
        ids = torch.from_numpy(batch.ids.astype(np.int64)).to(backbone.device)
        states = backbone.forward(ids, batch.offsets).half().cpu().numpy()
        if not np.isfinite(states).all():
            bad = np.flatnonzero(~np.isfinite(states).all(1))[0]
            text = rows[np.searchsorted(batch.offsets, bad, side="right") - 1]
            raise ValueError(f"the encoder's state of text {text} is not finite in float16: its weights are unusable")
        hidden[ranges(tokens.offsets[:-1][rows], batch.lengths)] = states
    hidden.flush()
    part.rename(path)
