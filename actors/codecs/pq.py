"""Product quantisation of ColBERT vectors: one byte for each 16 dimensions, the number of a trained centroid.

The centroids are k-means' on vectors of the texts that an index is begun with (Jegou et al. 2011, without a
rotation), so a build has a training pass of some seconds, and the codebook belongs to the index
(`actors.codecs.codebooks`). What it buys is vectors a 32nd of float16's size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.outputs import Array

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Book = npt.NDArray[np.float16]
"""(parts, 256, DIMS): the centroids of each part."""

DIMS = 16
CENTROIDS = 256
ROUNDS = 12
BLOCK_VECTORS = 4096


def parts(dim: int) -> int:
    """Bytes of one vector of `dim` dimensions."""
    return -(-dim // DIMS)


def train(vectors: Array, seed: int = 0) -> Book:
    """A codebook for vectors (m, d) like these; ValueError where there is none to learn from."""
    if not len(vectors):
        raise ValueError("the pq codec is trained on the first texts, and there is none that can be read")
    rng = np.random.default_rng(seed)
    return np.stack([_kmeans(part, rng) for part in _split(np.asarray(vectors, np.float32))]).astype(np.float16)


def encode(vectors: Floats, book: Floats) -> Codes:
    """(m, d) to uint8 (m, parts): the nearest centroid of each part. book: as float32."""
    codes = np.empty((len(vectors), len(book)), np.uint8)
    for start in range(0, len(vectors), BLOCK_VECTORS):
        for i, part in enumerate(_split(vectors[start : start + BLOCK_VECTORS])):
            codes[start : start + BLOCK_VECTORS, i] = _nearest(part, book[i])
    return codes


def decode(codes: Array, dim: int, book: Floats) -> Floats:
    """uint8 (m, parts) to float32 (m, dim). book: as float32."""
    vectors = np.empty((len(codes), len(book), DIMS), np.float32)
    for i in range(len(book)):
        vectors[:, i] = book[i][codes[:, i]]
    return vectors.reshape(len(codes), -1)[:, :dim]


def _split(vectors: Floats) -> list[Floats]:
    """Parts of DIMS dimensions, the last one filled up with zeros."""
    padded = np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % DIMS)))
    return [padded[:, i : i + DIMS] for i in range(0, padded.shape[1], DIMS)]


def _nearest(vectors: Floats, centroids: Floats) -> npt.NDArray[np.int64]:
    nearest: npt.NDArray[np.int64] = (vectors @ centroids.T - 0.5 * (centroids**2).sum(axis=1)).argmax(axis=1)
    return nearest


def _kmeans(vectors: Floats, rng: np.random.Generator) -> Floats:
    """(256, DIMS) centroids by Lloyd's rounds; one that loses all its vectors starts again at a random one."""
    centroids = vectors[rng.choice(len(vectors), CENTROIDS, replace=len(vectors) < CENTROIDS)]
    for _ in range(ROUNDS):
        nearest = _nearest(vectors, centroids)
        order = np.argsort(nearest, kind="stable")
        used, starts, counts = np.unique(nearest[order], return_index=True, return_counts=True)
        centroids = vectors[rng.integers(0, len(vectors), CENTROIDS)]
        centroids[used] = np.add.reduceat(vectors[order], starts, axis=0) / counts[:, None].astype(np.float32)
    return centroids
