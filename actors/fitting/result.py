"""Defines the settings and the result of a fit, frozen and made of plain values."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from actors.spec import ComputeSpec

ColbertChoice = Literal["auto", "identity", "pca", "trained"]
SparseChoice = Literal["auto", "idf", "trained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """Configures a fit: the encoder that gets heads, the training data, and the output folder."""

    model: str
    """A registry name, a hub id or a folder; frozen."""
    data: tuple[str, ...]
    """Files of pairs (.jsonl), BEIR folders, or unlabelled text (.parquet, .txt, .jsonl or folders of them)."""
    output: str
    """Folder to write; it must not exist or be empty."""
    heads_only: bool = False
    """Leave the encoder's files out: the heads of a model that comes from elsewhere. An identity is then no file."""
    sparse: SparseChoice = "auto"
    """auto: the IDF start, unless the trained head or an average of both beats it."""
    colbert: ColbertChoice = "auto"
    """auto: the simplest of identity (or PCA, with colbert_dim) and a trained layer that is not beaten."""
    colbert_dim: int | None = None
    """Fewer dimensions than the encoder's; None keeps them."""
    queries: int = 2000
    """At most so many queries of one source."""
    passages: int = 8000
    """At most so many passages of one source."""
    candidates: int = 14
    """Passages that a training query is compared with: one right, the rest mined and random."""
    dev_share: float = 0.2
    """Share of each source that is held out to choose on."""
    steps: int = 400
    """Of the sparse head; ColBERT takes a quarter."""
    batch: int = 32
    learning_rate: float = 3e-3
    contrast: float = 0.0
    """Weight of the contrastive loss beside distillation."""
    sharpness: float = 3.0
    """Factor on the teacher's z-scores before the softmax."""
    l1: float = 0.0
    """Weight of the mean lexical weight of a passage token; larger gives fewer non-zero weights."""
    seed: int = 0
    trust_remote_code: bool = False
    cache: str | None = None
    """Folder for token states, kept for the next run; None: a temporary one."""
    notes: tuple[str, ...] = ()
    """Lines for the model card: data and their licences."""
    compute: ComputeSpec = field(default_factory=ComputeSpec)

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: at least one file or folder is needed")
        for name, choices in (("sparse", get_args(SparseChoice)), ("colbert", get_args(ColbertChoice))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 < self.dev_share < 1:
            raise ValueError(f"dev_share must lie between 0 and 1, got {self.dev_share}")
        if self.colbert == "pca" and self.colbert_dim is None:
            raise ValueError("colbert pca needs colbert_dim, the number of dimensions to keep")
        if self.colbert == "identity" and self.colbert_dim is not None:
            raise ValueError("colbert identity keeps all dimensions; leave colbert_dim out")
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2 (one right, one wrong), got {self.candidates}")
        for name in ("queries", "passages", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def command(self) -> str:
        """Builds the command line that repeats this fit into a folder of the same name, without default values."""
        lines = [["tridex", "fit-heads", self.model, Path(self.output).name], *(["--data", path] for path in self.data)]
        for name in ("sparse", "colbert", "colbert_dim", "queries", "passages", "steps", "l1", "contrast"):
            value = getattr(self, name)
            if value != FitConfig.__dataclass_fields__[name].default:
                lines.append([f"--{name.replace('_', '-')}", str(value)])
        lines += [["--heads-only"]] if self.heads_only else []
        lines += [["--seed", str(self.seed)], *(["--note", note] for note in self.notes)]
        return " \\\n  ".join(map(shlex.join, lines))


@dataclass(frozen=True, slots=True)
class SourceReport:
    name: str
    queries: int
    held_out: int
    passages: int


@dataclass(frozen=True, slots=True)
class Score:
    """Holds the mean nDCG@10 of one variant of one output on the held-out queries of one source."""

    output: str
    variant: str
    source: str
    ndcg: float
    kept: bool


@dataclass(frozen=True, slots=True)
class FitResult:
    """Reports a fit.

    sparse, colbert: the variants that were kept; nonzero, distinct: mean lexical weights above 0 and mean distinct
    tokens of a passage; seconds: wall time.
    """

    config: FitConfig
    sparse: str
    colbert: str
    sources: tuple[SourceReport, ...]
    scores: tuple[Score, ...]
    nonzero: float
    distinct: float
    seconds: float

    @property
    def output(self) -> Path:
        return Path(self.config.output)
