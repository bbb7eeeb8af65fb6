"""Computes softmax attention with 8-bit products (AVX512-VNNI), one text and one head at a time.

torch's CPU kernel takes 7.2 microseconds per token and layer at 200 tokens and 12 heads of 32, more than a third of an
int8 encoder's time. Here queries and keys have one scale per token and head, values one per dimension and text, and the
softmax weights are rounded to 1/255 of each query's largest. What it costs in accuracy beside the encoder's other
rounding, and the speed gained: benchmarks/RESULTS.md, "int8".

One instruction, `vpdpbusd`, multiplies 16 x 4 unsigned bytes with 16 x 4 signed ones and adds each four products to one
of 16 int32. As in `actors.kernels.amx_attention` 16 queries stand across, so that softmax's maximum and sum go down a
column and nothing is reduced across a register:

    step       operation                          result                     layout
    pack       quantise keys, values, 16 queries  bytes in fours             queries across
    _score     queries (unsigned) . keys          scores, L x 16 float32     keys down, queries across
    _soften    2^(s - max), 4 keys to an int32    weights, L / 4 x 16 x 4    keys down in fours, queries across
    _mix       weights (unsigned) . values        mixed, 16 x d float32      transposed back: queries down

A query's codes are stored plus 128, because the left operand is unsigned; each key's sum starts at -128 times the sum
of its codes, which takes that out again.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from actors.kernels.jit import HAS_NUMBA, compiled, njit_cached
from actors.kernels.llvm import F32, I32, Builder, call, i64, raise_two, splat, transpose_16
from actors.kernels.text_threads import map_texts
from actors.outputs import IntArray

LANES, KEYS, FOUR = 16, 8, 4
"""Queries of a block; keys of one step of `_score`; bytes of a product's sum."""
LEAST = np.float32(1e-30)
MULTIPLY = "llvm.x86.avx512.vpdpbusd.512"
LOG2_E = 1.4426950408889634
_INTS, _FLOATS = (ir.VectorType(kind, LANES) for kind in (I32, F32))


@lru_cache(maxsize=1)
def available() -> bool:
    """Returns whether this processor has AVX512-VNNI and numba compiles here."""
    features = llvmlite.binding.get_host_cpu_features()
    return HAS_NUMBA and all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl", "avx512vnni"))


