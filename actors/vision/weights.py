"""Splits the state dict of a Visualized-BGE checkpoint into its three models.

The published files carry more than inference needs: the pooler, the tower's final norm and CLIP head, rotary tables.
Those are known and left aside; any other name that does not fit is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.loading import aligned, load_tensors
from actors.vision.eva import EvaConfig, EvaTower, config_of

UNUSED = re.compile(
    r"bge_pooler\.|bge_embeddings\.position_ids$|model_visual\.(?!visual\.)|model_visual\.visual\.(norm|head)\."
    r"|model_visual\.visual\.(.*\.)?rope\."
)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Holds the three modules, in eval mode and without gradients."""

    text: PreTrainedModel
    tower: EvaTower
    projection: nn.Linear


def load_parts(path: Path, config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Reads a `.pth` or `.safetensors` file; CheckpointError names what is missing, left over or of another shape."""
    weights = {name: tensor for name, tensor in load_tensors(path).items() if not UNUSED.match(name)}
    text = {
        **_move_tensors(weights, "bge_embeddings.", "embeddings."),
        **_move_tensors(weights, "bge_encoder.", "encoder."),
    }
    tower, projection = _move_tensors(weights, "model_visual.visual."), _move_tensors(weights, "visual_proj.")
    if weights:
        raise CheckpointError(f"{path}: {len(weights)} tensors fit nowhere, the first is {min(weights)}")
    sizes = _read_sizes(tower, path)
    with torch.device("meta"):
        parts = Parts(
            AutoModel.from_config(config, add_pooling_layer=False),
            EvaTower(sizes),
            nn.Linear(sizes.width, config.hidden_size),
        )
    for module, state in ((parts.text, text), (parts.tower, tower), (parts.projection, projection)):
        _load_state(module, {name: aligned(tensor.to(device, dtype)) for name, tensor in state.items()}, path)
    return parts


def tower_of(path: Path) -> EvaConfig:
    """Reads the sizes of the tower in a file whose tensors are mapped, not read."""
    return _read_sizes(_move_tensors(load_tensors(path), "model_visual.visual."), path)


def _read_sizes(tower: Mapping[str, Tensor], path: Path) -> EvaConfig:
    try:
        return config_of(tower)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: holds no EVA02 tower: model_visual.visual.{error.args[0]} is missing"
        ) from error


def _move_tensors(weights: dict[str, Tensor], prefix: str, instead: str = "") -> dict[str, Tensor]:
    """Moves the tensors below a prefix out of `weights`, under another prefix."""
    names = [name for name in weights if name.startswith(prefix)]
    return {instead + name.removeprefix(prefix): weights.pop(name) for name in names}


def _load_state(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    module.eval().requires_grad_(False)
