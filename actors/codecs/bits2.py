"""Implements scalar quantisation to two bits per dimension with the levels of Max's quantiser of a Gaussian (1960).

The levels follow from the dimension alone: coordinates of unit vectors behave like draws from N(0, 1/d). That costs a
little accuracy against levels fitted to one corpus, and needs no training pass.
"""

from __future__ import annotations

import numpy as np

from actors.codecs.codec import Codec, Codes, Floats
from actors.codecs.sign import Sign
from actors.outputs import Array

THRESHOLD, INNER, OUTER = 0.9816, 0.4528, 1.5104
"""Threshold and levels of the best 4-level quantiser of N(0, 1) (Max 1960)."""


class Bits2(Codec):
    """Stores four dimensions per byte, the first in the lowest two bits; levels 0 to 3 ascend."""

    name = "bits2"
    scorer = "sign_bits"

    def encode(self, vectors: Floats) -> Codes:
        dim = vectors.shape[1]
        threshold = np.float32(THRESHOLD / np.sqrt(dim))
        levels = np.zeros((len(vectors), -(-dim // 4) * 4), np.uint8)
        levels[:, :dim] = (vectors > -threshold).view(np.uint8) + (vectors > 0) + (vectors > threshold)
        packed: Codes = levels[:, 0::4] | levels[:, 1::4] << 2 | levels[:, 2::4] << 4 | levels[:, 3::4] << 6
        return packed

    def decode(self, codes: Array, dim: int) -> Floats:
        levels = np.array([-OUTER, -INNER, INNER, OUTER], np.float32) / np.float32(np.sqrt(dim))
        indices = (codes[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
        decoded: Floats = levels[indices.reshape(len(codes), -1)[:, :dim]]
        return decoded

    def width(self, dim: int) -> int:
        return -(-dim // 4)

    def transform_query(self, query: Floats) -> tuple[Floats, Codec]:
        """Doubles the dimensions: a level is high x the upper bit's sign + low x the lower bit's sign."""
        high, low = (OUTER + INNER) / 2, (OUTER - INNER) / 2
        pairs = np.sqrt(2) * np.stack([low * query, high * query], axis=2)
        return pairs.reshape(len(query), -1).astype(np.float32), Sign()
