"""One rotation for each dimension, the same everywhere, so that signs alone say as much as they can about a vector.

A model's dimensions differ in how much they vary, and a sign says nothing of that: turned at random, every dimension
holds a like share (RaBitQ, Gao and Long 2024, rotates for this reason). Products of turned vectors are what they were,
so a query is turned, too, and nothing else changes. The price is d x d multiplications a vector when it is encoded.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=8)
def rotation(dim: int) -> npt.NDArray[np.float32]:
    """float32 (dim, dim), orthogonal: drawn evenly over all rotations (Mezzadri 2007) from a fixed seed."""
    drawn = np.random.default_rng(dim).standard_normal((dim, dim))
    q, r = np.linalg.qr(drawn)
    turned: npt.NDArray[np.float32] = (q * np.where(np.diag(r) < 0, -1.0, 1.0)).astype(np.float32)
    turned.flags.writeable = False
    return turned
