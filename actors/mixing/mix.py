"""Implements the functions that merge models; `check.py` holds the checks, `sums.py` the arithmetic.

A mix is written to a folder and not returned as a loaded model, as upstream does: so two models of any size mix in the
memory of one output shard (`shard_bytes`, 2 GiB unless told), and the result loads wherever its sources do.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from actors.checkpoints.files import read_json
from actors.mixing.card import model_card
from actors.mixing.check import check_alike, check_reranker, check_tokenizers, normalised_weights
from actors.mixing.losses import Example, decoder_loss, embedder_batches, embedder_loss, weights_from_losses
from actors.mixing.sources import Source, open_source
from actors.mixing.sums import mixed_tensors, write_sum
from actors.output_paths import refuse_folder

ModelType = Literal["encoder", "decoder", "reranker"]
SHARD_BYTES = 2 * 2**30
NOT_COPIED = frozenset({"README.md", "model.safetensors.index.json", "pytorch_model.bin.index.json"})
WEIGHT_SUFFIXES = frozenset({
    ".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".gguf",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mix:
    """Describes a merged model: its sources, weights and folder. `FlagModel(mix.folder)` loads it."""

    folder: Path
    names: tuple[str, ...]
    weights: tuple[float, ...]
    """Sum to 1."""
    losses: tuple[float, ...] | None
    """Each model's loss on the examples, where the weights were made from data."""


def mix_models(
    model_names_or_paths: Sequence[str],
    model_type: ModelType,
    weights: Sequence[float],
    output_path: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    cache_dir: str | None = None,
) -> Mix:
    """Sums models parameter by parameter, `sum(weight * model)`, written to `output_path` as safetensors.

    Config, tokenizer and the dtype of each tensor are the first model's; M3 heads are mixed too; the card names sources
    and weights. Differs from upstream on purpose: weights must sum to 1 from both sides, integer tensors must be equal
    (upstream keeps the last model's), models whose architecture, tokenizer or shapes differ are refused, and the result
    is a folder, not a loaded model.

    Raises ValueError with the first difference, or where `output_path` is not an empty place.
    """
    sources = _open_sources(model_names_or_paths, model_type, cache_dir)
    shares = normalised_weights(weights, len(sources))
    return _write(sources, model_type, shares, None, Path(output_path), shard_bytes)


def mix_models_by_layers(
    model_names_or_paths: Sequence[str],
    model_type: ModelType,
    weights: Sequence[float],
    output_path: str | Path,
    *,
    cache_dir: str | None = None,
) -> Mix:
    """Merges as `mix_models`, in shards as small as the largest tensor: the least memory, at the price of many files.

    Upstream's version of this name keeps the whole result in memory, and fails for rerankers.
    """
    return mix_models(model_names_or_paths, model_type, weights, output_path, shard_bytes=1, cache_dir=cache_dir)


def mix_models_with_data(
    model_names_or_paths: Sequence[str],
    model_type: Literal["encoder", "decoder"],
    example_data: Sequence[Example],
    temperature: float = 5.0,
    batch_size: int = 2,
    max_input_length: int = 2048,
    neg_number: int = 7,
    output_path: str | Path | None = None,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    cache_dir: str | None = None,
) -> Mix:
    """Mixes with weights `softmax(-loss / temperature)`, the losses those of each model alone on a few examples.

    encoder: `{"query", "pos": [...], "neg": [...]}`, contrastive loss over the batch, `neg_number` negatives drawn with
    `seed` (upstream draws them unseeded). decoder: `{"input", "output"}`, language-model loss on the output.
    Raises ValueError, naming the example or model at fault.
    """
    if output_path is None:
        raise ValueError("output_path: name the folder to write")
    if model_type not in ("encoder", "decoder"):
        raise ValueError(f"model_type: weights come from data for encoder and decoder, not {model_type!r}")
    sources = _open_sources(model_names_or_paths, model_type, cache_dir)
    if model_type == "encoder":
        batches = embedder_batches(example_data, batch_size, neg_number, seed)
        losses = [embedder_loss(source.folder, batches, max_input_length) for source in sources]
    else:
        losses = [decoder_loss(source.folder, example_data, batch_size, max_input_length) for source in sources]
    weights = weights_from_losses(losses, temperature)
    return _write(sources, model_type, weights, losses, Path(output_path), shard_bytes)


def _open_sources(names: Sequence[str], model_type: str, cache_dir: str | None) -> list[Source]:
    if model_type not in get_args(ModelType):
        raise ValueError(f"model_type: must be one of {', '.join(get_args(ModelType))}, got {model_type!r}")
    if not names:
        raise ValueError("model_names_or_paths: at least one model is needed")
    sources = [open_source(str(name), cache_dir, base_only=model_type == "encoder") for name in names]
    if model_type == "reranker":
        check_reranker(sources[0])
    check_alike(sources)
    check_tokenizers(sources)
    return sources


def _write(
    sources: Sequence[Source],
    model_type: str,
    weights: Sequence[float],
    losses: Sequence[float] | None,
    target: Path,
    shard_bytes: int,
) -> Mix:
    """Writes into a temporary folder that takes the target's name at the end, so that no half model is ever there."""
    refuse_folder(target, name="output_path:")
    target.parent.mkdir(parents=True, exist_ok=True)
    mix = Mix(target, tuple(s.name for s in sources), tuple(weights), None if losses is None else tuple(losses))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / "model"
        _copy_companions(sources[0].folder, folder)
        if model_type == "encoder" and not (folder / "modules.json").exists():
            _describe_pooling(folder)
        write_sum([source.tensors for source in sources], weights, folder, shard_bytes)
        for file in folder.glob("*.safetensors"):
            shutil.copymode(folder / "config.json", file)  # safetensors lets the owner alone read what it writes
        for head in sources[0].heads:
            torch.save(mixed_tensors([source.heads[head] for source in sources], weights), folder / f"{head}.pt")
        (folder / "README.md").write_text(model_card(mix.names, mix.weights, mix.losses, model_type), encoding="utf-8")
        folder.replace(target)
    return mix


def _copy_companions(source: Path, folder: Path) -> None:
    """Copies config, tokenizer, sentence-transformers' modules: all of the first model but its weights and its card."""

    def left_out(parent: str, names: list[str]) -> set[str]:
        return {n for n in names if n in NOT_COPIED or n.startswith(".") or Path(n).suffix in WEIGHT_SUFFIXES}

    shutil.copytree(source, folder, ignore=left_out)


def _describe_pooling(folder: Path) -> None:
    """Writes CLS pooling and normalisation into sentence-transformers' files, as upstream writes for every encoder."""
    modules = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    width = read_json(folder / "config.json")["hidden_size"]
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True}
    (folder / "modules.json").write_text(json.dumps(listed, indent=2), encoding="utf-8")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2), encoding="utf-8")
