"""Models from the hub: only the files that will be read, and no request at all where they are cached.

A cached snapshot is never compared with the hub, which saves a request for each load and means that a moved branch is
noticed only when the cache is cleared. `revision` pins what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from actors.checkpoints.files import CheckpointError, weight_files

SMALL_FILES = ["*.json", "*.txt", "*.model", "1_Pooling/config.json", "*_linear.safetensors", "*_linear.pt"]
"""What is read beside the weights. Code (`*.py`) is fetched only when the user trusts it."""

WEIGHTS = ("*.safetensors", "*.bin")
"""Only the first kind that the repository has is fetched."""

NOT_OURS = ["onnx/*", "openvino/*", "*/*.safetensors", "*/*.bin", "*/*.txt", "*/*.model"]
"""Other runtimes, and weights in subfolders; a `*` of the hub's patterns matches slashes."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A model on the hub, and what may be fetched of it."""

    model: str
    revision: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False

    def folder(self) -> Path:
        """Its snapshot on disk, fetched if need be. CheckpointError where that cannot be."""
        return self._cached() or self._download()

    def _cached(self) -> Path | None:
        """The cached snapshot, if it holds all that would be fetched; without a network, if it can be loaded."""
        for weights in WEIGHTS:
            try:
                folder = self._snapshot(weights, local_files_only=True)
            except LocalEntryNotFoundError:
                continue
            if is_complete(folder):
                return folder
        return self._partly_cached() if constants.HF_HUB_OFFLINE else None

    def _partly_cached(self) -> Path | None:
        config = try_to_load_from_cache(self.model, "config.json", self.cache_dir, self.revision)
        return Path(config).parent if isinstance(config, str) and is_complete(Path(config).parent) else None

    def _download(self) -> Path:
        try:
            names = HfApi().list_repo_files(self.model, revision=self.revision)
            has_safetensors = any(name.startswith("model") and name.endswith(".safetensors") for name in names)
            return self._snapshot(WEIGHTS[0] if has_safetensors else WEIGHTS[1])
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            message = f"{self.model} is no local folder, not cached, and cannot be fetched: {error}"
            raise CheckpointError(message) from error

    def _snapshot(self, weights: str, local_files_only: bool = False) -> Path:
        code = ["*.py"] if self.trust_remote_code else []
        folder = snapshot_download(
            self.model,
            revision=self.revision,
            cache_dir=self.cache_dir,
            local_files_only=local_files_only,
            allow_patterns=[*SMALL_FILES, *code, weights],
            ignore_patterns=NOT_OURS,
        )
        return Path(folder)


def is_complete(folder: Path) -> bool:
    """Whether there is a config and every weight file that it needs."""
    try:
        return (folder / "config.json").exists() and all(path.exists() for path in weight_files(folder))
    except CheckpointError:
        return False
