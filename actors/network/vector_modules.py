"""Implements sentence-transformers' modules over vectors: Pooling, Dense with activation, LayerNorm and Normalize.

The same functions run over token vectors (before a pooling, or in a late-interaction model) and over pooled ones.
Pooled vectors are float32 whatever the dtype of the pass; token vectors keep it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.loading import load_tensors
from actors.checkpoints.module_chain import ModuleChain, ModuleConfig, chain_width, module_weights, pooling_modes
from actors.compute.resolve import Compute
from actors.outputs import IntArray, offsets_of, ranges
from actors.transfers import to_device

VectorFunction = Callable[[Tensor], Tensor]
"""(n, in) -> (n, out)."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Computes `activation(x @ weight.T + bias)`, plus the input (projected if widths differ) in a residual module."""

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module
    residual: Tensor | None = None
    is_residual: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(linear(x, self.weight, self.bias))
        if not self.is_residual:
            return y
        return y + (x if self.residual is None else linear(x, self.residual))


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, (x.shape[-1],), self.weight, self.bias)


def unit_length(x: Tensor) -> Tensor:
    """L2-normalises each row (eps 1e-12)."""
    return normalize(x, dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Pooling:
    """Pools to one vector per text: the joined results of one or several modes.

    skips_prompt: leaves prompt tokens out.
    """

    modes: tuple[str, ...]
    skips_prompt: bool = False

    def __call__(self, hidden: Tensor, offsets: IntArray, prompt_length: int = 0) -> Tensor:
        """Computes float32 (n, len(modes) * h). hidden: (T, h); every text has at least one token."""
        skipped = prompt_length if self.skips_prompt else 0
        return torch.cat([_pool(hidden, offsets, mode, skipped) for mode in self.modes], dim=-1)


def _pool(hidden: Tensor, offsets: IntArray, mode: str, skipped: int) -> Tensor:
    starts = offsets[:-1] + skipped
    outside = starts >= offsets[1:]
    firsts = np.where(outside, offsets[:-1], starts)
    if mode == "cls":
        return hidden[to_device(firsts, hidden.device)].float()
    if mode == "lasttoken":
        return hidden[to_device(offsets[1:] - 1, hidden.device)].float()
    bounds = np.minimum(starts, offsets[1:])
    if hidden.device.type != "cpu":
        return _reduce_together(hidden, offsets, bounds, mode)
    return torch.stack([
        _reduce(hidden[start:end].float(), mode, start - first)
        for start, end, first in zip(bounds.tolist(), offsets[1:].tolist(), offsets[:-1].tolist(), strict=True)
    ])  # fmt: skip


def _reduce(tokens: Tensor, mode: str, skipped: int) -> Tensor:
    """Reduces one text's tokens by one mode to (h,); a text of which no token counts gets zeros, as upstream."""
    count = len(tokens)
    if mode == "max":
        return tokens.amax(0) if count else tokens.new_full((tokens.shape[1],), float("-inf"))
    if mode == "weightedmean":
        weights = torch.arange(skipped + 1, skipped + count + 1, dtype=tokens.dtype, device=tokens.device)
        mean: Tensor = (weights @ tokens) / weights.sum().clamp_min(1e-9)
        return mean
    divisor = max(float(count), 1e-9)
    return tokens.sum(0) / (math.sqrt(divisor) if mode == "mean_sqrt_len_tokens" else divisor)


def _reduce_together(hidden: Tensor, offsets: IntArray, starts: IntArray, mode: str) -> Tensor:
    """Does `_reduce` for all texts in a few kernels, for a GPU: one by one, launching them would take longer."""
    counts = offsets[1:] - starts
    rows = ranges(starts, counts)
    tokens = hidden[to_device(rows, hidden.device)].float()
    bounds = to_device(offsets_of(counts), hidden.device)
    if mode == "max":
        return torch.segment_reduce(tokens, "max", offsets=bounds)
    divisors = np.sqrt(counts) if mode == "mean_sqrt_len_tokens" else counts.astype(np.float64)
    if mode == "weightedmean":
        places = rows - np.repeat(offsets[:-1], counts) + 1
        tokens = tokens * to_device(places.astype(np.float32), hidden.device)[:, None]
        before = starts - offsets[:-1]
        divisors = counts * (before + (counts + 1) / 2)
    sums = torch.segment_reduce(tokens, "sum", offsets=bounds)
    return sums / to_device(np.maximum(divisors, 1e-9).astype(np.float32), hidden.device)[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedChain:
    """Holds a chain's functions: over token vectors, the pooling (None for late interaction), over pooled vectors."""

    token_functions: tuple[VectorFunction, ...]
    pooling: Pooling | None
    vector_functions: tuple[VectorFunction, ...]
    dim: int

    def token_vectors(self, hidden: Tensor) -> Tensor:
        for function in self.token_functions:
            hidden = function(hidden)
        return hidden

    def pooled(self, hidden: Tensor, offsets: IntArray, prompt_length: int) -> Tensor:
        assert self.pooling is not None, "a chain of a sentence-transformer has a pooling"
        vectors = self.pooling(self.token_vectors(hidden), offsets, prompt_length)
        for function in self.vector_functions:
            vectors = function(vectors)
        return vectors


def load_chain(chain: ModuleChain, hidden_size: int, compute: Compute, normalize_vectors: bool | None) -> LoadedChain:
    """Loads the functions of a chain with their weights.

    normalize_vectors: None runs the chain's own Normalize; True normalises in the end, False leaves Normalize out.
    """
    dim = chain_width(chain, hidden_size)
    is_late = chain.model_class == "multi-vector-encoder"
    pooling: Pooling | None = None
    on_tokens: list[VectorFunction] = []
    on_vectors: list[VectorFunction] = []
    for module in chain.modules:
        if module.kind == "Pooling":
            pooling = Pooling(pooling_modes(module), not module.config.get("include_prompt", True))
            continue
        if module.kind == "MultiVectorMask" or (module.kind == "Normalize" and normalize_vectors is False):
            continue
        _check_input(module, is_late or pooling is None)
        functions = on_tokens if pooling is None else on_vectors
        functions.append(_function(chain, module, compute, torch.float32 if pooling else compute.dtype))
    if normalize_vectors:
        (on_tokens if is_late else on_vectors).append(unit_length)
    return LoadedChain(tuple(on_tokens), pooling, tuple(on_vectors), dim)


def _check_input(module: ModuleConfig, on_tokens: bool) -> None:
    expected = "token_embeddings" if on_tokens else "sentence_embedding"
    named = module.config.get("module_input_name", expected if module.kind != "LayerNorm" else "sentence_embedding")
    written = module.config.get("module_output_name") or named
    if named != expected or written != named:
        raise CheckpointError(
            f"{module.folder / 'config.json'}: this {module.kind} reads {named} and writes {written} "
            f"where {expected} is needed"
        )


def _function(chain: ModuleChain, module: ModuleConfig, compute: Compute, dtype: torch.dtype) -> VectorFunction:
    if module.kind == "Normalize":
        return unit_length
    tensors = {
        name: tensor.to(compute.rounding or compute.dtype).to(compute.device, dtype)
        for name, tensor in _module_tensors(chain, module).items()
    }
    if module.kind == "LayerNorm":
        _check_names(module, tensors, {"norm.weight", "norm.bias"})
        return LayerNorm(tensors["norm.weight"], tensors["norm.bias"])
    return _dense(chain, module, tensors)


def _dense(chain: ModuleChain, module: ModuleConfig, tensors: dict[str, Tensor]) -> Dense:
    config = module.config
    is_residual, biased = bool(config.get("use_residual")), bool(config.get("bias", True))
    differs = is_residual and config["in_features"] != config["out_features"]
    needed = {"linear.weight"} | ({"linear.bias"} if biased else set()) | ({"residual.weight"} if differs else set())
    _check_names(module, tensors, needed)
    shape = tuple(tensors["linear.weight"].shape)
    if not chain.projection_in_root and shape != (config["out_features"], config["in_features"]):
        expected = (config["out_features"], config["in_features"])
        raise CheckpointError(
            f"{module.folder}: linear.weight has the shape {shape}, its config.json states {expected}"
        )
    activation = _activation(module)
    bias, residual = tensors.get("linear.bias") if biased else None, tensors.get("residual.weight")
    return Dense(tensors["linear.weight"], bias, activation, residual if differs else None, is_residual)


def _check_names(module: ModuleConfig, tensors: Iterable[str], needed: set[str]) -> None:
    missing = sorted(needed - set(tensors))
    if missing:
        raise CheckpointError(f"{module.folder}: the weights of this {module.kind} lack {', '.join(missing)}")


def _activation(module: ModuleConfig) -> nn.Module:
    """Returns the activation that a Dense names, which must be a class of torch's; Tanh if it names none."""
    name = str(module.config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    package, _, attribute = name.rpartition(".")
    found: Any = None
    if package == "torch.nn" or package.startswith("torch.nn.modules."):
        found = getattr(importlib.import_module(package), attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise CheckpointError(
            f"{module.folder / 'config.json'}: activation_function {name} is no class of torch.nn; "
            "other code is not run"
        )
    made: nn.Module = found()
    return made.eval()


def _module_tensors(chain: ModuleChain, module: ModuleConfig) -> dict[str, Tensor]:
    if chain.projection_in_root:
        return _root_projection(module.folder)
    return load_tensors(module_weights(module.folder))


def _root_projection(folder: Path) -> dict[str, Tensor]:
    from actors.checkpoints.files import weight_files

    for path in weight_files(folder):
        tensors = load_tensors(path)
        if "linear.weight" in tensors:
            return {"linear.weight": tensors["linear.weight"].clone()}
    raise CheckpointError(f"{folder} names HF_ColBERT, but its weights lack linear.weight")
