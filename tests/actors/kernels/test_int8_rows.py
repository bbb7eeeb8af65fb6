"""The compiled row kernels give numpy's numbers, and what they quantise is near what it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from actors.kernels import int8_rows
from actors.kernels.int8_rows import QuantizedRows, add_and_normalize, apply_gelu, dequantize, quantize_rows

ROWS, WIDTH = 37, 61


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def value(rows: QuantizedRows) -> Tensor:
    return rows.low[:, None] + rows.scale[:, None] * rows.codes.float()


@pytest.fixture
def layer() -> tuple[Tensor, QuantizedRows, Tensor, Tensor]:
    """Products, the rows that they came from, sums of weights and a bias."""
    rows = QuantizedRows(torch.zeros(ROWS, WIDTH, dtype=torch.uint8), random(ROWS, seed=1).abs(), random(ROWS, seed=2))
    return random(ROWS, WIDTH, seed=3), rows, random(WIDTH, seed=4), random(WIDTH, seed=5)


def output(products: Tensor, rows: QuantizedRows, sums: Tensor, bias: Tensor) -> Tensor:
    return products * rows.scale[:, None] + rows.low[:, None] * sums + bias


def test_a_row_is_within_half_a_step_of_what_it_stands_for() -> None:
    x, rows = random(ROWS, WIDTH), QuantizedRows.empty(ROWS, WIDTH)
    quantize_rows(x, rows)
    assert ((value(rows) - x).abs() <= rows.scale[:, None] * 0.501).all()
    assert (rows.codes.amin(1) == 0).all()
    assert (rows.codes.amax(1) == 255).all()


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_marked_and_no_other(bad: float) -> None:
    x, rows = random(4, WIDTH), QuantizedRows.empty(4, WIDTH)
    x[2, 5] = bad
    quantize_rows(x, rows)
    assert torch.isnan(rows.scale).tolist() == [False, False, True, False]


@pytest.mark.parametrize("number", [0.0, -2.5, 1e30])
def test_a_constant_row_is_its_constant(number: float) -> None:
    rows = QuantizedRows.empty(1, WIDTH)
    quantize_rows(torch.full((1, WIDTH), number), rows)
    assert value(rows).tolist() == [[pytest.approx(number)] * WIDTH]


def test_a_layers_output_is_its_products_scaled_and_shifted(layer: Any) -> None:
    products, rows, sums, bias = layer
    expected = output(products, rows, sums, bias)
    dequantize(products, rows, sums, bias)
    torch.testing.assert_close(products, expected)


def test_gelu_is_torchs_within_the_polynomials_error(layer: Any) -> None:
    found = QuantizedRows.empty(ROWS, WIDTH)
    products, rows, sums, bias = layer
    products *= 4  # beyond the polynomial's limit on both sides
    apply_gelu(products, rows, sums, bias, found)
    error = (value(found) - gelu(output(products, rows, sums, bias))).abs()
    assert (error <= found.scale[:, None] * 0.501 + 6e-5).all()


def test_the_sum_is_normalised_and_quantised(layer: Any) -> None:
    products, rows, sums, bias = layer
    x, weight, shift, found = (
        random(ROWS, WIDTH, seed=6),
        random(WIDTH),
        random(WIDTH, seed=7),
        QuantizedRows.empty(1, 1),
    )
    expected = layer_norm(x + output(products, rows, sums, bias), (WIDTH,), weight, shift, 1e-5)
    found = QuantizedRows.empty(ROWS, WIDTH)
    add_and_normalize(products, rows, sums, bias, x, (weight, shift, 1e-5), found)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
    assert ((value(found) - x).abs() <= found.scale[:, None] * 0.501).all()


@pytest.mark.parametrize("name", ["quantize", "dequantize", "gelu", "normalize"])
def test_compiled_and_plain_give_the_same_numbers(name: str, layer: Any) -> None:
    products, rows, sums, bias = layer
    results = []
    for kernel in (getattr(int8_rows, f"_{name}"), getattr(int8_rows, f"_plain_{name}")):
        out, x = QuantizedRows.empty(ROWS, WIDTH), random(ROWS, WIDTH, seed=8)
        given = [t.clone().numpy() for t in (products, rows.scale, rows.low, sums, bias)]
        norm = [x.numpy(), random(WIDTH).numpy(), random(WIDTH, seed=9).numpy(), np.float32(1e-5)]
        before: dict[str, list[Any]] = {"quantize": [x.numpy()], "dequantize": given, "gelu": given}
        before["normalize"] = [*given, *norm]
        kernel(*before[name], *(() if name == "dequantize" else out.arrays()))
        results.append((torch.from_numpy(given[0]), x, out))
    (a, x, first), (b, y, second) = results
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    if name != "dequantize":
        assert (first.codes.int() - second.codes.int()).abs().max() <= 1
        torch.testing.assert_close(value(first), value(second), atol=2 * float(first.scale.max()), rtol=0)
