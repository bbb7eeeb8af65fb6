"""One bit for each of half the dimensions: those in which the corpus's vectors lie most, turned.

Half the principal directions hold nearly all of a ColBERT vector (PCA from 384 to 192 loses .002 of nDCG, not seen by
1,500 queries), but unlike shares of it; turned at random, each of their signs says as much as any other (as in
`actors.codecs.rotation`). A learned rotation (ITQ, Gong and Lazebnik 2011) was measured and lost more. Half the bytes
of `sign`, half the time to score; what it loses, and where, is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.codecs.rotation import rotation
from actors.outputs import Array

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Book = npt.NDArray[np.float16]
"""(dim, kept): orthogonal columns of length 1."""


def kept(dim: int) -> int:
    """Dimensions that are kept of `dim`: half of them, in whole bytes."""
    return min(dim, -(-dim // 16) * 8)


def train(vectors: Array) -> Book:
    """The book for vectors (m, d) like these; ValueError where there is none to learn from."""
    if not len(vectors):
        raise ValueError("the sign_half codec is trained on the first texts, and there is none that can be read")
    sample = np.asarray(vectors, np.float32)
    _, directions = np.linalg.eigh((sample.T @ sample).astype(np.float64))  # ascending
    best = directions[:, -kept(sample.shape[1]) :]
    return (best @ rotation(best.shape[1])).astype(np.float16)


def check(book: Array) -> None:
    """ValueError for a book of the time when single dimensions were kept: (2, kept)."""
    if len(book) == 2 and book.shape[1] > 2:
        raise ValueError("sign_half has changed since this index was built, and its codes say something else now")


def encode(vectors: Floats, book: Floats) -> Codes:
    """(m, d) to uint8 (m, kept / 8), the first dimension in the lowest bit. book: as float32."""
    return np.packbits(vectors @ book > 0, axis=1, bitorder="little")


def decode(codes: Array, _dim: int, book: Floats) -> Floats:
    """uint8 (m, kept / 8) to float32 (m, dim): unit vectors. book: as float32."""
    bits = np.unpackbits(codes, axis=1, count=book.shape[1], bitorder="little")
    signs = (2 * bits.astype(np.float32) - 1) / np.float32(np.sqrt(book.shape[1]))
    return (signs @ book.T).astype(np.float32)
