"""Smooths fused scores over near documents: a row whose neighbours score well, too, is likelier to be relevant.

Score regularisation (Diaz, "Regularizing ad hoc retrieval scores", CIKM 2005). For each of the best rows by fused
score, take the mean of its score, with weight 1, and of its nearest neighbours' among them, each with weight strength x
cosine^4 of the dense vectors: a row without near neighbours keeps its score, and equal rows change nothing. A row rises
to that mean, but falls only FALL of the way, because the one answer to a question often stands alone.

Its effect is in benchmarks/RESULTS.md; it costs a read of SMOOTHED_ROWS dense vectors and their products. It is
linear in the scores once it is known which rows rise, so it is applied to each channel's part, and they add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.outputs import IntArray
from pipelines.retrieval.scoring.kernels import dense_dots

SMOOTHED_ROWS = 50
"""Best rows by fused score that are smoothed, and that neighbours come from; rows with the last one's score as well."""
NEIGHBOURS = 8
COSINE_POWER = 4
FALL = 0.6
"""Chosen with the weights and the strength by leave-one-collection-out (benchmarks/fusions.py)."""
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class NeighbourGraph:
    """Holds the nearest neighbours of the best m candidates of a query.

    places (m,): those candidates; neighbours (m, k): places in `places`; weights (m, k): cosines to COSINE_POWER.
    """

    places: IntArray
    neighbours: IntArray
    weights: Doubles

    def smoother(self, fused: Doubles, strength: float) -> Callable[[Doubles], Doubles]:
        """Returns what smooths values (n,) of all candidates. fused: their scores, which decide what rises."""
        steps = np.where(self._mean(fused, strength) > fused[self.places], 1.0, FALL)

        def smooth(values: Doubles) -> Doubles:
            smoothed = values.copy()
            smoothed[self.places] += steps * (self._mean(values, strength) - values[self.places])
            return smoothed

        return smooth

    def _mean(self, values: Doubles, strength: float) -> Doubles:
        """Averages each of the best rows' values with its neighbours'."""
        best, weights = values[self.places], strength * self.weights
        mean: Doubles = (best + (weights * best[self.neighbours]).sum(axis=1)) / (1 + weights.sum(axis=1))
        return mean


def best_places(fused: Doubles) -> IntArray:
    """Returns the places of the SMOOTHED_ROWS best candidates, ties with the last one included, best first."""
    order = np.argsort(-fused, kind="stable")
    if len(order) <= SMOOTHED_ROWS:
        return order
    return order[: np.searchsorted(-fused[order], -fused[order[SMOOTHED_ROWS - 1]], side="right")]


def build_graph(places: IntArray, fused: Doubles, vectors: Floats) -> NeighbourGraph:
    """Finds the nearest neighbours of some candidates by their unit vectors (m, d).

    Of equal cosines the row with the better score is the nearer one, so that the order of rows changes nothing.
    """
    rows = np.arange(len(places))
    cosines = np.empty((len(rows), len(rows)), np.float32)
    for row in rows:
        dense_dots(vectors[row], vectors, rows, cosines[row])
    np.fill_diagonal(cosines, -1)
    weights = np.maximum(cosines, 0).astype(np.float64) ** COSINE_POWER
    by_score = np.broadcast_to(-fused[places], cosines.shape)
    nearest = np.lexsort((by_score, -weights), axis=1)[:, : min(NEIGHBOURS, max(0, len(rows) - 1))]
    return NeighbourGraph(places, nearest, np.take_along_axis(weights, nearest, axis=1))
