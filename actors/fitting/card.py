"""Writes the checkpoint: the encoder's own files, the heads in both published forms, and a model card.

FlagEmbedding reads `sparse_linear.pt` and `colbert_linear.pt` and needs both; safetensors hold the same numbers for
readers that unpickle nothing. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from actors.checkpoints.files import weight_files
from actors.checkpoints.loading import FITTED, head_file, load_head
from actors.fitting.result import FitResult

HEADS = ("sparse_linear", "colbert_linear")
ENCODER_FILES = ("*.json", "*.txt", "*.model", "1_Pooling/config.json")
"""Config and tokenizer; weights come from `checkpoint.weight_files`."""


def check_existing_heads(folder: Path, hidden: int) -> None:
    """Raises ValueError if the checkpoint already has a head that does not fit its encoder."""
    for name in HEADS:
        head = load_head(folder, name)
        if head is not None and head.weight.shape[1] != hidden:
            path = head_file(folder, name)
            raise ValueError(f"{path} takes states of {head.weight.shape[1]} dimensions, the encoder gives {hidden}")


def write_checkpoint(encoder: Path | None, sparse: nn.Linear, colbert: nn.Linear | None, result: FitResult) -> None:
    """Writes heads, model card and marker file, and copies the encoder's files if `encoder` is given.

    colbert None: the identity, no file.
    """
    output = result.output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        staged = Path(folder) / "checkpoint"
        staged.mkdir()
        if encoder is not None:
            _copy_encoder(encoder, staged)
        for name, head in zip(HEADS, (sparse, colbert), strict=True):
            if head is not None:
                _write_head(head, staged / name)
        (staged / "README.md").write_text(model_card(result), encoding="utf-8")
        kept = {"sparse": result.sparse, "colbert": result.colbert, "seed": result.config.seed}
        (staged / FITTED).write_text(json.dumps(kept) + "\n", encoding="utf-8")
        if output.exists():
            output.rmdir()
        staged.rename(output)


def _copy_encoder(encoder: Path, output: Path) -> None:
    small = {path for pattern in ENCODER_FILES for path in encoder.glob(pattern)}
    for path in sorted({*small, *weight_files(encoder)}):
        target = output / path.relative_to(encoder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _write_head(head: nn.Linear, path: Path) -> None:
    tensors = {name: value.detach().float().contiguous() for name, value in head.state_dict().items()}
    save_file(tensors, path.with_suffix(".safetensors"), metadata={"format": "pt"})
    torch.save(tensors, path.with_suffix(".pt"))


def model_card(result: FitResult) -> str:
    """Renders the model card as Markdown.

    It holds front matter for the hub, what the heads are, data, command, and scores on the development split.
    """
    config = result.config
    head = yaml.safe_dump(
        {"base_model": config.model, "tags": ["m3", "sparse", "colbert", "feature-extraction"]}, sort_keys=False
    )
    sources = "\n".join(f"| {s.name} | {s.queries} | {s.held_out} | {s.passages} |" for s in result.sources)
    scores = "\n".join(
        f"| {score.output} | {score.variant} | {score.source} | {score.ndcg:.4f} | {'x' if score.kept else ''} |"
        for score in result.scores
    )
    notes = "".join(f"- {note}\n" for note in config.notes)
    return (
        f"---\n{head}---\n\n# M3 heads for {config.model}\n\n"
        f"`sparse_linear` ({result.sparse}) gives each token its lexical weight, `colbert_linear` ({result.colbert}) "
        "its vector for late interaction. The encoder is frozen: dense vectors are unchanged.\n"
        f"A passage has {result.nonzero:.1f} lexical weights above 0 on average, of {result.distinct:.1f} distinct "
        f"tokens.\n\n## Data\n\n| source | training queries | held out | passages |\n|---|---|---|---|\n{sources}\n\n"
        f"{notes}\n## Command\n\n```\n{config.command()}\n```\n\n## nDCG@10 on the held-out queries\n\n"
        "BM25 counts wordpieces. `idf` is the untrained start, `N% trained` an average of it with the trained head. "
        "ColBERT orders the mined candidates, the others search all passages of the source.\n\n"
        f"| output | variant | source | nDCG@10 | kept |\n|---|---|---|---|---|\n{scores}\n"
    )
