"""Reads a BERT or XLM-RoBERTa checkpoint straight from config.json and its weights, without importing transformers.

That import costs more CPU time than everything else a single query needs. Only what is beyond doubt is read here: a
configuration with every size stated and no option beyond them, and weights with exactly the names and shapes that it
asks for. For anything else the functions return None and the caller loads with transformers, whose errors users see.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import aligned, load_weights
from actors.compute.resolve import Compute
from actors.models.catalogue import ENCODERS

SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
DEFAULTS: dict[str, tuple[object, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "auto_map": (None,),
    "quantization_config": (None,),
    "transformers_weights": (None,),
}
"""Options that change what is loaded, with the values that leave it as it is."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Holds the part of config.json that the packed forward reads, under transformers' names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int
    hidden_act: str = "gelu"
    is_decoder: bool = False


class EncoderWeights(SimpleNamespace):
    """Holds the tensors as attributes under transformers' names, `encoder.layer[0].attention.self.query`."""

    config: EncoderConfig
    device: torch.device
    embeddings: Any
    encoder: Any


def read_encoder_config(folder: Path) -> EncoderConfig | None:
    """Returns the configuration of a plain BERT, RoBERTa or XLM-RoBERTa encoder; None for every other folder."""
    try:
        config = read_json(folder / "config.json")
    except CheckpointError:
        return None
    if not isinstance(config, dict) or config.get("hidden_act") != "gelu":
        return None
    if not isinstance(config.get("model_type"), str) or config["model_type"] not in ENCODERS:
        return None
    if any(config.get(name) not in usual for name, usual in DEFAULTS.items()):
        return None
    sizes: dict[str, Any] = {name: config.get(name) for name in SIZES}
    eps, pad = config.get("layer_norm_eps"), config.get("pad_token_id")
    if not all(type(size) is int and size > 0 for size in sizes.values()) or type(eps) is not float:
        return None
    if type(pad) is not int or pad < 0 or sizes["hidden_size"] % sizes["num_attention_heads"]:
        return None
    return EncoderConfig(config["model_type"], **sizes, layer_norm_eps=eps, pad_token_id=pad)


def load_encoder_weights(folder: Path, config: EncoderConfig, compute: Compute) -> EncoderWeights | None:
    """Returns the encoder's tensors in the dtype and on the device of `compute`; None if transformers must decide.

    The values are those that transformers loads: each tensor is rounded once. Embeddings stay mapped on a CPU where
    the file has their dtype, as their rows are only looked up; all others begin at aligned addresses.
    """
    if (folder / "adapter_config.json").exists():  # transformers merges adapters of PEFT
        return None
    try:
        tensors = _without_prefix(load_weights(folder), "bert." if config.model_type == "bert" else "roberta.")
    except (CheckpointError, OSError):
        return None
    shapes = expected_shapes(config)
    if any(name not in tensors or tuple(tensors[name].shape) != shape for name, shape in shapes.items()):
        return None
    if any(tensors[name].dtype not in FLOATS for name in shapes):
        return None
    root: dict[str, Any] = {}
    for name in shapes:
        tensor = tensors[name].to(compute.rounding or compute.dtype).to(compute.device, compute.dtype)
        _insert(root, name, tensor if "_embeddings." in name else aligned(tensor))
    weights = EncoderWeights(**_as_attributes(root, config.layer_norm_eps))
    weights.config, weights.device = config, weights.embeddings.word_embeddings.weight.device
    return weights


def expected_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every tensor of the encoder, without the pooler."""
    h, wide = config.hidden_size, config.intermediate_size
    tables = {
        "word": config.vocab_size, "position": config.max_position_embeddings, "token_type": config.type_vocab_size
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, h) for name, rows in tables.items()
    }
    shapes |= {f"embeddings.LayerNorm.{part}": (h,) for part in ("weight", "bias")}
    linear = {f"attention.self.{name}": (h, h) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (h, h), "intermediate.dense": (wide, h), "output.dense": (h, wide)}
    for layer in (f"encoder.layer.{i}" for i in range(config.num_hidden_layers)):
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{norm}.{part}": (h,) for part in ("weight", "bias")}
    return shapes


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Renames tensors to the bare encoder's names; empty if only some of the encoder's tensors have the prefix."""
    prefixed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not prefixed:
        return tensors
    return {} if any(name.startswith(("embeddings.", "encoder.")) for name in tensors) else prefixed


def _insert(root: dict[str, Any], name: str, tensor: Tensor) -> None:
    *path, last = name.split(".")
    for part in path:
        root = root.setdefault(part, {})
    root[last] = tensor


def _as_attributes(node: dict[str, Any], eps: float) -> dict[str, Any]:
    """Returns nested dicts as namespaces, those with numbers for keys as lists; each LayerNorm gets its `eps`."""
    made: dict[str, Any] = {}
    for name, child in node.items():
        if isinstance(child, Tensor):
            made[name] = child
        elif "0" in child:
            made[name] = [SimpleNamespace(**_as_attributes(layer, eps)) for layer in child.values()]
        else:
            extra = {"eps": eps} if name == "LayerNorm" else {}
            made[name] = SimpleNamespace(**_as_attributes(child, eps), **extra)
    return made
