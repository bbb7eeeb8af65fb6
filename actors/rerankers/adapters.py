"""Merges a LoRA adapter in peft's layout into the weights that it was trained on, without peft.

Reading `adapter_config.json` and two small matrices a layer takes half a screen, and works on a plain dict of tensors
as well as on a module; peft would want a module with its own class tower, for every scorer. What it costs: adapters
other than plain LoRA are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import load_tensors, resolve_folder

WRAPPER = "base_model.model."


def merge_lora(weights: Mapping[str, Tensor], adapter: str) -> None:
    """Adds the adapter's products to `weights` in place, and overwrites the tensors that it saved whole.

    adapter: a folder or a hub id. Raises CheckpointError if it is no plain LoRA or does not fit the weights.
    """
    folder = resolve_folder(adapter)
    config = _lora_config(folder)
    tensors = load_tensors(next((p for p in folder.glob("adapter_model.safetensors")), folder / "adapter_model.bin"))
    for name, tensor in tensors.items():
        base, _, part = name.removeprefix(WRAPPER).partition(".lora_")
        if part.startswith(("A", "embedding_A")):
            other = tensors[name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")]
            _add(
                weights,
                folder,
                base,
                _lora_product(config, base, tensor, other, embedding=part.startswith("embedding")),
            )
        elif not part:
            _find_target(weights, folder, base, tensor.shape).copy_(tensor)


def _lora_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] | None = read_json(folder / "adapter_config.json")
    if config is None:
        raise CheckpointError(f"{folder} is no adapter: it has no adapter_config.json")
    kind = str(config.get("peft_type"))
    if kind != "LORA" or config.get("use_dora"):
        raise CheckpointError(f"{folder}: only plain LoRA can be merged, this is {'DoRA' if kind == 'LORA' else kind}")
    return config


def _lora_product(config: Mapping[str, Any], base: str, down: Tensor, up: Tensor, embedding: bool) -> Tensor:
    """Returns the low-rank update in float32, in the shape of the weight that it changes."""
    rank = _pattern(config, "rank_pattern", base, config["r"])
    alpha = _pattern(config, "alpha_pattern", base, config["lora_alpha"])
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    product = scale * (up.float() @ down.float())
    return product.T if embedding or config.get("fan_in_fan_out") else product


def _pattern(config: Mapping[str, Any], key: str, base: str, default: float) -> float:
    patterns: Mapping[str, float] = config.get(key) or {}
    return next((value for name, value in patterns.items() if base == name or base.endswith(f".{name}")), default)


def _add(weights: Mapping[str, Tensor], folder: Path, base: str, product: Tensor) -> None:
    weight = _find_target(weights, folder, f"{base}.weight", product.shape)
    weight.copy_(weight.float() + product)


@torch.no_grad()
def _find_target(weights: Mapping[str, Tensor], folder: Path, name: str, shape: torch.Size) -> Tensor:
    if name not in weights:
        raise CheckpointError(f"{folder} adapts {name}, which the checkpoint does not have")
    if weights[name].shape != shape:
        raise CheckpointError(
            f"{folder} adapts {name} as {tuple(shape)}, the checkpoint has {tuple(weights[name].shape)}"
        )
    return weights[name].detach()
