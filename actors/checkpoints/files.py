"""Lists a checkpoint folder's files by name and reads its JSON; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """Signals that a checkpoint cannot be used; the message names the file and the reason."""


def read_json(path: Path) -> Any:
    """Parses a JSON file; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """Lists the files that hold the backbone's weights, safetensors first; all shards of a sharded checkpoint."""
    for index, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        if (folder / single).is_file():
            return [folder / single]
        listed = read_json(folder / index)
        if listed is not None:
            return [folder / name for name in sorted(set(listed["weight_map"].values()))]
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors, pytorch_model.bin, or an index of shards of either"
    )
