"""Opens a checkpoint folder as a table of memory-mapped tensors: a model of any size opens in milliseconds.

Both formats map lazily (safetensors always, `pytorch_model.bin` where it is a zip file), so only the pages that a sum
touches come into memory, and they go when the file is let go. What this costs: a page that was dropped is read again.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from actors.checkpoints.files import CheckpointError, read_json, weight_files
from actors.checkpoints.loading import head_file, resolve_folder

HEADS = ("colbert_linear", "sparse_linear")
"""The M3 heads, in files beside the weights of the backbone."""
PREFIXES = ("bert.", "roberta.", "model.")
"""What a class with a head puts before the names of its base model."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Describes a tensor: its file, shape and dtype."""

    file: Path
    key: str
    """Its name inside the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Describes one of the models to merge."""

    name: str
    """As the caller named it: a hub id or a folder."""
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Entry]
    heads: dict[str, dict[str, Entry]]
    """Returns the tensors of each existing head file, by the head's name."""


def mapped(path: Path) -> dict[str, Tensor]:
    """Maps all tensors of a weight file by name, their data mapped.

    CheckpointError names a file that cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        tensors: dict[str, Tensor] = torch.load(
            path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True
        )
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... by kind of damage
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    return tensors


def open_source(name: str, cache_dir: str | None, *, base_only: bool) -> Source:
    """Reads names, shapes and dtypes; CheckpointError if `name` is no model.

    base_only: take what `AutoModel` takes, under the names that it uses, so that checkpoints saved with a training
    head and without one can be mixed.
    """
    folder = resolve_folder(name, cache_dir=cache_dir)
    config = read_json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{folder} has no config.json: it is not a model folder")
    if any(folder.glob("*_Dense")):
        raise CheckpointError(f"{folder} has a Dense module behind its pooling, which a mix would leave unmixed")
    tensors: dict[str, Entry] = {}
    for file in weight_files(folder):
        tensors |= _entries(file)
    heads = {head: _entries(path) for head in HEADS if (path := head_file(folder, head)) is not None}
    return Source(name, folder, config, _drop_computed(tensors, config, base_only), heads)


def _entries(file: Path) -> dict[str, Entry]:
    return {key: Entry(file, key, tuple(tensor.shape), tensor.dtype) for key, tensor in mapped(file).items()}


def _drop_computed(tensors: dict[str, Entry], config: dict[str, Any], base_only: bool) -> dict[str, Entry]:
    """Drops what older transformers stored and newer ones compute: position buffers, and the copy of a tied head."""
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    return {
        name: entry
        for name, entry in (_base_names(tensors) if base_only else tensors).items()
        if name not in tied and not name.endswith((".position_ids", ".rotary_emb.inv_freq"))
    }


def _base_names(tensors: dict[str, Entry]) -> dict[str, Entry]:
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), "")
    return {name.removeprefix(prefix): entry for name, entry in tensors.items() if name.startswith(prefix)}
