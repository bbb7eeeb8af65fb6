"""Quantises activations to 8 bits, one scale per row, in the same pass as the elementwise work around a product.

A row x of activations becomes codes 0 to 255 with `x = low + scale * code`: dynamic, so nothing is calibrated, and per
row, so a text's numbers do not depend on its neighbours. With integer products S = codes @ weight.T (scaled by the
weights' own channel scales) the layer's output is `scale * S + low * sums + bias`, where `sums` adds up each output's
weights. So a range need not be symmetric: GELU's outputs lie between -0.17 and some positive number, and get twice the
resolution that a symmetric code would give them.

Every kernel reads the products once and writes codes or float32 once: bias, GELU, residual sum, layer normalisation and
the quantisation for the next product happen on a row that is in the first-level cache. GELU's normal distribution
function is a polynomial (largest error of GELU 5.1e-5, below a hundredth of a code's step), because numba has no
vectorised exponential. The price is a second way to numbers that torch also computes, and some seconds of compilation
on a machine's first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.kernels.jit import compiled, compiled_or

LEVELS = np.float32(255)
LEAST_SPAN = np.float32(1e-30)
"""A row whose numbers differ by less is a constant."""
LIMIT = np.float32(4.5)
"""GELU's distribution function is 0 or 1, to the last digit that matters, beyond this."""
PHI = tuple(
    np.float32(c)
    for c in (
        3.98712635e-1, -6.59846812e-2, 9.58521385e-3, -1.03759381e-3, 8.14255036e-5, -4.45175601e-6, 1.59100935e-7,
        -3.31469185e-9, 3.03645234e-11,
    )
)  # fmt: skip
"""(normal distribution function of x - 1/2) / x as a polynomial in x * x, lowest power first; fitted to the largest
error of GELU between -LIMIT and LIMIT."""
P0, P1, P2, P3, P4, P5, P6, P7, P8 = PHI


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedRows:
    """Holds rows as `low + scale * codes`: codes uint8 (T, k); scale, low float32 (T,). A scale of NaN marks a row with
    numbers that are not finite."""

    codes: Tensor
    scale: Tensor
    low: Tensor

    @classmethod
    def empty(cls, rows: int, width: int) -> QuantizedRows:
        return cls(torch.empty(rows, width, dtype=torch.uint8), torch.empty(rows), torch.empty(rows))

    def part(self, rows: slice) -> QuantizedRows:
        """Returns a view of some rows."""
        return QuantizedRows(self.codes[rows], self.scale[rows], self.low[rows])

    def arrays(self) -> tuple[Any, Any, Any]:
        return self.codes.numpy(), self.scale.numpy(), self.low.numpy()


def quantize_rows(x: Tensor, out: QuantizedRows) -> None:
    """Quantises float32 rows (T, k)."""
    _quantize(x.numpy(), *out.arrays())


def dequantize(products: Tensor, rows: QuantizedRows, sums: Tensor, bias: Tensor) -> None:
    """Turns products (T, n) in place into the layer's output, `scale * products + low * sums + bias`."""
    _, scale, low = rows.arrays()
    _dequantize(products.numpy(), scale, low, sums.numpy(), bias.numpy())


def apply_gelu(products: Tensor, rows: QuantizedRows, sums: Tensor, bias: Tensor, out: QuantizedRows) -> None:
    """Quantises the erf-GELU of a layer's output."""
    _, scale, low = rows.arrays()
    _gelu(products.numpy(), scale, low, sums.numpy(), bias.numpy(), *out.arrays())


def add_and_normalize(
    products: Tensor, rows: QuantizedRows, sums: Tensor, bias: Tensor, x: Tensor,
    norm: tuple[Tensor, Tensor, float], out: QuantizedRows,
) -> None:  # fmt: skip
    """Adds a layer's output to the residual x (T, h), normalises each row in place and quantises it.

    norm: weight, bias and epsilon of the layer normalisation.
    """
    _, scale, low = rows.arrays()
    weight, shift, eps = norm
    _normalize(
        products.numpy(), scale, low, sums.numpy(), bias.numpy(), x.numpy(), weight.numpy(), shift.numpy(),
        np.float32(eps), *out.arrays(),
    )  # fmt: skip


def _plain_quantize(x: Any, codes: Any, scale: Any, low: Any) -> None:
    finite = np.isfinite(x).all(1)
    x = np.where(finite[:, None], x, np.float32(0))
    low[:] = x.min(1)
    span = x.max(1) - low
    wide = span > LEAST_SPAN
    inverse = np.divide(LEVELS, span, out=np.zeros_like(span), where=wide)
    codes[:] = ((x - low[:, None]) * inverse[:, None] + np.float32(0.5)).astype(np.int32)
    scale[:] = np.where(finite, np.where(wide, span / LEVELS, np.float32(0)), np.float32(np.nan))


