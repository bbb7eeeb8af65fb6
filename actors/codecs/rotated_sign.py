"""Implements binary quantisation after a random rotation (as RaBitQ, Gao and Long 2024): one bit per dimension.

A model's dimensions differ in variance, and a sign drops that. After a random rotation every dimension holds a like
share of it. Inner products are unchanged by a rotation, so the query is rotated as well and nothing else changes. The
price is d x d multiplications per vector at encoding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from actors.codecs.codec import Codec, Codes, Floats
from actors.codecs.random_rotation import random_rotation
from actors.codecs.sign import Sign
from actors.outputs import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RotatedSign(Sign):
    """Stores the signs of rotated vectors; one fixed rotation per dimensionality, the same in every index."""

    name = "rotated_sign"

    def encode(self, vectors: Floats) -> Codes:
        return super().encode(vectors @ random_rotation(vectors.shape[1]))

    def decode(self, codes: Array, dim: int) -> Floats:
        return super().decode(codes, dim) @ random_rotation(dim).T

    def transform_query(self, query: Floats) -> tuple[Floats, Codec]:
        """Rotates the query: its products with the bits as signs are those of the decoded vectors with the query."""
        from actors.kernels.matmul import matmul_single_thread  # numba: a third of a second, which only queries need

        return matmul_single_thread(query, random_rotation(query.shape[1])), Sign()

    def encode_on_device(self, vectors: Tensor) -> Tensor:
        return super().encode_on_device(vectors @ _rotation_on(vectors.shape[1], vectors.dtype, vectors.device))


@lru_cache(maxsize=8)
def _rotation_on(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copies the rotation to a device once: 4 MiB at 1024 dimensions, for which no batch should wait."""
    import torch

    return torch.tensor(random_rotation(dim), dtype=dtype, device=device)
