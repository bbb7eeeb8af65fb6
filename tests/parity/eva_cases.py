"""The towers and pictures that timm's numbers were recorded for."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from actors.vision.eva import EvaConfig, EvaTower

CASES = {
    "tiny": EvaConfig(width=128, depth=2, hidden=96, patch=8, grid=5),
    "base": EvaConfig(width=768, depth=12, hidden=2048, patch=16, grid=14),
    "large_three_layers": EvaConfig(width=1024, depth=3, hidden=2730, patch=14, grid=16),
}
"""The published base and large towers, the large one cut to three layers to keep the test short."""
KEPT = (0, 1, 7, -1)
"""Tokens whose states were recorded."""


def tower_weights(config: EvaConfig) -> dict[str, torch.Tensor]:
    """Random weights, the same on every machine, under the published names."""
    shapes = {name: tuple(value.shape) for name, value in EvaTower(config).state_dict().items()}
    return {name: _values(name, shape) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1 and "weight" in name:
        values /= np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    is_norm = name.endswith(("norm1.weight", "norm2.weight", "_ln.weight"))
    return torch.from_numpy(values * np.float32(0.1) + 1 if is_norm else values)


def pictures(config: EvaConfig) -> torch.Tensor:
    """Two normalised pictures (2, 3, size, size)."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((2, 3, config.size, config.size), dtype=np.float32))
