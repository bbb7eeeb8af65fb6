"""Converts bf16 vectors to float32 and L2-normalises them in one pass; torch takes a conversion, a norm, a division.

numba has no bf16 type, but its 16 bits are the upper half of a float32. The price is a second way to the same numbers
(a row is multiplied by 1 / norm, not divided by it: within 6e-8) and a second of compiling on a machine's first use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.kernels.jit import njit_cached
from actors.outputs import IntArray


def normalize_token_rows(tokens: Tensor, offsets: IntArray, out: Tensor) -> None:
    """Fills out, float32 (T - n, d), with all vectors of n texts but each text's first, scaled to length 1.

    tokens: bf16 (T, d), on a CPU; offsets: int64 (n + 1,). A norm below 1e-12 counts as 1e-12.
    """
    _unit_rows(tokens.contiguous().view(torch.uint16).numpy(), offsets, out.numpy())


@njit_cached(nogil=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "contract"})
def _unit_rows(tokens: Any, offsets: Any, out: Any) -> None:
    # Two passes over a row that is in the first-level cache by then (768 bytes at 384 dimensions): sum of squares, then
    # scale and store. The sum may be reassociated, so it is vectorised over 16 lanes. .29 microseconds per token of
    # 1,024 dimensions where torch's three passes take .65; .155 of that is writing 4 KiB. Tried and slower or no
    # faster: widening the row into the output first, 512-bit registers, iterating over the row in place of its index
    # (numba then does not vectorise: 2.1).
    row, width = 0, tokens.shape[1]
    for i in range(len(offsets) - 1):
        for k in range(offsets[i] + 1, offsets[i + 1]):
            source, vector = tokens[k], out[row]
            squares = np.float32(0)
            for j in range(width):
                number = np.uint32(np.uint32(source[j]) << np.uint32(16)).view(np.float32)
                squares += number * number
            scale = np.float32(1) / max(np.sqrt(squares), np.float32(1e-12))
            for j in range(width):
                vector[j] = np.uint32(np.uint32(source[j]) << np.uint32(16)).view(np.float32) * scale
            row += 1
