"""One bit for each of half the dimensions: whether a vector lies above the corpus's mean there.

The dimensions are those that vary most over a sample of the corpus. What all vectors share says nothing about any of
them, so dropping it costs a query token one constant for all documents and no rank. Coordinates stay as the model gives
them: a learned rotation (ITQ, Gong and Lazebnik 2011) was measured and lost more. Half the bytes of `sign`, half the
time to score; what it loses, and where, is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.outputs import Array

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Book = npt.NDArray[np.float32]
"""(2, kept): the dimensions, ascending, and their means."""


def kept(dim: int) -> int:
    """Dimensions that are kept of `dim`: half of them, in whole bytes."""
    return min(dim, -(-dim // 16) * 8)


def train(vectors: Array) -> Book:
    """The book for vectors (m, d) like these; ValueError where there is none to learn from."""
    if not len(vectors):
        raise ValueError("the sign_half codec is trained on the first texts, and there is none that can be read")
    sample = np.asarray(vectors, np.float32)
    means, spread = sample.mean(axis=0), sample.std(axis=0)
    dims = np.sort(np.argsort(-spread, kind="stable")[: kept(sample.shape[1])])
    return np.stack([dims.astype(np.float32), means[dims]])


def dimensions(book: Book) -> npt.NDArray[np.int64]:
    dims: npt.NDArray[np.int64] = book[0].astype(np.int64)
    return dims


def encode(vectors: Floats, book: Book) -> Codes:
    """(m, d) to uint8 (m, kept / 8), the first dimension in the lowest bit."""
    return np.packbits(vectors[:, dimensions(book)] > book[1], axis=1, bitorder="little")


def decode(codes: Array, dim: int, book: Book) -> Floats:
    """uint8 (m, kept / 8) to float32 (m, dim): unit vectors, zero where nothing was kept."""
    dims = dimensions(book)
    vectors = np.zeros((len(codes), dim), np.float32)
    bits = np.unpackbits(codes, axis=1, count=len(dims), bitorder="little")
    vectors[:, dims] = (2 * bits.astype(np.float32) - 1) / np.float32(np.sqrt(len(dims)))
    return vectors