def _plain_dequantize(products: Any, scale: Any, low: Any, sums: Any, bias: Any) -> None:
    products *= scale[:, None]
    products += low[:, None] * sums + bias


def _plain_gelu(
    products: Any, scale: Any, low: Any, sums: Any, bias: Any, codes: Any, next_scale: Any, next_low: Any
) -> None:
    x = products * scale[:, None] + (low[:, None] * sums + bias)
    near = np.clip(x, -LIMIT, LIMIT)
    square, polynomial = near * near, np.full_like(x, PHI[-1])
    for coefficient in PHI[-2::-1]:
        polynomial = polynomial * square + coefficient
    _plain_quantize(x * (near * polynomial + np.float32(0.5)), codes, next_scale, next_low)


def _plain_normalize(
    products: Any, scale: Any, low: Any, sums: Any, bias: Any, x: Any, weight: Any, shift: Any, eps: Any,
    codes: Any, next_scale: Any, next_low: Any,
) -> None:  # fmt: skip
    x += products * scale[:, None] + (low[:, None] * sums + bias)
    x -= x.mean(1, keepdims=True)
    x *= 1 / np.sqrt((x * x).mean(1, keepdims=True) + eps)
    x[:] = x * weight + shift
    _plain_quantize(x, codes, next_scale, next_low)


@compiled_or(_plain_quantize, fast=True)
def _quantize(x: Any, codes: Any, scale: Any, low: Any) -> None:
    for i in range(len(x)):
        _quantize_row(x[i], codes, scale, low, i)


@compiled_or(_plain_dequantize, fast=True)
def _dequantize(products: Any, scale: Any, low: Any, sums: Any, bias: Any) -> None:
    for i in range(len(products)):
        for j in range(products.shape[1]):
            products[i, j] = products[i, j] * scale[i] + (low[i] * sums[j] + bias[j])


@compiled_or(_plain_gelu, fast=True)
def _gelu(
    products: Any, scale: Any, low: Any, sums: Any, bias: Any, codes: Any, next_scale: Any, next_low: Any
) -> None:
    row = np.empty(products.shape[1], np.float32)
    for i in range(len(products)):
        for j in range(products.shape[1]):
            x = products[i, j] * scale[i] + (low[i] * sums[j] + bias[j])
            near = min(max(x, -LIMIT), LIMIT)
            t = near * near
            p = ((((((((P8 * t + P7) * t + P6) * t + P5) * t + P4) * t + P3) * t + P2) * t + P1) * t + P0) * near
            row[j] = x * (p + np.float32(0.5))
        _quantize_row(row, codes, next_scale, next_low, i)


@compiled_or(_plain_normalize, fast=True)
def _normalize(
    products: Any, scale: Any, low: Any, sums: Any, bias: Any, x: Any, weight: Any, shift: Any, eps: Any,
    codes: Any, next_scale: Any, next_low: Any,
) -> None:  # fmt: skip
    width = x.shape[1]
    for i in range(len(x)):
        row, total = x[i], np.float32(0)
        for j in range(width):
            row[j] += products[i, j] * scale[i] + (low[i] * sums[j] + bias[j])
            total += row[j]
        mean, squares = total / np.float32(width), np.float32(0)
        for j in range(width):
            squares += (row[j] - mean) * (row[j] - mean)
        factor = np.float32(1) / np.sqrt(squares / np.float32(width) + eps)
        for j in range(width):
            row[j] = (row[j] - mean) * factor * weight[j] + shift[j]
        _quantize_row(row, codes, next_scale, next_low, i)


@compiled
def _quantize_row(row: Any, codes: Any, scale: Any, low: Any, i: Any) -> None:
    # The range is found in integers: as int32, with the other bits of negative numbers turned, float32 keep their
    # order, NaN and infinity are beyond all others, and minimum and maximum vectorise without the promise that there
    # are no NaN, under which none would be found.
    bits = row.view(np.int32)
    least, most = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for j in range(len(row)):
        key = np.int32(bits[j] ^ np.int32(np.int32(bits[j] >> 31) & np.int32(0x7FFFFFFF)))
        least, most = np.int32(min(least, key)), np.int32(max(most, key))
    if least <= np.int32(-0x7F800001) or most >= np.int32(0x7F800000):
        scale[i], low[i] = np.float32(np.nan), np.float32(0)
        for j in range(len(row)):
            codes[i, j] = 0
        return
    bottom = np.int32(least ^ np.int32(np.int32(least >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)
    span = np.int32(most ^ np.int32(np.int32(most >> 31) & np.int32(0x7FFFFFFF))).view(np.float32) - bottom
    inverse = LEVELS / span if span > LEAST_SPAN else np.float32(0)
    scale[i], low[i] = (span / LEVELS if span > LEAST_SPAN else np.float32(0)), bottom
    for j in range(len(row)):
        codes[i, j] = np.uint8(np.int32((row[j] - bottom) * inverse + np.float32(0.5)))
