"""Computes outputs from hidden states: one vector per text, a weight per term, a vector per token.

Everything works on packed tokens, so the sparse head needs no (texts x vocabulary) table: it sorts (text, token id)
keys and takes the maximum of each run. Results are float32 whatever the dtype of the pass, but for
ColBERT vectors from a half-precision GPU pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit

from actors.codecs.device_codec import DeviceCodec
from actors.outputs import Array, IntArray, MultiVectors, SparseVectors, offsets_of
from actors.spec import Pooling
from actors.transfers import to_device, to_host

LEAST_COMPILED = 512
"""Tokens in a call from which compiling pays; a single query is below it."""


@torch.inference_mode()
def dense(
    hidden: Tensor, offsets: IntArray, pooling: Pooling, *, normalize: bool = True, truncate_dim: int | None = None
) -> Tensor:
    """Computes one vector per text, float32 (n, d). hidden: (T, h).

    Dimensions are cut before the L2 norm (eps 1e-12).
    """
    vectors = _pool(hidden, offsets, pooling)[:, :truncate_dim]
    return to_unit(vectors, dim=-1) if normalize else vectors


def _pool(hidden: Tensor, offsets: IntArray, pooling: Pooling) -> Tensor:
    if pooling == "cls":
        return hidden[to_device(offsets[:-1], hidden.device)].float()
    if pooling == "last_token":
        return hidden[to_device(offsets[1:] - 1, hidden.device)].float()
    if pooling == "mean":
        return torch.segment_reduce(hidden.float(), "mean", offsets=to_device(offsets, hidden.device))
    raise ValueError(f"pooling must be cls, mean or last_token, got {pooling!r}")


@torch.inference_mode()
def sparse(
    hidden: Tensor, ids: Tensor, offsets: IntArray, linear: nn.Linear, excluded_ids: Collection[int]
) -> SparseVectors:
    """Computes M3's lexical weights: ReLU of one number per token, the maximum per id, ids ascending in each row.

    hidden: (T, h); ids: int64 (T,); excluded_ids: special tokens, which get no weight. Weights of 0 are dropped.
    """
    weights, tokens = to_host(token_weights(hidden, linear), ids)
    return collect(weights, tokens, offsets, excluded_ids)


@torch.inference_mode()
def token_weights(hidden: Tensor, linear: nn.Linear) -> Tensor:
    """Computes float32 (T,): ReLU of one number per token. A linear layer of width 1 would take 2.3 times as long."""
    return torch.relu(torch.mv(hidden, linear.weight[0]) + linear.bias).float()


def collect(weights: Array, ids: Array, offsets: IntArray, excluded_ids: Collection[int]) -> SparseVectors:
    """Collects token weights (T,) of packed texts to one row per text: the maximum of each id, ids ascending."""
    counts = weights > 0
    for special in excluded_ids:  # a handful: np.isin takes as long as all the rest
        counts &= ids != special
    kept = np.flatnonzero(counts)
    keys = (np.repeat(np.arange(len(offsets) - 1) << 32, np.diff(offsets)) | ids)[kept]
    order = np.argsort(keys)
    keys, weights = keys[order], weights[kept[order]]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    best = np.maximum.reduceat(weights, firsts) if len(firsts) else weights
    keys = keys[firsts]
    bounds = np.searchsorted(keys, np.arange(len(offsets)) << 32)
    return SparseVectors(bounds.astype(np.int64), keys.astype(np.uint32), best)


@torch.inference_mode()
def colbert(
    hidden: Tensor, offsets: IntArray, linear: nn.Linear | None, *, normalize: bool = True,
    truncate_dim: int | None = None, device_codec: DeviceCodec | None = None,
) -> MultiVectors:  # fmt: skip
    """Computes `token_vectors` and copies them to the host."""
    vectors = token_vectors(
        hidden, offsets, linear, normalize=normalize, truncate_dim=truncate_dim, device_codec=device_codec
    )
    lengths = np.diff(offsets) - 1
    kept = lengths if device_codec is None else device_codec.lengths(lengths)
    return MultiVectors(offsets_of(kept), to_host(vectors)[0])


@torch.inference_mode()
def token_vectors(
    hidden: Tensor, offsets: IntArray, linear: nn.Linear | None, *, normalize: bool = True,
    truncate_dim: int | None = None, device_codec: DeviceCodec | None = None,
) -> Tensor:  # fmt: skip
    """Computes one vector per token (`vector_dtype`), without each text's first token (cls); a closing eos is kept.

    linear: None takes the hidden states as they are. Dimensions are cut before the L2 norm (eps 1e-12).
    device_codec: pools and encodes them, uint8.
    """
    projected = (hidden if linear is None else linear(hidden))[:, :truncate_dim]
    vectors = (_each_text if projected.device.type == "cpu" else _all_texts)(projected, offsets, normalize)
    if device_codec is not None:
        return device_codec(vectors, np.diff(offsets) - 1)
    return vectors.half() if vector_dtype(hidden.device, hidden.dtype) is np.float16 else vectors


def _each_text(tokens: Tensor, offsets: IntArray, normalize: bool) -> Tensor:
    """Returns all vectors but each text's first in float32, normalised if `normalize`.

    It goes text by text, so that it is read once from memory: on a CPU half the time of `_all_texts`, and compiled
    another half of that.
    """
    shape = len(tokens) - len(offsets) + 1, tokens.shape[1]
    out = torch.from_numpy(np.empty(shape, np.float32))  # numpy allocates huge pages, torch does not: a quarter faster
    large = len(tokens) >= LEAST_COMPILED and tokens.dtype == torch.bfloat16
    if normalize and large and (compiled := _compiled()):
        compiled(tokens, offsets, out)
        return out
    for i, (start, end) in enumerate(pairwise(offsets.tolist())):
        text, place = tokens[start + 1 : end].float(), out[start - i : end - i - 1]
        torch.div(text, _norms(text) if normalize else 1, out=place)
    return out


@functools.cache
def _compiled() -> Callable[[Tensor, IntArray, Tensor], None] | None:
    """Returns `actors.kernels.normalize_bf16.normalize_token_rows` if numba can compile it."""
    try:
        from actors.kernels.jit import HAS_NUMBA
        from actors.kernels.normalize_bf16 import normalize_token_rows
    except (ImportError, RuntimeError):  # no numba, or no folder where it may keep what it compiles
        return None
    return normalize_token_rows if HAS_NUMBA else None


def _all_texts(tokens: Tensor, offsets: IntArray, normalize: bool) -> Tensor:
    """Does what `_each_text` does in a few kernels, for a GPU."""
    kept = np.delete(np.arange(len(tokens)), offsets[:-1])
    vectors = tokens[to_device(kept, tokens.device)].float()
    return vectors.div_(_norms(vectors)) if normalize else vectors


def _norms(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms.clamp_min_(1e-12)


def vector_dtype(device: torch.device, dtype: torch.dtype) -> type[np.floating[Any]]:
    """Returns float16 for a half-precision pass on a GPU, to halve the transfer; else float32."""
    return np.float16 if device.type == "cuda" and dtype != torch.float32 else np.float32
