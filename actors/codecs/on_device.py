"""ColBERT vectors made small on the device that computed them, so that a sixteenth of the bytes leaves a GPU.

At M3's size a GPU gives some 650k tokens a second: 1.3 GB/s of float16, and packing their signs on the host would keep
a core busy and be late. The price is a second place that knows three of the codecs of `actors.codecs.codecs`; a test
holds the bytes of both together. On a CPU numpy packs bits faster than torch, so there the host keeps the work.

torch is imported where tensors are: a driver makes a Shrink for its actors and holds none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from actors.codecs.rotation import rotation
from actors.outputs import IntArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shrink:
    """What a token's vector becomes. every: so many neighbours become one vector, their mean normalised again."""

    codec: Literal["sign", "rotated_sign", "int8"]
    every: int = 1

    def lengths(self, lengths: IntArray) -> IntArray:
        """Vectors of each text, of `lengths` vectors before."""
        return -(-lengths // self.every)

    def width(self, dim: int) -> int:
        """Bytes of one vector of `dim` dimensions."""
        return dim + 2 if self.codec == "int8" else -(-dim // 8)

    def __call__(self, vectors: Tensor, lengths: IntArray) -> Tensor:
        """(m, d) floats of texts with `lengths` vectors each to uint8 (m', width), on the same device."""
        import torch

        if not len(vectors):
            return torch.empty(0, self.width(vectors.shape[1]), dtype=torch.uint8, device=vectors.device)
        if self.every > 1:
            vectors = _pooled(vectors.float(), self._groups(lengths))
        if self.codec == "int8":
            return _int8(vectors.float())
        return _signs(vectors if self.codec == "sign" else _turned(vectors))

    def _groups(self, lengths: IntArray) -> IntArray:
        """Vectors in each group: `every`, and what is left at the end of a text."""
        counts = self.lengths(lengths)
        sizes = np.full(counts.sum(), self.every, np.int64)
        last = counts.cumsum()[counts > 0] - 1
        sizes[last] -= (counts * self.every - lengths)[counts > 0]
        return sizes


def _pooled(vectors: Tensor, sizes: IntArray) -> Tensor:
    import torch
    from torch.nn.functional import normalize

    lengths = torch.from_numpy(sizes).to(vectors.device)
    return normalize(torch.segment_reduce(vectors, "sum", lengths=lengths), dim=-1, eps=1e-12)


def _turned(vectors: Tensor) -> Tensor:
    return vectors @ _rotation(vectors.shape[1], vectors.dtype, vectors.device)


@lru_cache(maxsize=8)
def _rotation(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device, where it stays: 4 MiB at M3's size, that no batch should wait for."""
    import torch

    return torch.tensor(rotation(dim), dtype=dtype, device=device)


def _signs(vectors: Tensor) -> Tensor:
    """One bit a dimension, the first in the lowest bit; 1 for above zero."""
    import torch
    from torch.nn.functional import pad

    bits = pad(vectors > 0, (0, -vectors.shape[1] % 8)).view(len(vectors), -1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=vectors.device)
    return (bits * powers).sum(-1, dtype=torch.uint8)


def _int8(vectors: Tensor) -> Tensor:
    """A float16 scale, the largest number's 127th part, then the numbers in units of it."""
    import torch

    scale = (vectors.abs().amax(1, keepdim=True) / 127).half()
    divisor = torch.where(scale == 0, 1, scale.float())
    values = (vectors / divisor).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], 1)
