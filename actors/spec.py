"""The one object that says which model runs and how. It is frozen, picklable and small, so it travels to Ray workers
as it is; defaults are FlagEmbedding's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

ModelClass = Literal[
    "encoder-only-base", "encoder-only-m3", "decoder-only-base", "decoder-only-icl", "decoder-only-pseudo_moe"
]
Pooling = Literal["cls", "mean", "last_token"]
Output = Literal["dense", "sparse", "colbert"]
DType = Literal["auto", "fp32", "bf16", "fp16"]

OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "colbert")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSpec:
    """How the forward pass runs. `auto` (None for numbers) decides from the hardware; see `actors.compute.resolve`."""

    dtype: DType = "auto"
    """fp32 is exact; auto takes bf16 where the processor multiplies it in hardware, fp32 otherwise."""
    budget: int | None = None
    """Tokens in one forward pass; None chooses by device and model size."""
    compile: bool | None = False
    """torch.compile the forward pass; None decides from the device. It pays for itself only in long jobs."""
    threads: int | None = None
    """CPU threads of one process; None leaves torch's own choice."""
    rounding: Literal["fp16", "bf16"] | None = None
    """Round the weights to this before computing in `dtype`: what FlagEmbedding does on a CPU."""
    device: str | None = None
    """`cpu`, `cuda:0`, ...; None takes the first accelerator, else the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """Which embedder, and how its texts are prepared. None means: what the registry or the checkpoint says."""

    model: str
    """A registry name, a hub id or a folder."""
    revision: str | None = None
    """Hub revision: a commit hash pins the weights."""
    model_class: ModelClass | None = None
    pooling: Pooling | None = None
    normalize: bool | None = True
    """L2-normalise dense and ColBERT vectors. None: what the checkpoint's modules.json says, True without one."""
    query_instruction: str | None = None
    query_instruction_format: str | None = None
    passage_instruction: str | None = None
    passage_instruction_format: str = "{}{}"
    query_max_length: int | None = None
    passage_max_length: int | None = None
    """Tokens kept of a text, special tokens included; None: 512, or what the model card says if that is less."""
    truncate_dim: int | None = None
    """Keep the first dimensions only (Matryoshka), before normalisation."""
    colbert_dim: int | None = None
    picture_weights: str | None = None
    """Visualized-BGE's weight file; `model` gives config and tokenizer."""
    trust_remote_code: bool = False
    """Runs Python code from the checkpoint. Never set by a table, only by you."""
    cache_dir: str | None = None
    compute: ComputeSpec = field(default_factory=ComputeSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Size and resources of one pool. max_size None: as many actors as the cluster holds when the job starts."""

    num_cpus: float = 1
    num_gpus: float = 0
    min_size: int = 1
    max_size: int | None = None
    accelerator_type: str | None = None


class Window(NamedTuple):
    """How long texts are cut: at most `size` tokens, special tokens not counted; neighbours share `overlap` of them."""

    size: int
    overlap: int
