"""Implements uncompressed codecs: `float32`, and `float16`, which keeps scores to three digits at half the size."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from actors.codecs.codec import Codec, Floats
from actors.outputs import Array


class Float32(Codec):
    """Stores vectors as they are: 4 bytes per dimension."""

    name = "float32"
    is_float = True
    dtype: ClassVar[type[np.float32] | type[np.float16]] = np.float32

    def encode(self, vectors: Floats) -> Array:
        return vectors.astype(self.dtype)

    def decode(self, codes: Array, dim: int) -> Floats:
        return codes.astype(np.float32)

    def width(self, dim: int) -> int:
        return dim * np.dtype(self.dtype).itemsize


class Float16(Float32):
    """Stores vectors in half precision: 2 bytes per dimension."""

    name = "float16"
    dtype = np.float16
