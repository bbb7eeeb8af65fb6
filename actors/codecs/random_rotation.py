"""Draws one fixed random orthogonal matrix per dimensionality, the same everywhere so that codes stay valid."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=8)
def random_rotation(dim: int) -> npt.NDArray[np.float32]:
    """Draws an orthogonal matrix, float32 (dim, dim), uniformly over all rotations (Mezzadri 2007), seed fixed."""
    drawn = np.random.default_rng(dim).standard_normal((dim, dim))
    q, r = np.linalg.qr(drawn)
    rotation: npt.NDArray[np.float32] = (q * np.where(np.diag(r) < 0, -1.0, 1.0)).astype(np.float32)
    rotation.flags.writeable = False
    return rotation
