"""Opens what every reranker is loaded from: a folder, its tokenizer, and its compute settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import check_weights, resolve_folder
from actors.spec import ComputeSpec
from actors.text.tokenizer import TextTokenizer, read_tokenizer


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Holds a reranker's files, not yet loaded. adapter: folder or hub id of a LoRA adapter over its weights."""

    folder: Path
    tokenizer: TextTokenizer
    compute: ComputeSpec
    adapter: str | None = None
    trust_remote_code: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return read_config_json(self.folder)


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    compute: ComputeSpec | None = None,
) -> Checkpoint:
    """Opens a folder or hub id; CheckpointError names the file that is missing or corrupt."""
    folder = resolve_folder(model, revision, cache_dir, trust_remote_code)
    check_weights(folder)
    tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
    return Checkpoint(folder, tokenizer, compute or ComputeSpec(), adapter, trust_remote_code)


def read_config_json(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] | None = read_json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{folder} has no config.json: it is not a model folder")
    return config
