"""Private torch APIs that this project uses: all of them, each behind a feature check with a public fallback.

A later torch that drops or changes one of them gives slower answers, not errors: operators are tried once on a small
product, and used only where they give the public operator's numbers. torch 2.13 is what they were written for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from actors.kernels.portable import PORTABLE

PROBE_SHAPE = (16, 32, 48)
"""Rows, input width and output width of the product on which the operators are tried."""


@cache
def has_packed_linear() -> bool:
    """Returns whether oneDNN's linear layer with a prepacked weight and a fused erf-GELU exists and computes correctly.

    It saves the copy of the bias and the reordering of the weight in every call: 1.38 times the speed of an encoder in
    bf16, 1.13 in fp32 (benchmarks/RESEARCH_LOG.md).
    """
    if PORTABLE or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    rows, width, out = PROBE_SHAPE
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, width, generator=generator) for n in (rows, out))
    bias = torch.randn(out, generator=generator)
    expected = linear(x, weight, bias)
    try:
        packed = pack_weight(weight)
        found = packed_linear(x, packed, bias), packed_linear(x, packed, bias, fused_gelu=True)
    except (AttributeError, RuntimeError, TypeError):  # gone, without this processor, or with other arguments
        return False
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, (expected, gelu(expected)), strict=True))


def pack_weight(weight: Tensor) -> Tensor:
    """Reorders a linear layer's weight (out, in) into oneDNN's blocked layout; only `packed_linear` can read it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_linear(x: Tensor, packed_weight: Tensor, bias: Tensor | None, *, fused_gelu: bool = False) -> Tensor:
    """Computes `x @ weight.T + bias`, and erf-GELU of it in the same pass where requested."""
    activation = "gelu" if fused_gelu else "none"
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed_weight, bias, activation, [], "none")
    return y


@cache
def has_int8_linear() -> bool:
    """Returns whether oneDNN's product of uint8 rows with a prepacked int8 weight is there, right and fast.

    Fast means 8-bit dot products in hardware (VNNI or AMX). Without them oneDNN adds pairs of products in 16 bits,
    which overflow: the largest codes are among those that are tried.
    """
    if PORTABLE or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not any(map(cpu_supports, ("avx512_vnni", "avx_vnni", "amx_int8"))):
        return False
    rows, width, out = PROBE_SHAPE
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (rows, width), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-127, 128, (out, width), generator=generator, dtype=torch.int8)
    codes[0], weight[0] = 255, 127
    scales = torch.rand(out, generator=generator)
    try:
        found = int8_linear(codes, pack_int8_weight(weight), scales)
    except (AttributeError, RuntimeError, TypeError):  # gone, without this processor, or with other arguments
        return False
    return torch.allclose(found, linear(codes.float(), weight.float()) * scales, rtol=1e-5)


def pack_int8_weight(weight: Tensor) -> Tensor:
    """Reorders an int8 weight (out, in) into oneDNN's blocked layout; only `int8_linear` can read it."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def int8_linear(codes: Tensor, packed_weight: Tensor, scales: Tensor) -> Tensor:
    """Computes `(codes @ weight.T) * scales` as float32 (T, out). codes: uint8 (T, in); scales: float32 (out,)."""
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, packed_weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


def cpu_supports(instructions: str) -> bool:
    """Returns whether the CPU has `amx_tile`, `avx512_bf16`, `avx512_vnni`, ...; False if torch cannot tell.

    torch exposes it publicly since 2.13 (`torch.cpu.get_capabilities`), privately before.
    """
    public: Any = getattr(torch.cpu, "get_capabilities", None)
    if public is not None:
        return bool(public().get(instructions, False))
    private: Any = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return private is not None and bool(private())


def request_amx_permission() -> bool:
    """Asks the kernel, once for the process, to let it use AMX tiles; False where torch has no call for it."""
    init: Any = getattr(torch.cpu, "_init_amx", None)
    return init is not None and bool(init())
