"""Implements scalar quantisation to int8: a float16 scale (max / 127) per vector, one signed byte per dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actors.codecs.codec import Codec, Codes, Floats
from actors.outputs import Array

if TYPE_CHECKING:
    from torch import Tensor


class Int8(Codec):
    """Stores dim + 2 bytes per vector: the scale as float16, then the values in units of it."""

    name = "int8"

    def encode(self, vectors: Floats) -> Codes:
        scale = (np.abs(vectors).max(axis=1, initial=0.0) / 127).astype(np.float16)
        divisor = np.where(scale == 0, 1, scale.astype(np.float32))[:, None]
        values = np.clip(np.rint(vectors / divisor), -127, 127).astype(np.int8)
        return np.hstack([scale[:, None].view(np.uint8), values.view(np.uint8)])

    def decode(self, codes: Array, dim: int) -> Floats:
        scale = np.ascontiguousarray(codes[:, :2]).view(np.float16).astype(np.float32)
        return np.ascontiguousarray(codes[:, 2:]).view(np.int8).astype(np.float32) * scale

    def width(self, dim: int) -> int:
        return dim + 2

    def encode_on_device(self, vectors: Tensor) -> Tensor:
        import torch

        vectors = vectors.float()
        scale = (vectors.abs().amax(1, keepdim=True) / 127).half()
        divisor = torch.where(scale == 0, 1, scale.float())
        values = (vectors / divisor).round().clamp(-127, 127).to(torch.int8)
        return torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], 1)
