"""Helpers for kernels written in LLVM IR: types, calls of intrinsics by name, broadcasts.

The kernels are numba intrinsics. numba has no tiles, no bf16, no 8-bit dot product and no populations of planes; what
it has stays Python.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils

Builder = Any
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()

LANES = 16
"""32-bit numbers in a register of AVX-512."""
INTS, FLOATS = (ir.VectorType(kind, LANES) for kind in (I32, F32))
EXP2 = (5.517101e-2, 2.426112e-1, 6.9326108e-1, 9.9992807e-1)
"""2 ** f for f from -1/2 to 1/2 within a share of 7.5e-5, highest power first; fitted to the largest error."""


def i64(value: int) -> Any:
    """Makes a 64-bit integer constant."""
    return ir.Constant(I64, value)


def call(builder: Builder, name: str, result: Any, *values: Any) -> Any:
    """Calls an LLVM intrinsic, declared on its first use in a module."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def splat(builder: Builder, value: Any, lanes: int) -> Any:
    """Broadcasts `value` to every lane of a vector."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def transpose_16(builder: Builder, rows: list[Any]) -> list[Any]:
    """Transposes 16 vectors of 16 int32."""
    # Four rounds of shuffles, 64 in all: in round `step` rows i and i + step exchange blocks of `step` numbers, as in a
    # butterfly. A lane j of the new row i comes from row i (j has no bit `step`) or from row i + step (it has), so each
    # shuffle is one two-source permute (vpermt2d), and the 16 rows never leave the 32 registers.
    for step in (1, 2, 4, 8):
        low = ir.Constant(INTS, [j if not j & step else 16 + (j ^ step) for j in range(LANES)])
        high = ir.Constant(INTS, [j | step if not j & step else 16 + j for j in range(LANES)])
        for i in (i for i in range(LANES) if not i & step):
            a, b = rows[i], rows[i | step]
            rows[i], rows[i | step] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
    return rows


def raise_two(builder: Builder, x: Any) -> Any:
    """Computes 2 ** x for float32 x of at most 0, or hardly more."""
    # x = whole + rest with rest in [-1/2, 1/2]; 2 ** rest by a cubic in Horner form (three fused multiply-adds), whose
    # error, 7.5e-5 of the value, is a twentieth of bf16's step: a longer polynomial could not be seen in the result.
    # vscalefps multiplies by 2 ** whole and gives 0 for very small powers, so no range check is needed.
    whole = call(builder, "llvm.rint.v16f32", FLOATS, x)
    rest, power = builder.fsub(x, whole), _all(FLOATS, EXP2[0])
    for coefficient in EXP2[1:]:
        power = call(builder, "llvm.fma.v16f32", FLOATS, power, rest, _all(FLOATS, coefficient))
    every, rounding = ir.Constant(I16, -1), ir.Constant(I32, 4)
    return call(builder, "llvm.x86.avx512.mask.scalef.ps.512", FLOATS, power, whole, power, every, rounding)


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * LANES)
