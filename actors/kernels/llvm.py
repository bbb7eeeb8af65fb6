"""Helpers for kernels written in LLVM IR: types, calls of intrinsics by name, broadcasts.

The kernels are numba intrinsics. numba knows no tiles, no bf16, no 8-bit dot product and no populations of planes; what
it does know stays Python.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils

Builder = Any
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


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
