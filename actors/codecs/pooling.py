"""Implements token pooling of ColBERT vectors: fewer vectors per document, each the normalised mean of a group."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from actors.codecs.codec import Codec
from actors.codecs.names import TokenPooling
from actors.codecs.table import encode
from actors.outputs import IntArray, MultiVectors, offsets_of

POOLINGS: tuple[TokenPooling, ...] = get_args(TokenPooling)


def sequential_group_size(pooling: str) -> int:
    """Returns how many neighbouring vectors are pooled into one; 1 if `pooling` does not pool neighbours."""
    return int(pooling.removeprefix("sequential")) if pooling.startswith("sequential") else 1


def pooled_groups(offsets: IntArray, pooling: str, token_ids: npt.NDArray[Any] | None = None) -> IntArray:
    """Assigns each vector to the pooled vector that it joins, numbered over the whole batch: int64 (m,).

    Groups never cross texts and are numbered in the order in which they begin. `distinct` needs the token id of each
    vector and joins all positions of one token in one text.

    >>> pooled_groups(np.array([0, 3, 5]), "sequential2").tolist()
    [0, 0, 1, 2, 2]
    """
    lengths = np.diff(offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    if pooling not in POOLINGS:
        raise ValueError(f"unknown ColBERT pooling {pooling!r}; there are {', '.join(POOLINGS)}")
    if pooling == "distinct":
        return _groups_by_token(rows, token_ids)
    if pooling == "none":
        return np.arange(len(rows))
    size = sequential_group_size(pooling)
    within = np.arange(len(rows)) - offsets[rows]
    groups: IntArray = offsets_of(-(-lengths // size))[rows] + within // size
    return groups


def _groups_by_token(rows: IntArray, token_ids: npt.NDArray[Any] | None) -> IntArray:
    if token_ids is None or len(token_ids) != len(rows):
        raise ValueError(f"pooling 'distinct' needs one token id for each of the {len(rows)} vectors")
    key = rows << 32 | np.asarray(token_ids, np.int64)
    _, first, member = np.unique(key, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[member]


def pool_vectors(vectors: MultiVectors, pooling: str, token_ids: npt.NDArray[Any] | None = None) -> MultiVectors:
    """Averages the vectors of each group (see `pooled_groups`) and normalises the means again: float32."""
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
    """Pools and then encodes the ColBERT output of an embedder, as the table stores it."""
    pooled = pool_vectors(vectors, pooling, token_ids)
    return MultiVectors(pooled.offsets, encode(pooled.vectors, codec))