def attend(query: Tensor, key: Tensor, value: Tensor, offsets: IntArray, scale: float) -> Tensor:
    """Computes self-attention within each text: float32 (T, H, d), d contiguous and 32 or 64, to that shape.

    offsets: int64 (n + 1,). Rows past the last text come back as zeros.
    """
    out = torch.empty(query.shape)
    out[offsets[-1] :] = 0
    blocks = (0,) * (query.shape[-1] // LANES)  # its length is a type: a size of head is compiled when it is met
    arrays = [x.numpy() for x in (query, key, value, out)]
    map_texts(partial(_attend_texts, *arrays, np.float32(scale * LOG2_E), blocks), offsets)
    return out


def _data(context: Any, builder: Builder, signature: Any, arguments: Any, i: int, kind: Any) -> Any:
    """Where argument i, a C array, begins, as a pointer to `kind`."""
    array = context.make_array(signature.args[i])(context, builder, arguments[i])
    return builder.bitcast(array.data, kind.as_pointer())


def _at(builder: Builder, base: Any, place: Any) -> Any:
    return builder.gep(base, [i64(place) if isinstance(place, int) else place])


def _load(builder: Builder, base: Any, place: Any) -> Any:
    return builder.load(_at(builder, base, place), align=4)


def _broadcast(builder: Builder, base: Any, place: Any) -> Any:
    """One number of memory in all lanes; the instruction that uses it loads it."""
    return splat(builder, _load(builder, base, place), LANES)


def _blocks(signature: Any) -> int:
    """16 dimensions side by side in a head: the length of the last tuple, which is a type and so known here."""
    return int(signature.args[-1].count)


def _score(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    # All of a query block's codes stay in registers (8 or 16 of 32) with the sums of 8 keys, whose bytes are broadcast
    # from memory by the multiplication itself.
    words = _blocks(signature) * LANES // FOUR
    queries = _data(context, builder, signature, arguments, 0, _INTS)
    keys, starts = (_data(context, builder, signature, arguments, i, I32) for i in (1, 2))
    key_scales, lane_scales = (_data(context, builder, signature, arguments, i, F32) for i in (3, 4))
    scores, tops = (_data(context, builder, signature, arguments, i, _FLOATS) for i in (6, 7))
    query_codes = [_load(builder, queries, c) for c in range(words)]
    lanes = builder.load(builder.bitcast(lane_scales, _FLOATS.as_pointer()), align=4)
    top = cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [-3e38] * LANES))
    with cgutils.for_range(builder, arguments[5]) as loop:
        first = builder.mul(loop.index, i64(KEYS))
        places = [builder.add(first, i64(u)) for u in range(KEYS)]
        sums = [_broadcast(builder, starts, place) for place in places]
        rows = [builder.mul(place, i64(words)) for place in places]
        for c, codes in enumerate(query_codes):
            for u, row in enumerate(rows):
                four = _broadcast(builder, keys, builder.add(row, i64(c)))
                sums[u] = call(builder, MULTIPLY, _INTS, sums[u], codes, four)
        highest = builder.load(top)
        for place, total in zip(places, sums, strict=True):
            scaled = builder.fmul(lanes, _broadcast(builder, key_scales, place))
            score = builder.fmul(builder.sitofp(total, _FLOATS), scaled)
            builder.store(score, _at(builder, scores, place), align=4)
            highest = builder.select(builder.fcmp_ordered(">", score, highest), score, highest)
        builder.store(highest, top)
    builder.store(builder.load(top), tops, align=4)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def score(
    _context: Any, queries: Any, keys: Any, starts: Any, key_scales: Any, lane_scales: Any, steps: Any, scores: Any,
    tops: Any, blocks: Any,
) -> Any:  # fmt: skip
    """scores[key, lane] of 8 x steps keys, in powers of two, and each lane's largest in tops."""
    return types.void(queries, keys, starts, key_scales, lane_scales, steps, scores, tops, blocks), _score


