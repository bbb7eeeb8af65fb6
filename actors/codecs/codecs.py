"""How ColBERT vectors are stored: a codec (bytes a vector) and a pooling (vectors a document).

Most need no training. Their levels follow from the dimension alone, because the vectors are unit vectors whose
coordinates behave like N(0, 1/d) draws; that costs a little accuracy against levels fitted to one corpus, and buys a
build without a training pass and codes that mean the same everywhere. Two need one, and what they learn belongs to the
index (`actors.codecs.codebooks`): product quantisation (`pq`) and signs of half the dimensions (`sign_half`), 32 times
smaller than float16. What each loses: benchmarks/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.codecs import pq
from actors.codecs import sign_half as halves
from actors.codecs.codebooks import TRAINERS, Book
from actors.codecs.rotation import rotation
from actors.kernels.matmul import matmul_single_thread
from actors.outputs import Array, IntArray, MultiVectors, offsets_of

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

THRESHOLD, INNER, OUTER = 0.9816, 0.4528, 1.5104
"""Threshold and levels of the best 4-level quantiser of N(0, 1) (Max 1960)."""
POOLINGS = ("none", "sequential2", "sequential3", "distinct")


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to store a float32 vector; `width` gives the bytes of one vector of `dim` dimensions."""

    name: str
    encode: Callable[[Floats], Array]
    decode: Callable[[Array, int], Floats]
    width: Callable[[int], int]
    is_float: bool = False
    """Stored as `list<fixed_size_list<float>>`, not as bytes."""
    book: Floats | None = None
    """The centroids of `pq`, the directions of `sign_half`."""

    @property
    def is_signs(self) -> bool:
        """Whether its codes are signs, of the dimensions that are kept or of twice as many (`as_signs`)."""
        return self.name in ("sign", "rotated_sign", "sign_half", "bits2")

    def as_signs(self, query: Floats) -> tuple[Floats, Codec]:
        """Query vectors and the `sign` codec that give the same products with what this one stores, if there are such.

        query: (m, dim). Turned signs need the query turned, and no document. Two bits a dimension are signs of twice
        the dimensions: the levels of `bits2` are high x the upper bit's sign + low x the lower's.
        """
        if self.name == "sign_half" and self.book is not None:
            return matmul_single_thread(query, self.book), CODECS["sign"]
        if self.name == "rotated_sign":
            return matmul_single_thread(query, rotation(query.shape[1])), CODECS["sign"]
        if self.name == "bits2":
            high, low = (OUTER + INNER) / 2, (OUTER - INNER) / 2
            pairs = np.sqrt(2) * np.stack([low * query, high * query], axis=2)
            return pairs.reshape(len(query), -1).astype(np.float32), CODECS["sign"]
        return query, self


def _encode_int8(vectors: Floats) -> Codes:
    scale = (np.abs(vectors).max(axis=1, initial=0.0) / 127).astype(np.float16)
    divisor = np.where(scale == 0, 1, scale.astype(np.float32))[:, None]
    values = np.clip(np.rint(vectors / divisor), -127, 127).astype(np.int8)
    return np.hstack([scale[:, None].view(np.uint8), values.view(np.uint8)])


def _decode_int8(codes: Array, dim: int) -> Floats:
    scale = np.ascontiguousarray(codes[:, :2]).view(np.float16).astype(np.float32)
    return np.ascontiguousarray(codes[:, 2:]).view(np.int8).astype(np.float32) * scale


