"""Implements product quantisation (Jegou et al. 2011, without a rotation): one trained centroid per 16 dimensions.

The centroids are those of k-means on vectors of the texts that an index is begun with, so a build has a training pass
of some seconds, and the codebook belongs to the index (`actors.codecs.parameters`). What it buys is vectors a 32nd of
float16's size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.codecs.codec import Codes, Floats, TrainedCodec
from actors.outputs import Array

Codebook = npt.NDArray[np.float16]
"""(parts, 256, DIMS): the centroids of each part."""

DIMS = 16
CENTROIDS = 256
ROUNDS = 12
BLOCK_VECTORS = 4096


class ProductQuantization(TrainedCodec):
    """Stores d/16 bytes per vector. Parameters: a codebook, float16 (parts, 256, 16)."""

    name = "pq"
    scorer = "lookup_table"

    @classmethod
    def train(cls, vectors: Array) -> Codebook:
        """Runs k-means on each part of vectors (m, d), from a fixed seed: the same vectors give the same codebook."""
        rng = np.random.default_rng(0)
        return np.stack([_kmeans(part, rng) for part in _split_parts(cls._training_vectors(vectors))]).astype(
            np.float16
        )

    def encode(self, vectors: Floats) -> Codes:
        """Picks the nearest centroid of each part."""
        codebook = self.required_parameters()
        codes = np.empty((len(vectors), len(codebook)), np.uint8)
        for start in range(0, len(vectors), BLOCK_VECTORS):
            for i, part in enumerate(_split_parts(vectors[start : start + BLOCK_VECTORS])):
                codes[start : start + BLOCK_VECTORS, i] = _nearest_centroids(part, codebook[i])
        return codes

    def decode(self, codes: Array, dim: int) -> Floats:
        codebook = self.required_parameters()
        vectors = np.empty((len(codes), len(codebook), DIMS), np.float32)
        for i in range(len(codebook)):
            vectors[:, i] = codebook[i][codes[:, i]]
        return vectors.reshape(len(codes), -1)[:, :dim]

    def width(self, dim: int) -> int:
        return -(-dim // DIMS)


def _split_parts(vectors: Floats) -> list[Floats]:
    """Cuts vectors into parts of DIMS dimensions, the last one padded with zeros."""
    padded = np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % DIMS)))
    return [padded[:, i : i + DIMS] for i in range(0, padded.shape[1], DIMS)]


def _nearest_centroids(vectors: Floats, centroids: Floats) -> npt.NDArray[np.int64]:
    nearest: npt.NDArray[np.int64] = (vectors @ centroids.T - 0.5 * (centroids**2).sum(axis=1)).argmax(axis=1)
    return nearest


def _kmeans(vectors: Floats, rng: np.random.Generator) -> Floats:
    """Runs Lloyd's algorithm: (256, DIMS) centroids; one that loses all its vectors starts again at a random one."""
    centroids = vectors[rng.choice(len(vectors), CENTROIDS, replace=len(vectors) < CENTROIDS)]
    for _ in range(ROUNDS):
        nearest = _nearest_centroids(vectors, centroids)
        order = np.argsort(nearest, kind="stable")
        used, starts, counts = np.unique(nearest[order], return_index=True, return_counts=True)
        centroids = vectors[rng.integers(0, len(vectors), CENTROIDS)]
        centroids[used] = np.add.reduceat(vectors[order], starts, axis=0) / counts[:, None].astype(np.float32)
    return centroids
