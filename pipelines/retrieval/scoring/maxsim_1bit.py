"""MaxSim of float queries against one-bit codes, in integers first, exactly.

A query vector is rounded to 8-bit integers. Rounding moves a product by at most a known bound, and only the document
vectors within that bound of the maximum (about two of a hundred) are multiplied in float. The integer products come
from `vnni` where the processor has its instructions. Elsewhere a query vector is held as 8 bit planes, so that its
product with a code is 8 popcounts a word; the 8 planes of a word lie side by side and are handled as one vector of 8
lanes, written as LLVM by hand, because numba's own vectoriser left the loop three times slower (AVX-512).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from actors.kernels.jit import compiled
from actors.kernels.llvm import I64, call, i64, splat
from actors.outputs import Array, IntArray
from pipelines.retrieval.scoring.kernels import Floats
from pipelines.retrieval.scoring.vnni import CODES, LANES, has_vnni, products, query_lanes, unfold

PLANES = 8
POPCOUNT = "llvm.ctpop.v8i64"
_LANES = ir.VectorType(I64, PLANES)


def _count_planes(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    planes = context.make_array(signature.args[0])(context, builder, arguments[0])
    codes = context.make_array(signature.args[2])(context, builder, arguments[2])
    words = cgutils.unpack_tuple(builder, codes.shape)[1]
    lanes = i64(PLANES)
    query = builder.gep(planes.data, [builder.mul(arguments[1], builder.mul(words, lanes))])
    code = builder.gep(codes.data, [builder.mul(arguments[3], words)])
    counts = cgutils.alloca_once_value(builder, ir.Constant(_LANES, [0] * PLANES))
    with cgutils.for_range(builder, words) as loop:
        place = builder.bitcast(builder.gep(query, [builder.mul(loop.index, lanes)]), _LANES.as_pointer())
        word = splat(builder, builder.load(builder.gep(code, [loop.index])), PLANES)
        shared = call(builder, POPCOUNT, _LANES, builder.and_(builder.load(place, align=8), word))
        builder.store(builder.add(builder.load(counts), shared), counts)
    powers = builder.shl(builder.load(counts), ir.Constant(_LANES, list(range(PLANES))))
    return call(builder, "llvm.vector.reduce.add.v8i64", I64, powers)


@intrinsic  # type: ignore[untyped-decorator]
def plane_product(_context: Any, planes: Any, q: Any, codes: Any, t: Any) -> Any:
    """sum over planes p of 2**p * popcount(planes[q, :, p] & codes[t]); C arrays (m, words, 8), (n, words) uint64."""
    return types.int64(planes, types.int64, codes, types.int64), _count_planes


def _nearest(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    query, codes, best = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 1, 3))
    words = cgutils.unpack_tuple(builder, codes.shape)[1]
    code = builder.gep(codes.data, [builder.mul(arguments[2], words)])
    rows = builder.bitcast(query.data, _LANES.as_pointer())
    counts = cgutils.alloca_once_value(builder, ir.Constant(_LANES, [0] * PLANES))
    builder.store(ir.Constant(_LANES, [0] * PLANES), counts)
    with cgutils.for_range(builder, words) as loop:
        word = splat(builder, builder.load(builder.gep(code, [loop.index])), PLANES)
        differ = builder.xor(builder.load(builder.gep(rows, [loop.index]), align=8), word)
        builder.store(builder.add(builder.load(counts), call(builder, POPCOUNT, _LANES, differ)), counts)
    place = builder.bitcast(best.data, _LANES.as_pointer())
    known, new = builder.load(place, align=8), builder.load(counts)
    builder.store(builder.select(builder.icmp_signed("<", new, known), new, known), place, align=8)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def keep_nearest(_context: Any, query: Any, codes: Any, t: Any, best: Any) -> Any:
    """best[l] = min(best[l], bits in which sign vector l and code t differ); C arrays query (words, 8), best (8,)."""
    return types.void(query, codes, types.int64, best), _nearest


@compiled
def _rough(query: Any, factors: Any, dim: int, words: Any, starts: Any, ends: Any, out: Any) -> None:
    """out[i] = sum over sign vectors of factor * (dim - 2 * fewest bits in which a code of document i differs)."""
    best = np.empty(PLANES, np.int64)
    for i in range(len(starts)):
        out[i] = 0
        if ends[i] == starts[i]:
            continue
        for group in range(len(query)):
            best[:] = dim
            for t in range(starts[i], ends[i]):
                keep_nearest(query[group], words, t, best)
            for lane in range(min(PLANES, len(factors) - group * PLANES)):
                out[i] += factors[group * PLANES + lane] * (dim - 2 * best[lane])


@compiled
def _rounded_products(planes: Any, codes: Any, start: int, end: int, scratch: Any) -> None:
    """scratch[q, t]: sum of the rounded values of query vector q over the dimensions in which code t has a one.

    Planes hold the rounded values plus 128. Their last row is 128 everywhere, so that its product is the excess.
    """
    last = planes.shape[0] - 1
    for t in range(start, end):
        excess = plane_product(planes, last, codes, t)
        for q in range(last):
            scratch[q, t - start] = plane_product(planes, q, codes, t) - excess


@compiled
def _exact_product(table: Any, code: Any) -> np.float32:
    total = np.float32(0)
    for b in range(len(code)):
        total += table[b, code[b]]
    return total


@compiled
def _best_product(table: Any, rounded: Any, slack: int, codes: Any, start: int) -> np.float32:
    """Exact maximum over one document, given rounded products whose differences are off by at most `slack`."""
    least = rounded.max() - slack
    best = np.float32(-np.inf)
    for t in range(len(rounded)):
        if rounded[t] >= least:
            best = max(best, _exact_product(table, codes[start + t]))
    return best


@compiled
def _longest(starts: Any, ends: Any) -> int:
    longest = 1
    for i in range(len(starts)):
        longest = max(longest, ends[i] - starts[i])
    return longest


@compiled
def _maxsim_planes(
    planes: Any, tables: Any, slack: Any, weights: Any, words: Any, codes: Any, starts: Any, ends: Any, out: Any
) -> None:
    """out[i] = sum over query vectors of weight * max over codes starts[i]:ends[i]; 0 where there are none."""
    scratch = np.empty((len(tables), _longest(starts, ends)), np.int32)
    for i in range(len(starts)):
        start, end = starts[i], ends[i]
        total = np.float32(0)
        if end > start:
            _rounded_products(planes, words, start, end, scratch)
            for q in range(len(tables)):
                total += weights[q] * _best_product(tables[q], scratch[q, : end - start], slack[q], codes, start)
        out[i] = total


@compiled
def _lane_products(query: Any, words: Any, start: int, end: int, unfolded: Any, rounded: Any, best: Any) -> None:
    """rounded[t, l]: rounded product of lane l with code start + t; best[l]: its maximum over t."""
    best[:] = np.iinfo(np.int32).min
    for t in range(start, end, CODES):
        for c in range(CODES):
            unfold(words, min(t + c, end - 1), unfolded, c)
        products(query, unfolded, rounded, t - start)
    for t in range(end - start):
        for lane in range(LANES):
            best[lane] = max(best[lane], rounded[t, lane])


@compiled
def _exact_lanes(tables: Any, first: int, rounded: Any, least: Any, codes: Any, start: int, n: int, exact: Any) -> None:
    """exact[l] = maximum of the exact products of query vector first + l with the codes that may have it."""
    exact[:] = -np.inf
    lanes = min(LANES, len(tables) - first)
    for t in range(n):
        near = 0
        for lane in range(LANES):
            near += rounded[t, lane] >= least[lane]
        if near:
            for lane in range(lanes):
                if rounded[t, lane] >= least[lane]:
                    exact[lane] = max(exact[lane], _exact_product(tables[first + lane], codes[start + t]))


@compiled
def _maxsim_lanes(
    lanes: Any, tables: Any, slack: Any, weights: Any, words: Any, codes: Any, starts: Any, ends: Any, out: Any
) -> None:
    """As `_maxsim_planes`, with the query as `vnni.query_lanes` lays it out."""
    rounded = np.empty((_longest(starts, ends) + CODES, LANES), np.int32)
    unfolded = np.zeros((CODES, 64 * words.shape[1]), np.uint8)
    best, exact = np.empty(LANES, np.int32), np.empty(LANES, np.float32)
    least = np.empty(LANES, np.int32)
    for i in range(len(starts)):
        start, end = starts[i], ends[i]
        out[i] = 0
        if end == start:
            continue
        for group in range(len(lanes)):
            first = group * LANES
            _lane_products(lanes[group], words, start, end, unfolded, rounded, best)
            for lane in range(LANES):
                known = first + lane < len(tables)
                least[lane] = best[lane] - slack[first + lane] if known else np.iinfo(np.int32).max
            _exact_lanes(tables, first, rounded, least, codes, start, end - start, exact)
            for lane in range(min(LANES, len(tables) - first)):
                out[i] += weights[first + lane] * exact[lane]


def _words(codes: Array) -> Array:
    """Codes (m, bytes) as (m, words) uint64, padded with zeros to whole words."""
    missing = -codes.shape[1] % 8
    return (np.pad(codes, ((0, 0), (0, missing))) if missing else codes).view(np.uint64)


class BitQuery:
    """One query's vectors, (m, dim) float32, made ready for one-bit codes."""

    def __init__(self, vectors: Floats, vnni: bool | None = None) -> None:
        dim = vectors.shape[1]
        step = np.maximum(np.abs(vectors).max(axis=1, initial=0), 1e-12)[:, None] / np.float32(127)
        rounded = np.rint(vectors / step)
        self.slack = np.ceil(np.abs(vectors / step - rounded).sum(axis=1)).astype(np.int64) + 1
        self.tables = _byte_tables(vectors / np.float32(np.sqrt(dim)))
        self.vnni = has_vnni() if vnni is None else vnni
        self.query = query_lanes(rounded.astype(np.int8)) if self.vnni else _planes(rounded)

    def scores(self, codes: Array, starts: IntArray, ends: IntArray, weights: Floats) -> Floats:
        """Weighted sum over query vectors of the best product in each document: float32 (documents,).

        Document i has codes[starts[i]:ends[i]].
        """
        out = np.empty(len(starts), np.float32)
        codes = np.ascontiguousarray(codes)
        kernel = _maxsim_lanes if self.vnni else _maxsim_planes
        kernel(self.query, self.tables, self.slack, weights, _words(codes), codes, starts, ends, out)
        return out


