"""Computes softmax attention in AMX tiles: bf16, one text and one head at a time, with all operands in L2.

torch's CPU kernel leaves the tiles unused for heads of 32 or 64 dimensions, which is what BGE's encoders have. Here 16
queries at a time meet all keys of their text. Effect: MiniLM in bf16 against sentence-transformers in bf16
1.60 to 2.05 times (benchmarks/RESEARCH_LOG.md). The price is LLVM written by hand, since numba has neither tiles nor
bf16, and some seconds of compilation on a machine's first use.

AMX in three lines: a tile is 16 rows of 64 bytes. `tdpbf16ps C, A, B` adds A @ B to C: C is 16 x 16 float32, A 16 x 32
bf16 row by row, and B 32 x 16 bf16 in pairs: row k of B's tile holds the numbers 2k and 2k + 1 of each of 16 columns.
Each of the 8 tiles has one job throughout: 0 to 3 accumulate, 4 and 5 hold right sides (B), 6 and 7 left sides (A).

One call of `attend_block`, for 16 queries of one head (d = 32 x depth dimensions, L keys rounded up to whole 32s):

    step            operation                            result                       layout
    _pack_queries   transpose 16 queries                 B tiles, depth of them       dimensions down, queries across
    _score          keys (A) @ queries (B)               scores, L x 16 float32       keys down, queries across
    _soften         2^((s - max) * scale), down columns  weights, B tiles of bf16     keys down in pairs, queries across
    _mix            values^T (A) @ weights (B)           mixed, d x 16 float32        dimensions down, queries across
    _write          times 1 / sum, transpose back        16 rows of d bf16            queries down

Queries stand across, so that softmax's maximum and sum go down a column: each of the 16 numbers of a register belongs
to another query, and nothing is ever reduced across a register. The scores leave `_score` in just the order in which
`_mix` takes its right operand, so the weights are stored once and never rearranged. Measured on the way, microseconds
per token and layer at 184 tokens, 12 heads of 32 (torch: 3.8): softmax by numba's vectoriser 6.8, softmax by hand along
rows 3.2, keys and values packed by hand as well 2.2 to 2.4, queries as columns 2.0, four maxima at a time 1.7.
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

from actors.kernels.jit import HAS_NUMBA, njit_cached
from actors.kernels.llvm import F32, I8, I16, I32, Builder, call, i64, raise_two, splat, transpose_16
from actors.kernels.text_threads import map_texts
from actors.kernels.torch_private import cpu_supports, request_amx_permission
from actors.outputs import IntArray

SIDE, STEP, TILE = 16, 32, 1024
"""Rows of a tile; numbers in one; bytes."""
CONFIG = np.zeros(64, np.uint8)
"""Eight tiles of 16 rows and 64 bytes: palette 1, then bytes of a row (uint16 each), then rows."""
CONFIG[0], CONFIG[16:32:2], CONFIG[48:56] = 1, 64, SIDE
LOG2_E = 1.4426950408889634
_SHORTS, _INTS, _FLOATS = (ir.VectorType(kind, SIDE) for kind in (I16, I32, F32))
_BYTES = I8.as_pointer()


@lru_cache(maxsize=1)
def available() -> bool:
    """Returns whether this processor has AMX tiles with bf16 and this process may use them."""
    features = llvmlite.binding.get_host_cpu_features()
    there = all(features.get(name, False) for name in ("amx-tile", "amx-bf16", "avx512f"))
    return bool(there and HAS_NUMBA and cpu_supports("amx_tile") and request_amx_permission())


def attend(query: Tensor, key: Tensor, value: Tensor, offsets: IntArray, scale: float) -> Tensor:
    """Computes self-attention within each text: bf16 (T, H, d), d contiguous and 32 or 64, to that shape, contiguous.

    offsets: int64 (n + 1,). Rows past the last text come back as zeros.
    """
    out = torch.empty(query.shape, dtype=query.dtype)
    out[offsets[-1] :] = 0
    views = [x.view(torch.int16).numpy() for x in (query, key, value, out)]
    tiles = (0,) * (query.shape[-1] // STEP)  # its length is a type: a size of head is compiled when it is met
    map_texts(partial(_attend_texts, *views, CONFIG, np.float32(scale * LOG2_E), tiles), offsets)
    return out


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * SIDE)


def _tile(builder: Builder, name: str, *arguments: Any) -> None:
    """An instruction on tiles; Python ints are tile numbers."""
    values = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


def _start(context: Any, builder: Builder, signature: Any, arguments: Any, i: int) -> Any:
    """Where argument i, an array, begins."""
    return builder.bitcast(context.make_array(signature.args[i])(context, builder, arguments[i]).data, _BYTES)


def _row(context: Any, builder: Builder, signature: Any, arguments: Any, i: int = 0) -> tuple[Any, Any]:
    """Where [t, h] of argument i begins, t and h being the last two; and bytes from one t to the next."""
    array = context.make_array(signature.args[i])(context, builder, arguments[i])
    strides = cgutils.unpack_tuple(builder, array.strides)
    place = builder.add(builder.mul(arguments[-2], strides[0]), builder.mul(arguments[-1], strides[1]))
    return builder.gep(builder.bitcast(array.data, _BYTES), [place]), strides[0]


def _at(builder: Builder, base: Any, *terms: tuple[Any, Any], kind: Any = None) -> Any:
    """Returns `base` plus the sum of the terms' products in bytes, as a pointer to `kind`."""
    for a, b in terms:
        base = builder.gep(base, [builder.mul(*(i64(x) if isinstance(x, int) else x for x in (a, b)))])
    return base if kind is None else builder.bitcast(base, kind.as_pointer())


