"""Implements binary quantisation: the sign of each dimension, one bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actors.codecs.codec import Codec, Codes, Floats
from actors.outputs import Array

if TYPE_CHECKING:
    from torch import Tensor


class Sign(Codec):
    """Stores eight dimensions per byte, the first in the lowest bit; 1 for coordinates above zero."""

    name = "sign"
    scorer = "sign_bits"

    def encode(self, vectors: Floats) -> Codes:
        return np.packbits(vectors > 0, axis=1, bitorder="little")

    def decode(self, codes: Array, dim: int) -> Floats:
        """Decodes to unit vectors: +-1 / sqrt(dim) in each dimension."""
        positive = np.unpackbits(codes, axis=1, count=dim, bitorder="little")
        scale = np.float32(1 / np.sqrt(dim))
        return positive.astype(np.float32) * (2 * scale) - scale

    def width(self, dim: int) -> int:
        return -(-dim // 8)

    def encode_on_device(self, vectors: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import pad

        bits = pad(vectors > 0, (0, -vectors.shape[1] % 8)).view(len(vectors), -1, 8)
        powers = 1 << torch.arange(8, dtype=torch.uint8, device=vectors.device)
        return (bits * powers).sum(-1, dtype=torch.uint8)
