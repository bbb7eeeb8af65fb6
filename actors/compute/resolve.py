"""Decides where and how a model runs: device, dtype, token budget, threads, each with the reason in a line.

bf16 costs accuracy (cosine to fp32 about 0.9999 for trained BERT models) and more than doubles the speed where the
processor multiplies it in hardware; where it only emulates bf16, fp32 is both faster and exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import torch

from actors.compute.cost import choose_budget, read_shape
from actors.kernels.torch_private import cpu_supports, has_int8_linear
from actors.spec import ComputeSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
"""What tensors are held in; with int8 only the operands of an encoder's matrix products are not float32."""


class HasHiddenSize(Protocol):
    """Any model's configuration."""

    @property
    def hidden_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Compute:
    """A resolved `ComputeSpec`. budget: tokens in one forward pass; threads: None leaves torch's choice."""

    device: torch.device
    dtype: torch.dtype
    budget: int
    threads: int | None
    compile: bool
    why: tuple[str, ...]
    """One line for each choice, for people."""
    rounding: torch.dtype | None = None
    """The weights are rounded to this before they are used in `dtype`."""
    int8: bool = False
    """The encoder's matrix products run in int8, all else in `dtype`."""


def resolve_compute(spec: ComputeSpec, config: HasHiddenSize, *, allows_int8: bool = False) -> Compute:
    """Fills in every `auto` of `spec` for a model of this configuration on this machine.

    allows_int8: the model has an int8 forward. Raises ValueError where int8 is requested and there is none.
    """
    device, why_device = _device(spec)
    if spec.dtype == "int8":
        _check_int8(device, allows_int8)
    dtype, why_dtype = _dtype(spec, device)
    budget, why_budget = _budget(spec, device, config)
    compiled = bool(spec.compile)
    why_compile = f"compile: {compiled}, " + ("pays in long jobs only" if spec.compile is None else "as set")
    threads = spec.threads if device.type == "cpu" else None
    why_threads = f"threads: {threads or torch.get_num_threads()}, " + ("as set" if threads else "torch's choice")
    rounding = None if spec.rounding is None else DTYPES[spec.rounding]
    why = (why_device, why_dtype, why_budget, why_compile, why_threads)
    return Compute(device, dtype, budget, threads, compiled, why, rounding, int8=spec.dtype == "int8")


def _check_int8(device: torch.device, allowed: bool) -> None:
    if not allowed:
        raise ValueError("compute.dtype int8 is for embedders: a reranker takes fp32, bf16 or fp16")
    if device.type != "cpu":
        raise ValueError(f"compute.dtype int8 runs on a CPU, the device is {device}: set compute.device to cpu")


def _device(spec: ComputeSpec) -> tuple[torch.device, str]:
    if spec.device is not None:
        return torch.device(spec.device), f"device: {spec.device}, as set"
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device()), f"device: cuda, {torch.cuda.get_device_name()}"
    return torch.device("cpu"), "device: cpu, no accelerator found"


def _dtype(spec: ComputeSpec, device: torch.device) -> tuple[torch.dtype, str]:
    if spec.dtype == "int8":
        return torch.float32, f"dtype: int8, as requested: {_int8_hardware()}"
    if spec.dtype != "auto":
        return DTYPES[spec.dtype], f"dtype: {spec.dtype}, as set"
    if device.type == "cpu":
        if cpu_has_bf16():
            return torch.bfloat16, "dtype: bf16, the processor multiplies bf16 in hardware"
        return torch.float32, "dtype: fp32, the processor has no bf16 multiply"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16, "dtype: fp16, the GPU has no bf16"
    return torch.bfloat16, "dtype: bf16, the GPU multiplies it at full rate"


def _budget(spec: ComputeSpec, device: torch.device, config: HasHiddenSize) -> tuple[int, str]:
    if spec.budget is not None:
        return spec.budget, f"budget: {spec.budget} tokens, as set"
    if device.type == "cpu":
        return 4096, "budget: 4096 tokens, activations of a layer stay near the caches"
    shape = read_shape(config)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    budget, reason = choose_budget(None if free is None else shape, config.hidden_size, free or 0)
    return budget, f"budget: {budget} tokens, {reason}"


def _int8_hardware() -> str:
    if has_int8_linear():
        return "8-bit products, one scale per channel and per token; embeddings, norms and heads in fp32"
    return "this processor has no fast 8-bit product, so rounded numbers are multiplied in fp32: slower than fp32"


def cpu_has_bf16() -> bool:
    """Returns whether the CPU multiplies bf16 in hardware (AMX tiles or AVX512-BF16) rather than by way of fp32."""
    return cpu_supports("amx_tile") or cpu_supports("avx512_bf16")


@torch.inference_mode()
def measure_matmul_flops(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measures the FLOP/s of an (m, k) x (k, n) linear layer, the best of 8 passes; `shape` is (m, k, n).

    clock: time.process_time, on one CPU thread, leaves out what else the machine does.
    """
    m, k, n = shape
    x, weight = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        _synchronise(device)
        start = clock()
        torch.nn.functional.linear(x, weight)
        _synchronise(device)
        best = min(best, clock() - start)
    return 2 * m * k * n / best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_lock, _found = Lock(), list[int]()


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Makes torch compute in the calling thread alone: OpenMP's other threads spin for milliseconds after each call.

    A thread's number is its own, but a new thread starts with the one that was set last, anywhere. So all that overlap
    give back what the first of them found; one that computes nothing but starts meanwhile keeps 1.
    """
    with _lock:
        _found.append(_found[0] if _found else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            torch.set_num_threads(_found.pop())
