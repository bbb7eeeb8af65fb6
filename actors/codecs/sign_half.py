"""Encodes the first d/2 principal components after a random rotation to one bit each: half the bytes of `sign`.

Half the principal directions hold nearly all of a ColBERT vector (PCA from 384 to 192 dimensions loses .002 of nDCG,
not significant over 1,500 queries), but unlike shares of it; after a random rotation each of their signs carries as
much as any other (as in `actors.codecs.rotated_sign`). A learned rotation (ITQ, Gong and Lazebnik 2011) was measured
and lost more. Half the time to score, too; what it loses, and where, is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.codecs.codec import Codec, CodecParameters, Codes, Floats, TrainedCodec
from actors.codecs.random_rotation import random_rotation
from actors.codecs.sign import Sign
from actors.outputs import Array


class SignHalf(TrainedCodec):
    """Stores d/16 bytes per vector. Parameters: float16 (dim, kept), orthonormal columns."""

    name = "sign_half"
    scorer = "sign_bits"

    def __init__(self, parameters: CodecParameters | None = None) -> None:
        super().__init__(parameters)
        if parameters is not None and len(parameters) == 2 and parameters.shape[1] > 2:
            raise ValueError(
                "sign_half has changed since this index was built, and its codes decode to other vectors now"
            )

    @classmethod
    def train(cls, vectors: Array) -> npt.NDArray[np.float16]:
        """Finds the principal directions of vectors (m, d) and rotates them at random."""
        sample = cls._training_vectors(vectors)
        _, directions = np.linalg.eigh((sample.T @ sample).astype(np.float64))  # ascending
        best = directions[:, -kept_dimensions(sample.shape[1]) :]
        return (best @ random_rotation(best.shape[1])).astype(np.float16)

    def encode(self, vectors: Floats) -> Codes:
        """Packs the signs of the projections, the first dimension in the lowest bit."""
        return np.packbits(vectors @ self.required_parameters() > 0, axis=1, bitorder="little")

    def decode(self, codes: Array, dim: int) -> Floats:
        """Decodes to unit vectors in the space of the kept directions."""
        projection = self.required_parameters()
        bits = np.unpackbits(codes, axis=1, count=projection.shape[1], bitorder="little")
        signs = (2 * bits.astype(np.float32) - 1) / np.float32(np.sqrt(projection.shape[1]))
        return (signs @ projection.T).astype(np.float32)

    def width(self, dim: int) -> int:
        return kept_dimensions(dim) // 8

    def transform_query(self, query: Floats) -> tuple[Floats, Codec]:
        """Projects the query onto the kept directions."""
        from actors.kernels.matmul import matmul_single_thread  # numba: a third of a second, which only queries need

        return matmul_single_thread(query, self.required_parameters()), Sign()


def kept_dimensions(dim: int) -> int:
    """Returns how many of `dim` dimensions are kept: half of them, in whole bytes."""
    return min(dim, -(-dim // 16) * 8)