def _encode_bits2(vectors: Floats) -> Codes:
    dim = vectors.shape[1]
    threshold = np.float32(THRESHOLD / np.sqrt(dim))
    levels = np.zeros((len(vectors), -(-dim // 4) * 4), np.uint8)
    levels[:, :dim] = (vectors > -threshold).view(np.uint8) + (vectors > 0) + (vectors > threshold)
    packed: Codes = levels[:, 0::4] | levels[:, 1::4] << 2 | levels[:, 2::4] << 4 | levels[:, 3::4] << 6
    return packed


def _decode_bits2(codes: Array, dim: int) -> Floats:
    levels = np.array([-OUTER, -INNER, INNER, OUTER], np.float32) / np.float32(np.sqrt(dim))
    places = (codes[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    decoded: Floats = levels[places.reshape(len(codes), -1)[:, :dim]]
    return decoded


def _encode_sign(vectors: Floats) -> Codes:
    return np.packbits(vectors > 0, axis=1, bitorder="little")


def _decode_sign(codes: Array, dim: int) -> Floats:
    positive = np.unpackbits(codes, axis=1, count=dim, bitorder="little")
    scale = np.float32(1 / np.sqrt(dim))
    return positive.astype(np.float32) * (2 * scale) - scale


def _encode_rotated(vectors: Floats) -> Codes:
    return _encode_sign(vectors @ rotation(vectors.shape[1]))


def _decode_rotated(codes: Array, dim: int) -> Floats:
    return _decode_sign(codes, dim) @ rotation(dim).T


def _untrained(*_: Any) -> Array:
    raise ValueError("the pq and sign_half codecs need the book of their index: get_codec(codec, book)")


def _float_codec(dtype: type[np.float16] | type[np.float32]) -> Codec:
    return Codec(
        dtype.__name__,
        encode=lambda vectors: vectors.astype(dtype),
        decode=lambda codes, _dim: codes.astype(np.float32),
        width=lambda dim: dim * np.dtype(dtype).itemsize,
        is_float=True,
    )


CODECS: dict[str, Codec] = {
    "float32": _float_codec(np.float32),
    "float16": _float_codec(np.float16),
    "int8": Codec("int8", _encode_int8, _decode_int8, lambda dim: dim + 2),
    "bits2": Codec("bits2", _encode_bits2, _decode_bits2, lambda dim: -(-dim // 4)),
    "sign": Codec("sign", _encode_sign, _decode_sign, lambda dim: -(-dim // 8)),
    "rotated_sign": Codec("rotated_sign", _encode_rotated, _decode_rotated, lambda dim: -(-dim // 8)),
    "pq": Codec("pq", _untrained, _untrained, pq.parts),
    "sign_half": Codec("sign_half", _untrained, _untrained, lambda dim: halves.kept(dim) // 8),
}


def get_codec(codec: str | Codec, book: Book | None = None) -> Codec:
    """The codec of that name (a Codec is its own), a trained one with its book; ValueError lists the names."""
    if isinstance(codec, Codec):
        return codec
    if codec not in CODECS:
        raise ValueError(f"unknown ColBERT codec {codec!r}; there are {', '.join(CODECS)}")
    return CODECS[codec] if book is None or codec not in TRAINERS else _trained(codec, book.astype(np.float32))


def _trained(codec: str, book: Floats) -> Codec:
    module = pq if codec == "pq" else halves
    if module is halves:
        halves.check(book)
    encode, decode = partial(module.encode, book=book), partial(module.decode, book=book)
    return replace(CODECS[codec], encode=encode, decode=decode, book=book)


def encode(vectors: Array, codec: str | Codec) -> Array:
    """Unit vectors (m, d), float32 or float16, to what is stored: uint8 (m, width) or, for float codecs, (m, d)."""
    return get_codec(codec).encode(np.asarray(vectors, np.float32))


def decode(codes: Array, codec: str | Codec, dim: int) -> Floats:
    """What is stored, (m, width), to float32 (m, dim)."""
    return get_codec(codec).decode(codes, dim)


def width(codec: str | Codec, dim: int) -> int:
    """Bytes of one stored vector of `dim` dimensions."""
    return get_codec(codec).width(dim)


def pooled_groups(offsets: IntArray, pooling: str, token_ids: npt.NDArray[Any] | None = None) -> IntArray:
    """For each vector the number, over the whole batch, of the pooled vector that it joins: int64 (m,).

    Groups never cross texts and are numbered in the order in which they begin. `distinct` needs the token id of each
    vector and joins all places of one token in one text.
    """
    lengths = np.diff(offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    if pooling == "none":
        return np.arange(len(rows))
    if pooling in ("sequential2", "sequential3"):
        size = int(pooling[-1])
        within = np.arange(len(rows)) - offsets[rows]
        groups: IntArray = offsets_of(-(-lengths // size))[rows] + within // size
        return groups
    if pooling != "distinct":
        raise ValueError(f"unknown ColBERT pooling {pooling!r}; there are {', '.join(POOLINGS)}")
    if token_ids is None or len(token_ids) != len(rows):
        raise ValueError(f"pooling 'distinct' needs one token id for each of the {len(rows)} vectors")
    key = rows << 32 | np.asarray(token_ids, np.int64)
    _, first, member = np.unique(key, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[member]


def pool(vectors: MultiVectors, pooling: str, token_ids: npt.NDArray[Any] | None = None) -> MultiVectors:
    """Means of the vectors of each group, normalised again: float32. See `pooled_groups` for the groups."""
    if pooling == "none":
        return vectors
    groups = pooled_groups(vectors.offsets, pooling, token_ids)
    if not len(groups):
        return vectors
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sums = np.add.reduceat(vectors.vectors[order].astype(np.float32), starts, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(vectors)), np.diff(vectors.offsets))[order][starts]
    return MultiVectors(offsets_of(np.bincount(rows, minlength=len(vectors))), sums / np.maximum(norms, 1e-12))


def encode_colbert(
    vectors: MultiVectors, codec: str | Codec, pooling: str = "none", token_ids: npt.NDArray[Any] | None = None
) -> MultiVectors:
    """Pools, then encodes: the ColBERT output of an embedder to what the table stores."""
    pooled = pool(vectors, pooling, token_ids)
    return MultiVectors(pooled.offsets, encode(pooled.vectors, codec))
