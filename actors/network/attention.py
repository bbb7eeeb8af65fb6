"""Computes attention over texts packed one after the other in a (tokens, heads, dim) tensor, without padding.

On a GPU one variable-length flash call takes all texts; on a CPU with AMX `actors.kernels.amx_attention` runs in bf16.
Elsewhere each run of equal lengths is one scaled_dot_product_attention call on strided views, which copies nothing on
the way in: measured against one masked call over a padded batch this is 6 times faster, against a block-diagonal mask
20 times. The price is one kernel launch for every distinct length, which sorting in
`actors.compute.batching.plan_batches` keeps small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from actors.outputs import IntArray
from actors.transfers import to_device

Counts = npt.NDArray[np.int32]

LANES = 16
"""float32 numbers in one AVX-512 register."""
LEAST_TILED = 512
"""Tokens in a call from which AMX tiles are used."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Holds each text's place: offsets int64 (n + 1,), counted in tokens; every text has at least one.

    attended: the leading tokens of each text that attention sees, int (n,); None: all. The others see them, too.
    """

    offsets: IntArray
    device: torch.device
    attended: Counts | None = None
    runs: list[tuple[int, int, int]] = field(init=False)
    """(first token, texts, length) of each run of neighbours with equal length."""
    cumulative: Tensor = field(init=False)
    """Returns the offsets on the device as int32, as variable-length kernels take them."""
    leading: Tensor | None = field(init=False)
    """Returns `attended` on the device."""
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        lengths = np.diff(self.offsets)
        if len(lengths) and lengths.min() < 1:
            raise ValueError(f"text {int(lengths.argmin())} of the batch has no tokens")
        object.__setattr__(self, "runs", _runs(self.offsets, lengths))
        object.__setattr__(self, "cumulative", to_device(self.offsets.astype(np.int32), self.device))
        leading = None if self.attended is None else to_device(self.attended, self.device)
        object.__setattr__(self, "leading", leading)
        object.__setattr__(self, "longest", int(lengths.max(initial=0)))


def _runs(offsets: IntArray, lengths: IntArray) -> list[tuple[int, int, int]]:
    edges = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(edges, append=len(lengths))
    return list(zip(offsets[edges].tolist(), counts.tolist(), lengths[edges].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Configures a layer's attention besides softmax. window: a token attends to those closer than this."""

    scale: float
    causal: bool = False
    window: int | None = None
    softcap: float | None = None


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments, options: AttentionOptions) -> Tensor:
    """Computes attention within each text: (T, H, d), contiguous. query: (T, H, d); key, value: (T, H or fewer, d).

    Rows past the last text belong to nobody and come back as zeros (a CPU batch is rounded up); they must be finite.
    """
    if segments.leading is not None:
        return _attend_leading(query, key, value, segments, segments.leading, options)
    flash = _flash() if _flash_takes(query, options) else None
    if flash is not None:
        return flash(query, key, value, segments, options)
    tiles = _tiles() if _tiles_take(query, key, options) else None
    if tiles is not None:
        return tiles(query, key, value, segments.offsets, options.scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    out[segments.offsets[-1] :] = 0
    for start, texts, length in segments.runs:
        wide = _keys_read(query, start + (texts - 1) * length, length)
        q = _strided_views(query, start, texts, length, length)
        k, v = (_strided_views(x, start, texts, length, wide) for x in (key, value))
        block = _block(q, k, v, options).transpose(1, 2)
        out[start : start + texts * length].view(block.shape).copy_(block)
    return out


def _attend_leading(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, leading: Tensor, options: AttentionOptions
) -> Tensor:
    """Computes `attend` with keys limited to each text's first `leading` tokens; texts are short queries."""
    if options.softcap is not None:
        raise ValueError("attention with soft-capping has no unattended tokens: query expansion needs another model")
    out, done = torch.zeros(query.shape, dtype=query.dtype, device=query.device), 0
    grouped = query.shape[1] != key.shape[1]
    for start, texts, length in segments.runs:
        q, k, v = (_strided_views(x, start, texts, length, length) for x in (query, key, value))
        seen = torch.arange(length, device=query.device) < leading[done : done + texts, None]
        mask = seen[:, None, None] & visible(length, options, query.device)
        block = sdpa(q, k, v, attn_mask=mask, scale=options.scale, enable_gqa=grouped).transpose(1, 2)
        out[start : start + texts * length].view(block.shape).copy_(block)
        done += texts
    return out


def attend_firsts(query: Tensor, key: Tensor, value: Tensor, segments: Segments, options: AttentionOptions) -> Tensor:
    """Computes attention of each text's first token to all of its text, in the query's dtype.

    query: (n, H, d), one for each text; key, value: (T, H, d); returns (n, H, d).
    """
    out, done = torch.empty_like(query), 0
    for start, texts, length in segments.runs:
        k, v = (_strided_views(x, start, texts, length, length).to(query.dtype) for x in (key, value))
        rows = slice(done, done + texts)
        out[rows] = sdpa(query[rows, :, None], k, v, scale=options.scale)[:, :, 0]
        done += texts
    return out


def _keys_read(query: Tensor, last: int, length: int) -> int:
    """Returns how many keys the texts of a run read: on a CPU the length rounded up to whole vectors.

    A row of scores that does not fill its last 16-wide vector costs up to twice as much in torch's CPU kernel. The
    keys past the end belong to the next text and are masked, so nothing is copied or padded to get there.
    """
    wide = -(-length // LANES) * LANES
    return wide if query.device.type == "cpu" and last + wide <= len(query) else length


def _strided_views(x: Tensor, start: int, texts: int, step: int, size: int) -> Tensor:
    """Returns (texts, H, size, d) views of `size` tokens from every `step`-th token on, overlapping if size > step."""
    stride, *inner = x.stride()
    shape, strides = (texts, size, *x.shape[1:]), (step * stride, stride, *inner)
    return x.as_strided(shape, strides, x.storage_offset() + start * stride).transpose(1, 2)


def _block(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    """Views texts of one length L as (n, H, L, d); keys past L, if any, belong to others and stay masked."""
    length, read = query.shape[2], key.shape[2]
    if options.softcap is not None:
        return _softcapped(query, key[:, :, :length], value[:, :, :length], options)
    grouped = query.shape[1] != key.shape[1]
    if options.window is not None and options.window < length:
        near = visible(length, options, query.device)
        key, value = key[:, :, :length], value[:, :, :length]
        return sdpa(query, key, value, attn_mask=near, scale=options.scale, enable_gqa=grouped)
    mask = None if options.causal or read == length else _tail(length, read, query.dtype)
    return sdpa(query, key, value, attn_mask=mask, is_causal=options.causal, scale=options.scale, enable_gqa=grouped)


@functools.lru_cache(maxsize=4096)
def _tail(length: int, read: int, dtype: torch.dtype) -> Tensor:
    """Returns the mask (1, 1, L, read): 0 for a text's own keys, minus infinity for those past its end."""
    row = torch.zeros(read, dtype=dtype)
    row[length:] = float("-inf")
    return row.expand(1, 1, length, read)


def _softcapped(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    assert options.softcap is not None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = options.softcap * torch.tanh(query @ key.transpose(2, 3) * options.scale / options.softcap)
    scores = scores.masked_fill(~visible(query.shape[2], options, query.device), float("-inf"))
    return torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype) @ value


def visible(length: int, options: AttentionOptions, device: torch.device) -> Tensor:
    """Returns bool (L, L): whether the row's token attends to the column's."""
    place = torch.arange(length, device=device)
    ahead = place[None, :] - place[:, None]
    seen = ahead <= 0 if options.causal else torch.ones_like(ahead, dtype=torch.bool)
    return seen if options.window is None else seen & (ahead.abs() < options.window)


def _tiles_take(query: Tensor, key: Tensor, options: AttentionOptions) -> bool:
    """Returns whether AMX tiles apply; short calls, such as a query's, are not worth compiling their kernels for."""
    plain = options == AttentionOptions(options.scale) and query.shape == key.shape and query.stride(2) == 1
    large = query.dtype == torch.bfloat16 and query.device.type == "cpu" and len(query) >= LEAST_TILED
    return plain and large and query.shape[2] in (32, 64)


@functools.cache
def _tiles() -> Callable[[Tensor, Tensor, Tensor, IntArray, float], Tensor] | None:
    """Returns `actors.kernels.amx_attention.attend` if numba and the processor can run it."""
    try:
        from actors.kernels import amx_attention as amx
    except (ImportError, RuntimeError):  # no numba, or no folder where it may keep what it compiles
        return None
    return amx.attend if amx.available() else None


def _flash_takes(query: Tensor, options: AttentionOptions) -> bool:
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    fits = query.is_cuda and half and width <= 256 and width % 8 == 0 and options.softcap is None
    return fits and _has_flash_kernels(query.device)


@functools.cache
def _has_flash_kernels(device: torch.device) -> bool:
    """Returns whether the GPU is of Ampere's generation or later: flash attention refuses older ones, such as a T4."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _flash() -> Callable[[Tensor, Tensor, Tensor, Segments, AttentionOptions], Tensor] | None:
    """Returns a flash call over all texts; None before torch 2.10, which has no public variable-length attention."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None

    def attend_all(query: Tensor, key: Tensor, value: Tensor, segments: Segments, options: AttentionOptions) -> Tensor:
        side = -1 if options.window is None else options.window - 1
        places, longest = segments.cumulative, segments.longest
        out = varlen_attn(
            query, key, value, places, places, longest, longest,
            scale=options.scale, window_size=(side, 0 if options.causal else side),
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out

    return attend_all
