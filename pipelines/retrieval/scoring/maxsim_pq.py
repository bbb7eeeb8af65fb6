"""Computes MaxSim of float queries and product-quantised codes by asymmetric distance tables (ADC).

The products of 16 query vectors with every centroid are one table, in which the 16 numbers that belong to one centroid
lie side by side: a code costs one vector load and one vector addition for 16 query vectors, and nothing is decoded. At
384 dimensions the table takes 393 kB and stays in the second-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from actors.kernels.jit import compiled
from actors.outputs import Array, IntArray
from pipelines.retrieval.scoring.kernels import Floats

LANES = 16


@compiled
def _maxsim(tables: Any, weights: Any, codes: Any, starts: Any, ends: Any, out: Any) -> None:
    """Writes out[i] = sum over query vectors of weight * max over codes starts[i]:ends[i]; 0 where there are none."""
    product, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for i in range(len(starts)):
        out[i] = 0
        if ends[i] == starts[i]:
            continue
        for group in range(len(tables)):
            best[:] = -np.inf
            # One code at a time: its product with 16 query vectors is the sum over the parts of one row of 16 floats,
            # tables[group, part, centroid]. The lanes are innermost, so that the row is one 64-byte vector load.
            for t in range(starts[i], ends[i]):
                product[:] = 0
                for part in range(codes.shape[1]):
                    centroid = codes[t, part]
                    for lane in range(LANES):
                        product[lane] += tables[group, part, centroid, lane]
                for lane in range(LANES):
                    best[lane] = max(best[lane], product[lane])
            # Padded lanes have weight 0, so the last group needs no bound of its own.
            for lane in range(LANES):
                out[i] += weights[group, lane] * best[lane]


class TableQuery:
    """Holds one query's products with every centroid of a codebook.

    vectors: (m, dim) float32; book: the codebook, float32 (parts, 256, dims).
    """

    def __init__(self, vectors: Floats, book: Floats) -> None:
        parts, _, dims = book.shape
        groups = -(-len(vectors) // LANES)
        padded = np.zeros((groups * LANES, parts * dims), np.float32)
        padded[: len(vectors), : vectors.shape[1]] = vectors
        # (parts, 256, dims) @ (parts, dims, lanes): for each centroid its products with all query vectors
        products = book @ padded.reshape(-1, parts, dims).transpose(1, 2, 0)
        tables = products.reshape(parts, -1, groups, LANES).transpose(2, 0, 1, 3)
        self.tables = np.ascontiguousarray(tables)

    def scores(self, codes: Array, starts: IntArray, ends: IntArray, weights: Floats) -> Floats:
        """Sums over query vectors the weight times the best product in each document: float32 (documents,).

        Document i has codes[starts[i]:ends[i]].
        """
        shares = np.zeros(len(self.tables) * LANES, np.float32)
        shares[: len(weights)] = weights
        out = np.empty(len(starts), np.float32)
        _maxsim(self.tables, shares.reshape(-1, LANES), np.ascontiguousarray(codes), starts, ends, out)
        return out
