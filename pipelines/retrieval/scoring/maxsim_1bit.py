"""Computes exact MaxSim of float queries and one-bit codes: 8-bit integer products first, float for the few best.

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


def _build_plane_product(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    planes = context.make_array(signature.args[0])(context, builder, arguments[0])
    codes = context.make_array(signature.args[2])(context, builder, arguments[2])
    words = cgutils.unpack_tuple(builder, codes.shape)[1]
    lanes = i64(PLANES)
    query = builder.gep(planes.data, [builder.mul(arguments[1], builder.mul(words, lanes))])
    code = builder.gep(codes.data, [builder.mul(arguments[3], words)])
    # Register: 8 int64 counts, lane p for bit plane p of the query vector. One iteration per 64-bit word: the 8 planes
    # of the word are one 64-byte load, the code's word is broadcast, and one vector popcount counts the shared bits of
    # all 8 planes.
    counts = cgutils.alloca_once_value(builder, ir.Constant(_LANES, [0] * PLANES))
    with cgutils.for_range(builder, words) as loop:
        place = builder.bitcast(builder.gep(query, [builder.mul(loop.index, lanes)]), _LANES.as_pointer())
        word = splat(builder, builder.load(builder.gep(code, [loop.index])), PLANES)
        shared = call(builder, POPCOUNT, _LANES, builder.and_(builder.load(place, align=8), word))
        builder.store(builder.add(builder.load(counts), shared), counts)
    # Plane p counts 2**p: one shift per lane, and the only addition across lanes, after the loop.
    powers = builder.shl(builder.load(counts), ir.Constant(_LANES, list(range(PLANES))))
    return call(builder, "llvm.vector.reduce.add.v8i64", I64, powers)


@intrinsic  # type: ignore[untyped-decorator]
def plane_product(_context: Any, planes: Any, q: Any, codes: Any, t: Any) -> Any:
    """Computes the sum over bit planes p of 2**p * popcount(planes[q, :, p] & codes[t]).

    C arrays of uint64: planes (m, words, 8), codes (n, words).
    """
    return types.int64(planes, types.int64, codes, types.int64), _build_plane_product


def _build_keep_nearest(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    query, codes, best = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 1, 3))
    words = cgutils.unpack_tuple(builder, codes.shape)[1]
    code = builder.gep(codes.data, [builder.mul(arguments[2], words)])
    # Registers: 8 int64 Hamming distances, lane l for sign vector l; query[word] holds that word of all 8 vectors, so
    # that one load, XOR and popcount serve 8 query vectors.
    rows = builder.bitcast(query.data, _LANES.as_pointer())
    counts = cgutils.alloca_once_value(builder, ir.Constant(_LANES, [0] * PLANES))
    builder.store(ir.Constant(_LANES, [0] * PLANES), counts)
    with cgutils.for_range(builder, words) as loop:
        word = splat(builder, builder.load(builder.gep(code, [loop.index])), PLANES)
        differ = builder.xor(builder.load(builder.gep(rows, [loop.index]), align=8), word)
        builder.store(builder.add(builder.load(counts), call(builder, POPCOUNT, _LANES, differ)), counts)
    # A smaller distance is a larger product: the minimum over a document's codes is kept per lane, without a branch.
    place = builder.bitcast(best.data, _LANES.as_pointer())
    known, new = builder.load(place, align=8), builder.load(counts)
    builder.store(builder.select(builder.icmp_signed("<", new, known), new, known), place, align=8)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def keep_nearest(_context: Any, query: Any, codes: Any, t: Any, best: Any) -> Any:
    """Lowers best[l] to the Hamming distance of sign vector l and code t; C arrays query (words, 8), best (8,)."""
    return types.void(query, codes, types.int64, best), _build_keep_nearest


@compiled
def _sign_maxsim(query: Any, factors: Any, dim: int, words: Any, starts: Any, ends: Any, out: Any) -> None:
    """Computes approximate scores for preselection: MaxSim between the signs of the query and those of the codes.

    out[i] = sum over sign vectors of factor * (dim - 2 * smallest Hamming distance to a code of document i).
    """
    best = np.empty(PLANES, np.int64)
    for i in range(len(starts)):
        out[i] = 0
        if ends[i] == starts[i]:
            continue
        for group in range(len(query)):
            # Documents outside, 8 sign vectors at a time inside: a document's codes stay in the first-level cache.
            best[:] = dim
            for t in range(starts[i], ends[i]):
                keep_nearest(query[group], words, t, best)
            for lane in range(min(PLANES, len(factors) - group * PLANES)):
                out[i] += factors[group * PLANES + lane] * (dim - 2 * best[lane])


@compiled
def _multiply_rounded(planes: Any, codes: Any, start: int, end: int, scratch: Any) -> None:
    """Writes scratch[q, t], the sum of the rounded values of query vector q where code t has a one.

    Planes hold the rounded values plus 128. Their last row is 128 everywhere, so that its product is the excess.
    """
    last = planes.shape[0] - 1
    for t in range(start, end):
        excess = plane_product(planes, last, codes, t)
        for q in range(last):
            scratch[q, t - start] = plane_product(planes, q, codes, t) - excess


@compiled
def _lookup_product(table: Any, code: Any) -> np.float32:
    total = np.float32(0)
    for b in range(len(code)):
        total += table[b, code[b]]
    return total


@compiled
def _best_product(table: Any, rounded: Any, slack: int, codes: Any, start: int) -> np.float32:
    """Returns the exact maximum over one document; rounded products are off by at most `slack` from one another."""
    least = rounded.max() - slack
    best = np.float32(-np.inf)
    for t in range(len(rounded)):
        if rounded[t] >= least:
            best = max(best, _lookup_product(table, codes[start + t]))
    return best


@compiled
def _longest_document(starts: Any, ends: Any) -> int:
    longest = 1
    for i in range(len(starts)):
        longest = max(longest, ends[i] - starts[i])
    return longest


@compiled
def _maxsim_planes(
    planes: Any, tables: Any, slack: Any, weights: Any, words: Any, codes: Any, starts: Any, ends: Any, out: Any
) -> None:
    """Writes out[i] = sum over query vectors of weight * max over codes starts[i]:ends[i]; 0 where there are none."""
    scratch = np.empty((len(tables), _longest_document(starts, ends)), np.int32)
    for i in range(len(starts)):
        start, end = starts[i], ends[i]
        total = np.float32(0)
        # Integer products of all codes first, float products only of those within `slack` of the maximum: about two of
        # a hundred, so that the table look-ups cost little beside the popcounts.
        if end > start:
            _multiply_rounded(planes, words, start, end, scratch)
            for q in range(len(tables)):
                total += weights[q] * _best_product(tables[q], scratch[q, : end - start], slack[q], codes, start)
        out[i] = total


@compiled
def _multiply_lanes(
    query: Any, words: Any, start: int, end: int, unfolded: Any, rounded: Any, maxima: Any, best: Any
) -> None:
    """Writes rounded[t, l], the integer product of query lane l and code start + t, and its maxima.

    maxima: of each tile of CODES codes (tiles, 16); best: of all (16,).
    """
    best[:] = np.iinfo(np.int32).min
    # A tile is CODES codes x LANES query vectors. The last tile of a document repeats its last code; those products are
    # written behind the document's and never read.
    for tile in range((end - start + CODES - 1) // CODES):
        t = start + tile * CODES
        for c in range(CODES):
            unfold(words, min(t + c, end - 1), unfolded, c)
        products(query, unfolded, rounded, t - start, maxima, tile)
        for lane in range(LANES):
            best[lane] = max(best[lane], maxima[tile, lane])


@compiled
def _rescore_group(
    tables: Any, first: int, rounded: Any, maxima: Any, least: Any, codes: Any, start: int, n: int, exact: Any
) -> None:
    """Writes exact[l], the largest float product of query vector first + l among the codes that may reach it."""
    exact[:] = -np.inf
    # Counting the lanes within the bound has no branch and is vectorised; most tiles have none and are left at once.
    lanes = min(LANES, len(tables) - first)
    for tile in range((n + CODES - 1) // CODES):
        near = 0
        for lane in range(LANES):
            near += maxima[tile, lane] >= least[lane]
        if near:
            for t in range(tile * CODES, min(n, (tile + 1) * CODES)):
                for lane in range(lanes):
                    if rounded[t, lane] >= least[lane]:
                        exact[lane] = max(exact[lane], _lookup_product(tables[first + lane], codes[start + t]))


@compiled
def _maxsim_lanes(
    lanes: Any, tables: Any, slack: Any, weights: Any, words: Any, codes: Any, starts: Any, ends: Any, out: Any
) -> None:
    """Computes what `_maxsim_planes` computes, by VNNI; lanes: the query as `vnni.query_lanes` lays it out."""
    longest = _longest_document(starts, ends)
    rounded = np.empty((longest + CODES, LANES), np.int32)
    maxima = np.empty((longest // CODES + 1, LANES), np.int32)
    unfolded = np.zeros((CODES, 64 * words.shape[1]), np.uint8)
    best, exact = np.empty(LANES, np.int32), np.empty(LANES, np.float32)
    least = np.empty(LANES, np.int32)
    for i in range(len(starts)):
        start, end = starts[i], ends[i]
        out[i] = 0
        if end == start:
            continue
        # Per 16 query vectors: (1) integer products and their maxima, (2) the bound below which no code can have the
        # exact maximum (padded lanes get one that nothing reaches), (3) float products of the codes within it.
        # Measured (benchmarks/RESEARCH_LOG.md): 16 query vectors, 200 documents of 100 vectors, 1.25 ms so and 2.55 ms
        # with popcounts.
        for group in range(len(lanes)):
            first = group * LANES
            _multiply_lanes(lanes[group], words, start, end, unfolded, rounded, maxima, best)
            for lane in range(LANES):
                known = first + lane < len(tables)
                least[lane] = best[lane] - slack[first + lane] if known else np.iinfo(np.int32).max
            _rescore_group(tables, first, rounded, maxima, least, codes, start, end - start, exact)
            for lane in range(min(LANES, len(tables) - first)):
                out[i] += weights[first + lane] * exact[lane]


def round_vectors(vectors: Floats) -> tuple[Floats, Floats, IntArray]:
    """Rounds query vectors (m, dim) to multiples of a step each.

    Returns the multiples, within -127..127; the steps (m,); and by how many steps at most the rounded products of a
    vector with two codes are off from one another (m,).
    """
    steps = np.maximum(np.abs(vectors).max(axis=1, initial=0), 1e-12)[:, None] / np.float32(127)
    rounded = np.rint(vectors / steps)
    slack = np.ceil(np.abs(vectors / steps - rounded).sum(axis=1)).astype(np.int64) + 1
    return rounded, steps[:, 0], slack


def as_words(codes: Array) -> Array:
    """Views codes (m, bytes) as (m, words) uint64, padded with zeros to whole words."""
    missing = -codes.shape[1] % 8
    return (np.pad(codes, ((0, 0), (0, missing))) if missing else codes).view(np.uint64)


class BitQuery:
    """Holds one query, (m, dim) float32, as 8-bit integers and byte tables, for exact scores of one-bit codes.

    vnni: which kernel multiplies the integers; None: by what the processor has. Both give the same bits.
    """

    def __init__(self, vectors: Floats, vnni: bool | None = None) -> None:
        dim = vectors.shape[1]
        rounded, _, self.slack = round_vectors(vectors)
        self.tables = _build_byte_tables(vectors / np.float32(np.sqrt(dim)))
        self.vnni = has_vnni() if vnni is None else vnni
        self.query = query_lanes(rounded.astype(np.int8)) if self.vnni else split_planes(rounded)

    def scores(self, codes: Array, starts: IntArray, ends: IntArray, weights: Floats) -> Floats:
        """Sums over query vectors the weight times the best product in each document: float32 (documents,).

        Document i has codes[starts[i]:ends[i]].
        """
        out = np.empty(len(starts), np.float32)
        codes = np.ascontiguousarray(codes)
        kernel = _maxsim_lanes if self.vnni else _maxsim_planes
        kernel(self.query, self.tables, self.slack, weights, as_words(codes), codes, starts, ends, out)
        return out


class SignQuery:
    """Holds one query as signs: approximate scores for preselection at a quarter of the time of exact ones."""

    def __init__(self, vectors: Floats) -> None:
        m, self.dim = vectors.shape
        signs = np.zeros((-(-m // PLANES) * PLANES, -(-self.dim // 64) * 8), np.uint8)
        signs[:m, : -(-self.dim // 8)] = np.packbits(vectors > 0, axis=1, bitorder="little")
        words = signs.view(np.uint64).reshape(-1, PLANES, signs.shape[1] // 8)
        self.query = np.ascontiguousarray(words.transpose(0, 2, 1))
        self.factors = (np.abs(vectors).mean(axis=1) / np.sqrt(self.dim)).astype(np.float32)

    def scores(self, codes: Array, starts: IntArray, ends: IntArray, weights: Floats) -> Floats:
        """Scores as `BitQuery.scores`, with each query vector replaced by its signs times its mean absolute value."""
        out = np.empty(len(starts), np.float32)
        _sign_maxsim(
            self.query, self.factors * weights, self.dim, as_words(np.ascontiguousarray(codes)), starts, ends, out
        )
        return out


def split_planes(rounded: Floats) -> Array:
    """Splits rounded query vectors plus 128 into bit planes, uint64 (m + 1, words, 8); the last row is all 128."""
    m, dim = rounded.shape
    raised = np.full((m + 1, -(-dim // 64) * 64), 128, np.uint8)
    raised[:m, :dim] = (rounded + 128).astype(np.uint8)
    bits = (raised[:, None] >> np.arange(PLANES, dtype=np.uint8)[:, None]) & 1
    packed = np.packbits(bits, axis=2, bitorder="little").view(np.uint64)
    return np.ascontiguousarray(packed.transpose(0, 2, 1))


def _build_byte_tables(vectors: Floats) -> Floats:
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
    """Fills the 256 signed sums of each eight values by doubling: setting a bit adds twice its value to a known sum."""
    for i in range(len(eights)):
        tables[i, 0] = -eights[i].sum()
        for bit in range(8):
            for low in range(1 << bit):
                tables[i, low | 1 << bit] = tables[i, low] + 2 * eights[i, bit]
