"""Multiplies a few vectors by a matrix in one thread, without BLAS.

OpenBLAS hands even these to all cores, and its threads then spin for some ten milliseconds, in case there is more to
do: on two cores a whole search beside them took half as long again (49 ms for 33 at a million rows).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actors.kernels.jit import compiled_or
from actors.outputs import Array

Floats = npt.NDArray[np.float32]


def _plain_multiply(vectors: Any, matrix: Any, out: Any) -> None:
    out += vectors @ matrix


@compiled_or(_plain_multiply, fast=True)
def _multiply(vectors: Any, matrix: Any, out: Any) -> None:
    # i, k, j: the inner loop runs along a row of the matrix and of the output, both contiguous, so it is one broadcast
    # and one fused multiply-add per 16 numbers, and the row of the output stays in the first-level cache. No blocking:
    # a query has at most some dozens of vectors, and the matrix (590 kB at 384 x 384) is read from L2 once for each.
    for i in range(len(vectors)):
        for k in range(len(matrix)):
            value = vectors[i, k]
            for j in range(matrix.shape[1]):
                out[i, j] += value * matrix[k, j]


def matmul_single_thread(vectors: Array, matrix: Array) -> Floats:
    """Computes vectors (m, d) @ matrix (d, k), both float32 in C order: float32 (m, k)."""
    out = np.zeros((len(vectors), matrix.shape[1]), np.float32)
    _multiply(vectors, matrix, out)
    return out