def _soften(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    # Four keys' powers become four bytes of an int32, which is how `_mix` reads its left operand. Keys past the text
    # repeat its last one and get the weight 0.
    scores, tops = (_data(context, builder, signature, arguments, i, _FLOATS) for i in (0, 1))
    weights = _data(context, builder, signature, arguments, 4, _INTS)
    shares = _data(context, builder, signature, arguments, 5, _FLOATS)
    top, length = builder.load(tops, align=4), arguments[2]
    total = cgutils.alloca_once_value(builder, ir.Constant(_INTS, [0] * LANES))
    levels, half, none = (ir.Constant(kind, [x] * LANES) for kind, x in ((_FLOATS, 255.0), (_FLOATS, 0.5), (_INTS, 0)))
    with cgutils.for_range(builder, arguments[3]) as loop:
        first, word = builder.mul(loop.index, i64(FOUR)), none
        for j in range(FOUR):
            place = builder.add(first, i64(j))
            power = raise_two(builder, builder.fsub(_load(builder, scores, place), top))
            level = builder.fptosi(builder.fadd(builder.fmul(power, levels), half), _INTS)
            inside = builder.icmp_signed("<", place, length)
            level = builder.select(inside, level, none)
            builder.store(builder.add(builder.load(total), level), total)
            word = builder.or_(word, builder.shl(level, ir.Constant(_INTS, [8 * j] * LANES)))
        builder.store(word, _at(builder, weights, loop.index), align=4)
    one = ir.Constant(_FLOATS, [1.0] * LANES)
    builder.store(builder.fdiv(one, builder.sitofp(builder.load(total), _FLOATS)), shares, align=4)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def soften(_context: Any, scores: Any, tops: Any, length: Any, steps: Any, weights: Any, shares: Any) -> Any:
    """weights, four keys in each int32: 255 x 2 ** (score - top), rounded. shares: one over their sums."""
    return types.void(scores, tops, length, steps, weights, shares), _soften


def _mix(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    # 16 sums, one for each of 16 dimensions, stay in registers for all keys; the values' bytes are broadcast from
    # memory by the multiplication. The last step turns 16 dimensions x 16 queries around.
    blocks = _blocks(signature)
    weights = _data(context, builder, signature, arguments, 0, _INTS)
    values = _data(context, builder, signature, arguments, 1, I32)
    scales = _data(context, builder, signature, arguments, 2, F32)
    share = builder.load(_data(context, builder, signature, arguments, 3, _FLOATS), align=4)
    mixed = _data(context, builder, signature, arguments, 5, _INTS)
    for block in range(blocks):
        zero = ir.Constant(_INTS, [0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(LANES)]
        for total in sums:
            builder.store(zero, total)
        with cgutils.for_range(builder, arguments[4]) as loop:
            weight = _load(builder, weights, loop.index)
            row = builder.add(builder.mul(loop.index, i64(blocks * LANES)), i64(block * LANES))
            for i, total in enumerate(sums):
                four = _broadcast(builder, values, builder.add(row, i64(i)))
                builder.store(call(builder, MULTIPLY, _INTS, builder.load(total), weight, four), total)
        columns = []
        for i, total in enumerate(sums):
            scale = _broadcast(builder, scales, block * LANES + i)
            number = builder.fmul(builder.sitofp(builder.load(total), _FLOATS), builder.fmul(share, scale))
            columns.append(builder.bitcast(number, _INTS))
        for lane, row in enumerate(transpose_16(builder, columns)):
            builder.store(row, _at(builder, mixed, lane * blocks + block), align=4)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def mix(
    _context: Any, weights: Any, values: Any, value_scales: Any, shares: Any, steps: Any, mixed: Any, blocks: Any
) -> Any:
    """mixed[lane, dimension] float32: the sum over keys of weight x value, times scale and share."""
    return types.void(weights, values, value_scales, shares, steps, mixed, blocks), _mix


@compiled
def _largest(row: Any, blocks: Any) -> Any:
    # As int32 the largest absolute value is a maximum of integers, which vectorises; that of floats may meet a NaN.
    bits, most = row.view(np.int32), np.int32(1)
    for j in range(LANES * len(blocks)):
        most = np.int32(max(most, np.int32(bits[j] & np.int32(0x7FFFFFFF))))
    found = np.int32(most)
    return max(found.view(np.float32), LEAST)


@compiled
def _pack_keys(keys: Any, length: Any, codes: Any, starts: Any, scales: Any, blocks: Any) -> None:
    """Quantises keys (L, d); rows past the length repeat the last one."""
    for r in range(len(starts)):
        row = keys[min(r, length - 1)]
        most = _largest(row, blocks)
        inverse, total = np.float32(127) / most, np.int32(0)
        for j in range(LANES * len(blocks)):
            code = np.int32(np.int32(row[j] * inverse + np.float32(128.5)) - np.int32(128))
            codes[r, j] = code
            total = np.int32(total + code)
        starts[r], scales[r] = np.int32(np.int32(-128) * total), most / np.float32(127)


@compiled
def _pack_queries(queries: Any, rows: Any, scale: Any, codes: Any, lanes: Any, packed: Any, blocks: Any) -> None:
    """Quantises up to 16 queries (rows, d), plus 128, and lays them across: packed (d / 4, 16) int32."""
    words = codes.view(np.int32)
    for r in range(rows):
        row = queries[r]
        most = _largest(row, blocks)
        inverse = np.float32(127) / most
        for j in range(LANES * len(blocks)):
            codes[r, j] = np.uint8(np.int32(row[j] * inverse + np.float32(128.5)))
        lanes[r] = most / np.float32(127) * scale
    for c in range(LANES // FOUR * len(blocks)):
        for r in range(LANES):
            packed[c, r] = words[r, c]


@compiled
def _pack_values(values: Any, length: Any, most: Any, packed: Any, scales: Any, blocks: Any) -> None:
    """Quantises values (L, d) with one scale per dimension and joins four keys' bytes: packed (L / 4, d) int32."""
    dim, bits = LANES * len(blocks), most.view(np.int32)
    for j in range(dim):
        most[j] = LEAST
    for r in range(length):
        row = values[r].view(np.int32)
        for j in range(dim):
            bits[j] = max(bits[j], np.int32(row[j] & np.int32(0x7FFFFFFF)))
    for j in range(dim):
        scales[j] = most[j] / np.float32(127)
        most[j] = np.float32(127) / most[j]
    half, last = np.float32(128.5), length - 1
    for g in range(len(packed)):
        a, b = values[min(FOUR * g, last)], values[min(FOUR * g + 1, last)]
        c, d = values[min(FOUR * g + 2, last)], values[min(FOUR * g + 3, last)]
        for j in range(dim):
            x = most[j]
            low = np.int32(a[j] * x + half) | np.int32(b[j] * x + half) << 8
            high = np.int32(c[j] * x + half) << 16 | np.int32(d[j] * x + half) << 24
            packed[g, j] = np.int32(low | high) ^ np.int32(-0x7F7F7F80)  # minus 128 in every byte


@njit_cached(nogil=True, boundscheck=False, error_model="numpy")
def _attend_texts(query: Any, key: Any, value: Any, out: Any, scale: Any, blocks: Any, offsets: Any) -> None:
    """Texts from offsets[i] to offsets[i + 1] of (T, H, 16 x len(blocks)) float32."""
    # Scratch for the longest text, reused for all: at 512 tokens and d = 64 keys and values take 64 kB and scores 32
    # kB, so all of it stays in L2. Heads are the outer loop of a text: one head's keys and values are packed once and
    # met by every block of queries.
    dim = LANES * len(blocks)
    most = (np.diff(offsets).max() + KEYS - 1) // KEYS * KEYS
    keys, starts, key_scales = np.empty((most, dim), np.int8), np.empty(most, np.int32), np.empty(most, np.float32)
    values, value_scales = np.empty((most // FOUR, dim), np.int32), np.empty(dim, np.float32)
    codes, packed = np.zeros((LANES, dim), np.uint8), np.empty((dim // FOUR, LANES), np.int32)
    lanes, tops, shares = np.zeros(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    scores, weights = np.empty((most, LANES), np.float32), np.empty((most // FOUR, LANES), np.int32)
    mixed, largest = np.empty((LANES, dim), np.float32), np.empty(dim, np.float32)
    for i in range(len(offsets) - 1):
        start, length = offsets[i], offsets[i + 1] - offsets[i]
        steps = (length + KEYS - 1) // KEYS
        fours = steps * (KEYS // FOUR)
        for h in range(out.shape[1]):
            _pack_keys(key[start:, h], length, keys[: steps * KEYS], starts[: steps * KEYS], key_scales, blocks)
            _pack_values(value[start:, h], length, largest, values[:fours], value_scales, blocks)
            for t in range(0, length, LANES):
                rows = min(LANES, length - t)
                _pack_queries(query[start + t :, h], rows, scale, codes, lanes, packed, blocks)
                score(packed, keys, starts, key_scales, lanes, steps, scores, tops, blocks)
                soften(scores, tops, length, fours, weights, shares)
                mix(weights, values, value_scales, shares, fours, mixed, blocks)
                for r in range(rows):
                    for j in range(dim):
                        out[start + t + r, h, j] = mixed[r, j]
