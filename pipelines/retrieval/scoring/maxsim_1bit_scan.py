"""Finds the best MaxSim scores of several queries in a whole table of one-bit codes, in one pass over the codes.

Query vectors rounded to 8-bit integers give each document an approximate score that is off by at most a known bound,
and only the documents within that bound of the n-th best are scored in float (`maxsim_1bit`): the answer is that of
scoring all, to the bit. The vectors of all queries are laid out one behind the other in lanes of 16, so that a code is
read and expanded once for all queries and few lanes are empty. Figures are in benchmarks/RESEARCH_LOG.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.kernels.jit import compiled
from actors.outputs import Array, IntArray, offsets_of
from pipelines.retrieval.scoring.kernels import Floats
from pipelines.retrieval.scoring.maxsim_1bit import as_words, plane_product, round_vectors, split_planes
from pipelines.retrieval.scoring.vnni import (
    CODES,
    LANES,
    has_vnni,
    keep_largest,
    keep_largest_of_two,
    query_lanes,
    unfold,
)

BLOCK = 16
"""Documents whose codes are gone through for one pair of lane groups (12 KB at 384 dimensions) before the next."""


@compiled
def _sum_maxima(best: Any, factors: Any, firsts: Any, constants: Any, out: Any) -> None:
    """Writes out[q] = constant + sum over the vectors of query q of factor * maximum; best: (vectors,) int32."""
    for q in range(len(firsts) - 1):
        total = constants[q]
        for v in range(firsts[q], firsts[q + 1]):
            total += factors[v] * best[v]
        out[q] = total


@compiled
def _approximate_by_lanes(
    lanes: Any, factors: Any, firsts: Any, constants: Any, words: Any, starts: Any, ends: Any, out: Any
) -> None:
    """Writes out[i, q], the approximate score of document i for query q; -inf for a document without codes."""
    groups = len(lanes)
    unfolded = np.zeros((CODES, 64 * words.shape[1]), np.uint8)
    best = np.empty((BLOCK, groups, LANES), np.int32)
    for first in range(0, len(starts), BLOCK):
        last = min(first + BLOCK, len(starts))
        best[:] = np.iinfo(np.int32).min
        for group in range(0, groups, 2):
            for i in range(first, last):
                # The last tile of a document repeats its last code, which changes no maximum.
                for t in range(starts[i], ends[i], CODES):
                    for c in range(CODES):
                        unfold(words, min(t + c, ends[i] - 1), unfolded, c)
                    if group + 1 < groups:
                        keep_largest_of_two(lanes, group, unfolded, best[i - first])
                    else:
                        keep_largest(lanes, group, unfolded, best[i - first])
        for i in range(first, last):
            if starts[i] < ends[i]:
                _sum_maxima(best[i - first].reshape(-1), factors, firsts, constants, out[i])
            else:
                out[i] = -np.inf


@compiled
def _approximate_by_planes(
    planes: Any, factors: Any, firsts: Any, constants: Any, words: Any, starts: Any, ends: Any, out: Any
) -> None:
    """Computes what `_approximate_by_lanes` computes, by popcounts; planes: as `maxsim_1bit.split_planes` has them."""
    last = len(planes) - 1
    best = np.empty(last, np.int32)
    for i in range(len(starts)):
        if starts[i] == ends[i]:
            out[i] = -np.inf
            continue
        best[:] = np.iinfo(np.int32).min
        for t in range(starts[i], ends[i]):
            excess = plane_product(planes, last, words, t)
            for v in range(last):
                best[v] = max(best[v], plane_product(planes, v, words, t) - excess)
        _sum_maxima(best, factors, firsts, constants, out[i])


class BitScan:
    """Holds the rounded vectors of several queries for approximate scores of all documents.

    queries: (m, dim) float32 each; weights: (m,) each, summing to 1. vnni: as in `maxsim_1bit.BitQuery`.
    """

    def __init__(self, queries: Sequence[Floats], weights: Sequence[Floats], vnni: bool | None = None) -> None:
        vectors, shares = np.concatenate(queries), np.concatenate(weights)
        root = np.float32(np.sqrt(vectors.shape[1]))
        rounded, steps, slack = round_vectors(vectors)
        self.firsts = offsets_of(np.array([len(query) for query in queries], np.int64))
        # A code's product is (2 * sum of the values where it has a one - sum of all values) / sqrt(dim).
        self.factors = (2 * shares * steps / root).astype(np.float32)
        self.constants = -_sum_each(shares * vectors.sum(axis=1) / root, self.firsts)
        self.widths = _sum_each(self.factors * slack, self.firsts)
        """For each query, by how much the approximate scores of two documents are off from one another at most."""
        self.vnni = has_vnni() if vnni is None else vnni
        self.vectors = query_lanes(rounded.astype(np.int8)) if self.vnni else split_planes(rounded)

    def approximate_scores(self, codes: Array, starts: IntArray, ends: IntArray) -> Floats:
        """Computes approximate scores (documents, queries); document i has codes[starts[i]:ends[i]], -inf for none."""
        out = np.empty((len(starts), len(self.constants)), np.float32)
        kernel = _approximate_by_lanes if self.vnni else _approximate_by_planes
        words = as_words(np.ascontiguousarray(codes))
        kernel(self.vectors, self.factors, self.firsts, self.constants, words, starts, ends, out)
        return out


def _sum_each(values: Floats, firsts: IntArray) -> npt.NDArray[np.float32]:
    """Sums values[firsts[i]:firsts[i + 1]] for each i: float32."""
    before = np.concatenate([np.zeros(1), np.cumsum(values, dtype=np.float64)])
    return np.diff(before[firsts]).astype(np.float32)
