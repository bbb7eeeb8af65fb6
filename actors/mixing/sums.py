"""Computes the weighted sum of tensors in memory-mapped files, one output shard at a time.

Memory is that of one output shard: sums run over small blocks, each shard is written and let go. They run in float64,
which makes a model mixed with itself come back bit for bit in every dtype.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from actors.mixing.sources import Entry, mapped

BLOCK = 2**16
"""Numbers summed at once: half a MiB of float64, which stays in the cache; 2**20 took four times as long."""

Table = Mapping[str, Entry]


def write_sum(tables: Sequence[Table], weights: Sequence[float], folder: Path, shard_bytes: int) -> None:
    """Writes `sum(weight * model)` as safetensors of at most `shard_bytes` each (or one tensor,
    where that is larger)."""
    shapes = {name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for name, entry in tables[0].items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        parts = [{name: table[name] for name in names} for table in tables]
        save_file(mixed_tensors(parts, weights), folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def mixed_tensors(tables: Sequence[Table], weights: Sequence[float]) -> dict[str, Tensor]:
    """Yields the weighted sum of the tensors of each name; their files stay mapped while this runs."""
    read = functools.cache(mapped)
    return {
        name: weighted_sum([read(table[name].file)[table[name].key] for table in tables], weights, name)
        for name in tables[0]
    }


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], name: str) -> Tensor:
    """Computes the sum, rounded once, in the first tensor's dtype; tensors that are no floats must be equal:
    ValueError."""
    first = tensors[0]
    if not first.is_floating_point():
        if not all(torch.equal(first, other) for other in tensors[1:]):
            raise ValueError(f"tensor {name} holds {first.dtype} numbers that differ, which have no meaningful mean")
        return first.clone()
    out = torch.empty(first.shape, dtype=first.dtype)
    flat, target = [tensor.reshape(-1) for tensor in tensors], out.view(-1)
    for start in range(0, len(target), BLOCK):
        block = slice(start, start + BLOCK)
        total = torch.zeros(len(target[block]), dtype=torch.float64)
        for tensor, weight in zip(flat, weights, strict=True):
            total += tensor[block].double() * weight
        target[block] = total
    return out