class SignQuery:
    """One query's vectors as signs, too: scores that are a little wrong for a quarter of the time."""

    def __init__(self, vectors: Floats) -> None:
        m, self.dim = vectors.shape
        signs = np.zeros((-(-m // PLANES) * PLANES, -(-self.dim // 64) * 8), np.uint8)
        signs[:m, : -(-self.dim // 8)] = np.packbits(vectors > 0, axis=1, bitorder="little")
        words = signs.view(np.uint64).reshape(-1, PLANES, signs.shape[1] // 8)
        self.query = np.ascontiguousarray(words.transpose(0, 2, 1))
        self.factors = (np.abs(vectors).mean(axis=1) / np.sqrt(self.dim)).astype(np.float32)

    def scores(self, codes: Array, starts: IntArray, ends: IntArray, weights: Floats) -> Floats:
        """As `BitQuery.scores`, with each query vector replaced by its signs times its mean absolute value."""
        out = np.empty(len(starts), np.float32)
        _rough(self.query, self.factors * weights, self.dim, _words(np.ascontiguousarray(codes)), starts, ends, out)
        return out


def _planes(rounded: Floats) -> Array:
    """Rounded query vectors plus 128 as bits, uint64 (m + 1, words, 8); the last row is 128 everywhere."""
    m, dim = rounded.shape
    raised = np.full((m + 1, -(-dim // 64) * 64), 128, np.uint8)
    raised[:m, :dim] = (rounded + 128).astype(np.uint8)
    bits = (raised[:, None] >> np.arange(PLANES, dtype=np.uint8)[:, None]) & 1
    packed = np.packbits(bits, axis=2, bitorder="little").view(np.uint64)
    return np.ascontiguousarray(packed.transpose(0, 2, 1))


def _byte_tables(vectors: Floats) -> Floats:
    """Returns (m, bytes, 256): what each byte of a code contributes to the product; bits are +1 and
    -1, padding counts 0."""
    m, dim = vectors.shape
    padded = np.zeros((m, -(-dim // 8), 8), np.float32)
    padded.reshape(m, -1)[:, :dim] = vectors
    tables = np.empty((m, padded.shape[1], 256), np.float32)
    _fill_tables(padded.reshape(-1, 8), tables.reshape(-1, 256))
    return tables


@compiled
def _fill_tables(eights: Any, tables: Any) -> None:
    """Each further bit doubles what is known: with the bit set a sum is twice its value larger."""
    for i in range(len(eights)):
        tables[i, 0] = -eights[i].sum()
        for bit in range(8):
            for low in range(1 << bit):
                tables[i, low | 1 << bit] = tables[i, low] + 2 * eights[i, bit]
