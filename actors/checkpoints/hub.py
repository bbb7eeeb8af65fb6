"""Downloads models from the hub: only the files that will be read, and nothing if they are cached.

One request with a time limit comes before a download: without a network the hub's own client tries for half a minute.
A cached snapshot is never compared with the hub, which saves a request for each load and means that a moved branch is
noticed only when the cache is cleared. `revision` pins what runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from actors.checkpoints.files import CheckpointError, weight_files

T = TypeVar("T")
SMALL_FILES = [
    "*.json",
    "*.txt",
    "*.model",
    "1_Pooling/config.json",
    "artifact.metadata",
    "*_linear.safetensors",
    "*_linear.pt",
]
"""What is read beside the weights. Code (`*.py`) is fetched only when the user trusts it."""

WEIGHTS = ("*.safetensors", "*.bin")
"""Only the first kind that the repository has is fetched."""

NOT_OURS = [
    "onnx/*", "openvino/*", "[!0-9dq]*/*.safetensors", "[!0-9dq]*/*.bin", "[!0-9dq]*/*.txt", "[!0-9dq]*/*.model",
]  # fmt: skip
"""Other runtimes, and weights in subfolders but for modules' (`2_Dense`, `document_0_...`, `query_0_...`); a `*` of the
hub's patterns matches slashes."""

FAILURES: tuple[type[Exception], ...] = (cast(type[Exception], HfHubHTTPError.__bases__[0]), OSError)
"""What a request may end with: the HTTP client's own errors (which client that is depends on huggingface_hub), offline
mode, no space left."""
TIME_LIMIT = 5.0
"""Seconds in which the hub has to answer the first request, name resolution included."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Identifies a model on the hub and the files that may be downloaded."""

    model: str
    revision: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False

    def folder(self) -> Path:
        """Returns its snapshot on disk, downloaded if need be; CheckpointError if that fails."""
        return self._cached() or self._download()

    def _cached(self) -> Path | None:
        """Returns the cached snapshot if it is complete; without a network, if it can be loaded."""
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
            names = _within(TIME_LIMIT, self._list_files)
            has_safetensors = any(name.startswith("model") and name.endswith(".safetensors") for name in names)
            return self._snapshot(WEIGHTS[0] if has_safetensors else WEIGHTS[1])
        except FAILURES as error:
            pinned = "" if self.revision is None else f" --revision {self.revision}"
            raise CheckpointError(
                f"{self.model} is no local folder, not cached, and cannot be fetched: {_first_line(error)}. "
                f"Give the path of a folder that holds it, or fetch it once where there is a network "
                f"(`hf download {self.model}{pinned}`) and copy the cache, {self.cache_dir or constants.HF_HUB_CACHE}"
            ) from None

    def _list_files(self) -> list[str]:
        info = HfApi().model_info(self.model, revision=self.revision, timeout=TIME_LIMIT)
        return [file.rfilename for file in info.siblings or []]

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
    """Returns whether a folder has a config and every weight file that it needs."""
    if (folder / "router_config.json").exists():  # a sentence-transformers Router keeps its model in a subfolder
        return all((path / "config.json").exists() for path in folder.glob("document_0_*"))
    try:
        return (folder / "config.json").exists() and all(path.exists() for path in weight_files(folder))
    except CheckpointError:
        return False


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Returns the result of a call, or raises TimeoutError after this many seconds; a daemon thread then finishes it.

    A name server that does not answer blocks for longer than any time limit that the HTTP client knows.
    """
    ended: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except Exception as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = ended.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer from {constants.ENDPOINT} in {seconds:.0f} s") from None
    if error is not None:
        raise error
    return cast(T, result)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
