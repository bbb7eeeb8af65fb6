"""Multiplies 16 query vectors with one-bit codes by AVX-512's 8-bit dot product (VNNI), where the machine has it.

A code is expanded to one byte per dimension; one instruction then multiplies four of its dimensions by the same four of
all 16 query vectors. Eight codes go together, so that the query is loaded once for them. The 16 sums stand side by side
and need no adding across lanes, which is most of what the popcounts of `maxsim_1bit` spend: 3 to 4 times fewer cycles
per product. numba offers no such instruction, so the inner loop is written as LLVM here; other machines use popcounts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from actors.kernels.llvm import I8, I32, call, i64, splat
from actors.outputs import Array

LANES, CODES, WORD = 16, 8, 64
"""Query vectors and codes of one step; dimensions of a word."""
MULTIPLY = "llvm.x86.avx512.vpdpbusd.512"
_SUMS = ir.VectorType(I32, LANES)


@lru_cache(maxsize=1)
def has_vnni() -> bool:
    """Returns whether this processor has AVX512-VNNI, -BW and -VL."""
    features = llvmlite.binding.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512vnni", "avx512bw", "avx512vl"))


def _build_unfold(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    codes = context.make_array(signature.args[0])(context, builder, arguments[0])
    target = context.make_array(signature.args[2])(context, builder, arguments[2])
    words = cgutils.unpack_tuple(builder, codes.shape)[1]
    code = builder.gep(codes.data, [builder.mul(arguments[1], words)])
    width = builder.mul(words, i64(WORD))
    place = builder.gep(target.data, [builder.mul(arguments[3], width)])
    # One iteration per 64-bit word of the code: load it, view it as a vector of 64 single bits, zero-extend them to 64
    # bytes, and store them as dimensions 64 * i .. 64 * i + 63 of the row.
    with cgutils.for_range(builder, words) as loop:
        bits = builder.bitcast(builder.load(builder.gep(code, [loop.index])), ir.VectorType(ir.IntType(1), WORD))
        ones = builder.zext(bits, ir.VectorType(I8, WORD))
        at = builder.gep(place, [builder.mul(loop.index, i64(WORD))])
        builder.store(ones, builder.bitcast(at, ones.type.as_pointer()), align=1)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def unfold(_context: Any, codes: Any, t: Any, target: Any, row: Any) -> Any:
    """Expands a code to bytes: target[row, d] = bit d of code t; C arrays.

    codes: (n, words) uint64; target: (CODES, words * 64) uint8.
    """
    return types.void(codes, types.int64, target, types.int64), _build_unfold


def _build_products(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    query, unfolded, out, maxima = (
        context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 1, 2, 4)
    )
    # Registers: CODES accumulators of 16 int32, lane l the sum for query vector l. They are stack slots here, which
    # LLVM promotes to zmm registers because nothing takes their address.
    steps = cgutils.unpack_tuple(builder, query.shape)[0]
    zero = ir.Constant(_SUMS, [0] * LANES)
    sums = [cgutils.alloca_once_value(builder, zero) for _ in range(CODES)]
    vectors = builder.bitcast(query.data, _SUMS.as_pointer())
    fours = builder.bitcast(unfolded.data, I32.as_pointer())
    # One iteration per four dimensions: `values` (16 query vectors x 4 int8, 64 bytes) is loaded once and used for all
    # CODES codes; of each code the same four bytes are broadcast to all lanes. vpdpbusd multiplies unsigned bytes (the
    # code's 0 and 1) by signed ones (the query) and adds the four products to the lane's sum.
    with cgutils.for_range(builder, steps) as loop:
        values = builder.load(builder.gep(vectors, [loop.index]), align=1)
        for code, total in enumerate(sums):
            at = builder.add(builder.mul(steps, i64(code)), loop.index)
            four = splat(builder, builder.load(builder.gep(fours, [at]), align=1), LANES)
            builder.store(call(builder, MULTIPLY, _SUMS, builder.load(total), four, values), total)
    # Only now do the sums leave the registers: one 64-byte store per code, out[row + c, 0..15], and their maximum.
    target = builder.bitcast(out.data, _SUMS.as_pointer())
    largest = builder.load(sums[0])
    for code, total in enumerate(sums):
        new = builder.load(total)
        builder.store(new, builder.gep(target, [builder.add(arguments[3], i64(code))]), align=1)
        largest = builder.select(builder.icmp_signed(">", new, largest), new, largest)
    builder.store(largest, builder.gep(builder.bitcast(maxima.data, _SUMS.as_pointer()), [arguments[5]]), align=1)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def products(_context: Any, query: Any, unfolded: Any, out: Any, row: Any, maxima: Any, tile: Any) -> Any:
    """Multiplies CODES expanded codes with 16 query vectors: out[row + c, l] = sum over d of query * unfolded[c].

    maxima[tile, l] is the largest of them. C arrays: query (steps, 16, 4) int8, unfolded (CODES, steps * 4) uint8, out
    (rows, 16) int32, maxima (tiles, 16) int32.
    """
    return types.void(query, unfolded, out, types.int64, maxima, types.int64), _build_products


def _make_keep_largest(groups: int) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, unfolded, best = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 3)
        )
        steps = cgutils.unpack_tuple(builder, lanes.shape)[1]
        first = builder.mul(arguments[1], steps)
        vectors = builder.bitcast(lanes.data, _SUMS.as_pointer())
        fours = builder.bitcast(unfolded.data, I32.as_pointer())
        # Registers: `groups` x CODES accumulators of 16 int32, at most 16 zmm. One iteration per four dimensions: the
        # broadcast four bytes of a code are used for all groups, so that two groups need 10 loads for 16 products, and
        # one needs 9 for 8.
        zero = ir.Constant(_SUMS, [0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(CODES)] for _ in range(groups)]
        with cgutils.for_range(builder, steps) as loop:
            values = [
                builder.load(
                    builder.gep(vectors, [builder.add(builder.add(first, builder.mul(steps, i64(g))), loop.index)]),
                    align=1,
                )
                for g in range(groups)
            ]
            for code in range(CODES):
                at = builder.add(builder.mul(steps, i64(code)), loop.index)
                four = splat(builder, builder.load(builder.gep(fours, [at]), align=1), LANES)
                for g in range(groups):
                    total = builder.load(sums[g][code])
                    builder.store(call(builder, MULTIPLY, _SUMS, total, four, values[g]), sums[g][code])
        target = builder.bitcast(best.data, _SUMS.as_pointer())
        for g in range(groups):
            place = builder.gep(target, [builder.add(arguments[1], i64(g))])
            largest = builder.load(place, align=4)
            for slot in sums[g]:
                new = builder.load(slot)
                largest = builder.select(builder.icmp_signed(">", new, largest), new, largest)
            builder.store(largest, place, align=4)
        return context.get_dummy_value()

    return build


@intrinsic  # type: ignore[untyped-decorator]
def keep_largest(_context: Any, lanes: Any, group: Any, unfolded: Any, best: Any) -> Any:
    """Raises best[group, l] to the largest product of CODES expanded codes with query vector l of the group.

    C arrays: lanes (groups, steps, 16, 4) int8, unfolded (CODES, steps * 4) uint8, best (groups, 16) int32.
    """
    return types.void(lanes, types.int64, unfolded, best), _make_keep_largest(1)


@intrinsic  # type: ignore[untyped-decorator]
def keep_largest_of_two(_context: Any, lanes: Any, group: Any, unfolded: Any, best: Any) -> Any:
    """Computes what `keep_largest` computes, for this group and the next."""
    return types.void(lanes, types.int64, unfolded, best), _make_keep_largest(2)


def query_lanes(rounded: npt.NDArray[np.int8]) -> Array:
    """Lays rounded query vectors (m, dim) out in groups of 16: int8 (groups, steps, 16, 4), padded with zeros."""
    m, dim = rounded.shape
    padded = np.zeros((-(-m // LANES) * LANES, -(-dim // WORD) * WORD), np.int8)
    padded[:m, :dim] = rounded
    return np.ascontiguousarray(padded.reshape(-1, LANES, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3))