def _least(builder: Builder, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _raised(builder: Builder, x: Any) -> Any:
    """Returns float32 whose upper 16 bits are their bf16, halves rounded up; as int32."""
    return builder.add(builder.bitcast(x, _INTS), _all(_INTS, 0x8000))


def _configure(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    config, saved = (_start(context, builder, signature, arguments, i) for i in (0, 1))
    _tile(builder, "sttilecfg", saved)
    _tile(builder, "ldtilecfg", config)
    return context.get_dummy_value()


def _restore(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    saved = _start(context, builder, signature, arguments, 0)
    with builder.if_else(builder.icmp_signed("!=", builder.load(saved), ir.Constant(I8, 0))) as (there, none):
        with there:
            _tile(builder, "ldtilecfg", saved)
        with none:
            _tile(builder, "tilerelease")
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def configure(_context: Any, config: Any, saved: Any) -> Any:
    """Configures the tiles for this kernel and saves the former configuration, (64,) uint8: oneDNN keeps its own."""
    return types.void(config, saved), _configure


@intrinsic  # type: ignore[untyped-decorator]
def restore(_context: Any, saved: Any) -> Any:
    """Restores the tile configuration that `configure` saved, or releases the tiles where there was none."""
    return types.void(saved), _restore


def _depth(signature: Any) -> int:
    """Tiles side by side in a head: the length of the tuple before t and h, which is a type and so known here."""
    return int(signature.args[-3].count)


def _pack_keys(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    # Keys are the left side (A) of the first product, whose rows lie as they are: this copy only puts them side by side
    # (64 x depth bytes from key to key). Rows past the text repeat its last key, so that their scores are finite and
    # raise no maximum. Keys and values packed by hand: 3.2 to 2.2 to 2.4 microseconds per token and layer.
    depth, (base, stride) = _depth(signature), _row(context, builder, signature, arguments)
    out = _start(context, builder, signature, arguments, 1)
    with cgutils.for_range(builder, arguments[2]) as loop:
        source = _at(builder, base, (_least(builder, loop.index, arguments[3]), stride))
        for c in range(depth):
            key = builder.load(_at(builder, source, (64, c), kind=_INTS), align=2)
            builder.store(key, _at(builder, out, (loop.index, 64 * depth), (64, c), kind=_INTS), align=4)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def pack_keys(_context: Any, keys: Any, out: Any, n: Any, last: Any, tiles: Any, t: Any, h: Any) -> Any:
    """n keys from [t, h] on, side by side; from the `last` on it is repeated."""
    return types.void(keys, out, n, last, tiles, t, h), _pack_keys


def _pack_values(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    # Values are the left side (A) of the second product, values^T @ weights: a tile holds 16 dimensions down and 32
    # keys across. Two keys' 16 dimensions are interleaved to 16 int32 (a pair of bf16 each), and the 16 pairs of 32
    # keys are transposed as int32, so that a row ends as one dimension of 32 keys in order. Done once per text and
    # head, for all of its queries.
    columns, (base, stride) = 2 * _depth(signature), _row(context, builder, signature, arguments)
    out, last = _start(context, builder, signature, arguments, 1), arguments[3]
    pairs = ir.Constant(ir.VectorType(I32, STEP), [x for j in range(SIDE) for x in (j, SIDE + j)])
    with cgutils.for_range(builder, arguments[2]) as loop:
        first = builder.mul(loop.index, i64(STEP))
        rows = [_at(builder, base, (_least(builder, builder.add(first, i64(j)), last), stride)) for j in range(STEP)]
        for i in range(columns):
            values = [builder.load(_at(builder, row, (32, i), kind=_SHORTS), align=2) for row in rows]
            both = [builder.shuffle_vector(values[j], values[j + 1], pairs) for j in range(0, STEP, 2)]
            tile = _at(builder, out, (loop.index, columns * TILE), (i, TILE))
            for k, row in enumerate(transpose_16(builder, [builder.bitcast(pair, _INTS) for pair in both])):
                builder.store(row, _at(builder, tile, (64, k), kind=_INTS), align=4)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def pack_values(_context: Any, values: Any, out: Any, steps: Any, last: Any, tiles: Any, t: Any, h: Any) -> Any:
    """Values from [t, h] on, transposed: for every 32 of them a tile for each 16 dimensions."""
    return types.void(values, out, steps, last, tiles, t, h), _pack_values


def _pack_queries(builder: Builder, base: Any, stride: Any, rows: Any, depth: int, out: Any) -> None:
    """16 queries as columns, in pairs of dimensions; where there are fewer, the last one is repeated."""
    # The right side (B) of the first product: 16 rows of 16 int32, a pair of neighbouring dimensions each, transposed.
    last = builder.sub(rows, i64(1))
    for c in range(depth):
        places = [_least(builder, i64(n), last) for n in range(SIDE)]
        queries = [builder.load(_at(builder, base, (t, stride), (64, c), kind=_INTS), align=2) for t in places]
        for k, row in enumerate(transpose_16(builder, queries)):
            builder.store(row, _at(builder, out, (c, TILE), (64, k), kind=_INTS), align=4)


def _score(builder: Builder, queries: Any, keys: Any, steps: Any, depth: int, scores: Any) -> None:
    """scores (32 x steps, 16) float32: keys down, queries across."""
    # The queries stay in tiles 4 and 5 for all keys. Two blocks of 16 keys per round (accumulators 0 and 1, left sides
    # 6 and 7), so that the load of one hides behind the product of the other.
    for c in range(depth):
        _tile(builder, "tileloadd64", 4 + c, _at(builder, queries, (c, TILE)), i64(64))
    with cgutils.for_range(builder, steps) as loop:
        for u in range(2):
            block = builder.add(builder.mul(loop.index, i64(2)), i64(u))
            _tile(builder, "tilezero", u)
            for c in range(depth):
                left = _at(builder, keys, (block, depth * TILE), (64, c))
                _tile(builder, "tileloadd64", 6 + u, left, i64(64 * depth))
                _tile(builder, "tdpbf16ps", u, 6 + u, 4 + c)
            _tile(builder, "tilestored64", u, _at(builder, scores, (block, TILE)), i64(64))


def _highest(builder: Builder, scores: Any, steps: Any) -> Any:
    """Returns the largest score of each query, four keys at a time: a maximum waits four cycles for
    the one before it."""
    # Four running maxima: vmaxps has a latency of four cycles and a throughput of one, so one chain would wait. 2.0 to
    # 1.7 microseconds per token and layer. Padding keys repeat the last one and cannot raise a maximum.
    first = builder.load(_at(builder, scores, kind=_FLOATS), align=4)
    tops = [cgutils.alloca_once_value(builder, first) for _ in range(4)]

    def larger(x: Any, y: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", x, y), x, y)

    with cgutils.for_range(builder, builder.mul(steps, i64(STEP // 4))) as loop:
        for j, top in enumerate(tops):
            x = builder.load(_at(builder, scores, (loop.index, 4 * 64), (64, j), kind=_FLOATS), align=4)
            builder.store(larger(x, builder.load(top)), top)
    a, b, c, d = map(builder.load, tops)
    return larger(larger(a, b), larger(c, d))


def _soften(builder: Builder, scores: Any, length: Any, steps: Any, scale: Any, weights: Any) -> Any:
    """weights, two keys in each number: 2 ** ((scores - their maximum) * scale). Returns one over their sums."""
    # One pass down the columns. Two keys are turned into powers, added to the sum in float32, rounded to bf16 (halves
    # up) and stored as one int32 each, the even key in the lower half: exactly a row of B's pairs for `_mix`. An odd
    # last key gets a partner of weight 0, and so do the keys of the padding, whose values then do not matter. The
    # division by the sum waits for `_write`, where there are d numbers to scale in place of L.
    lowered = builder.fneg(builder.fmul(_highest(builder, scores, steps), scale))
    total = cgutils.alloca_once_value(builder, _all(_FLOATS, 0.0))

    def power(t: Any) -> Any:
        x = builder.load(_at(builder, scores, (t, 64), kind=_FLOATS), align=4)
        e = raise_two(builder, call(builder, "llvm.fma.v16f32", _FLOATS, x, scale, lowered))
        builder.store(builder.fadd(builder.load(total), e), total)
        return _raised(builder, e)

    def keep(pair: Any, even: Any, odd: Any) -> None:
        upper = builder.and_(odd, _all(_INTS, -0x10000))
        both = builder.or_(builder.lshr(even, _all(_INTS, 16)), upper)
        builder.store(both, _at(builder, weights, (pair, 64), kind=_INTS), align=4)

    whole = builder.sdiv(length, i64(2))
    with cgutils.for_range(builder, whole) as loop:
        even = builder.mul(loop.index, i64(2))
        keep(loop.index, power(even), power(builder.add(even, i64(1))))
    with builder.if_then(builder.icmp_signed("!=", builder.mul(whole, i64(2)), length)):
        keep(whole, power(builder.sub(length, i64(1))), _all(_INTS, 0))
    half_up = builder.sdiv(builder.add(length, i64(1)), i64(2))
    with cgutils.for_range(builder, builder.mul(steps, i64(SIDE)), start=half_up) as loop:
        builder.store(_all(_INTS, 0), _at(builder, weights, (loop.index, 64), kind=_INTS), align=4)
    return builder.fdiv(_all(_FLOATS, 1.0), builder.load(total))


def _mix(builder: Builder, weights: Any, values: Any, steps: Any, depth: int, mixed: Any) -> None:
    """mixed (d, 16) float32: dimensions down, queries across."""
    # The weights of 32 keys are loaded once (tile 4) and meet 2 or 4 tiles of values, each with an accumulator of its
    # own (0 to 3) for all keys, so partial sums never go to memory. Left sides alternate between tiles 6 and 7.
    columns = 2 * depth
    for i in range(columns):
        _tile(builder, "tilezero", i)
    with cgutils.for_range(builder, steps) as loop:
        _tile(builder, "tileloadd64", 4, _at(builder, weights, (loop.index, TILE)), i64(64))
        for i in range(columns):
            left = _at(builder, values, (loop.index, columns * TILE), (i, TILE))
            _tile(builder, "tileloadd64", 6 + i % 2, left, i64(64))
            _tile(builder, "tdpbf16ps", i, 6 + i % 2, 4)
    for i in range(columns):
        _tile(builder, "tilestored64", i, _at(builder, mixed, (i, TILE)), i64(64))


def _write(builder: Builder, mixed: Any, shares: Any, base: Any, stride: Any, rows: Any, depth: int) -> None:
    """Mixed values times shares as bf16, queries down again, for the first `rows` of them."""
    # `mixed` has dimensions down; times 1 / sum and transposed, a row is 16 dimensions of one query in the upper halves
    # of 16 int32. Only the first `rows` queries exist: the last block of a text writes fewer.
    for i in range(2 * depth):
        columns = [builder.load(_at(builder, mixed, (i, TILE), (64, k), kind=_FLOATS), align=4) for k in range(SIDE)]
        raised = [_raised(builder, builder.fmul(column, shares)) for column in columns]
        for n, row in enumerate(transpose_16(builder, raised)):
            rounded = builder.trunc(builder.lshr(row, _all(_INTS, 16)), _SHORTS)
            with builder.if_then(builder.icmp_signed("<", i64(n), rows)):
                builder.store(rounded, _at(builder, base, (n, stride), (32, i), kind=_SHORTS), align=2)


def _attend_block(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    depth, (query, stride) = _depth(signature), _row(context, builder, signature, arguments)
    out, out_stride = _row(context, builder, signature, arguments, 1)
    rows, length, scale = arguments[2:5]
    keys, values, queries, scores, weights, mixed = (
        _start(context, builder, signature, arguments, i) for i in range(5, 11)
    )
    steps = builder.sdiv(builder.add(length, i64(STEP - 1)), i64(STEP))
    _pack_queries(builder, query, stride, rows, depth, queries)
    _score(builder, queries, keys, steps, depth, scores)
    shares = _soften(builder, scores, length, steps, splat(builder, scale, SIDE), weights)
    _mix(builder, weights, values, steps, depth, mixed)
    _write(builder, mixed, shares, out, out_stride, rows, depth)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def attend_block(
    _context: Any, query: Any, out: Any, rows: Any, length: Any, scale: Any, keys: Any, values: Any, queries: Any,
    scores: Any, weights: Any, mixed: Any, tiles: Any, t: Any, h: Any,
) -> Any:  # fmt: skip
    """out[t : t + rows, h]: what these queries get from the packed keys and values of a text of this length."""
    scratch = (keys, values, queries, scores, weights, mixed)
    return types.void(query, out, rows, length, scale, *scratch, tiles, t, h), _attend_block


@njit_cached(nogil=True, boundscheck=False)
def _attend_texts(
    query: Any, key: Any, value: Any, out: Any, config: Any, scale: Any, tiles: Any, offsets: Any
) -> None:
    """Texts from offsets[i] to offsets[i + 1] of (T, H, 32 x len(tiles)) bf16, held as int16."""
    # Scratch for the longest text, reused for all: at 512 tokens and d = 64 keys and values take 128 kB, scores 32 kB
    # and weights 16 kB, so all of it stays in L2 (1 to 2 MB) while 16 queries after 16 pass over it. Heads are the
    # outer loop of a text: one head's keys and values are packed once and met by every block of queries.
    dim = STEP * len(tiles)
    most = (np.diff(offsets).max() + STEP - 1) // STEP
    keys, values = np.empty(most * STEP * dim, np.int16), np.empty(most * STEP * dim, np.int16)
    queries, weights = np.empty(SIDE * dim, np.int16), np.empty(most * STEP * SIDE, np.int16)
    scores, mixed = np.empty(most * STEP * SIDE, np.float32), np.empty(dim * SIDE, np.float32)
    saved = np.zeros(64, np.uint8)
    configure(config, saved)
    for i in range(len(offsets) - 1):
        start, end = offsets[i], offsets[i + 1]
        length, last = end - start, end - start - 1
        steps = (length + STEP - 1) // STEP
        for h in range(out.shape[1]):
            pack_keys(key, keys, steps * STEP, last, tiles, start, h)
            pack_values(value, values, steps, last, tiles, start, h)
            for t in range(start, end, SIDE):
                rows = min(SIDE, end - t)
                attend_block(
                    query, out, rows, length, scale, keys, values, queries, scores, weights, mixed, tiles, t, h
                )
    restore(saved)
