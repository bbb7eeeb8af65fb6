"""Defines what to run: the model and its settings, as frozen, picklable objects that travel to Ray workers.

Defaults are FlagEmbedding's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

ModelClass = Literal[
    "encoder-only-base",
    "encoder-only-m3",
    "decoder-only-base",
    "decoder-only-icl",
    "decoder-only-pseudo_moe",
    "sentence-transformer",
    "sparse-encoder",
    "multi-vector-encoder",
]
"""FlagEmbedding's five classes, and the three of sentence-transformers: dense, SPLADE and ColBERT-type checkpoints."""
Pooling = Literal["cls", "mean", "last_token"]
Output = Literal["dense", "sparse", "colbert"]
DType = Literal["auto", "fp32", "bf16", "fp16", "int8"]

OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "colbert")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSpec:
    """Says how the forward pass runs.

    `auto` (None for numbers) decides from the hardware; see `actors.compute.resolve`.
    """

    dtype: DType = "auto"
    """fp32 is exact; auto takes bf16 where the processor multiplies it in hardware, fp32 otherwise.

    int8: products of BERT and XLM-RoBERTa encoders on a CPU in 8 bits; embeddings, norms and heads in fp32.
    """
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


NOT_IN_IDENTITY = {"identity": "never"}
"""Metadata of a field that decides where and how a model runs, and so changes no vector."""
ALWAYS_IN_IDENTITY = {"identity": "always"}
"""Metadata of a field that every index names, even where it has no value. Other fields are named where they are set."""
POSITIVE = {"gt": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """Specifies an embedder and how its texts are prepared. None stands for the catalogue's or the checkpoint's value.

    This is the one list of an embedder's fields. A config's `embedders` entries, an index's identity, the catalogue's
    entries and the FlagEmbedding classes take theirs from it, with these types, defaults and metadata.

    >>> spec = EmbedderSpec(model="BAAI/bge-m3", truncate_dim=256)
    >>> spec.identity()["truncate_dim"], EmbedderSpec.from_identity(spec.identity()) == spec
    (256, True)
    """

    model: str = field(metadata=ALWAYS_IN_IDENTITY)
    """A catalogue name, a hub id or a folder."""
    revision: str | None = field(default=None, metadata=ALWAYS_IN_IDENTITY)
    """Hub revision: a commit hash pins the weights."""
    model_class: ModelClass | None = field(default=None, metadata=ALWAYS_IN_IDENTITY)
    """What runs it: one of FlagEmbedding's classes, or of sentence-transformers'."""
    pooling: Pooling | None = field(default=None, metadata=ALWAYS_IN_IDENTITY)
    """Which token states make the dense vector."""
    normalize: bool | None = field(default=None, metadata=ALWAYS_IN_IDENTITY)
    """L2-normalise dense and ColBERT vectors. None: as in the checkpoint's modules.json, True without one."""
    cosine_as_dot: bool = field(default=False, metadata=NOT_IN_IDENTITY)
    """Normalise dense vectors where the checkpoint's own library compares them by cosine: an index takes dot products.
    Without effect if `normalize` is set. What it decides stands in the identity as `normalize`."""
    query_prompt: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    """Name of the prompt that the checkpoint stores for queries; None: `query`. An instruction wins over it."""
    passage_prompt: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    """Name of the stored prompt for passages; None: `document`, `passage` or `corpus`, whichever there is."""
    query_instruction: str | None = field(default=None, metadata=ALWAYS_IN_IDENTITY)
    """What stands before every query."""
    query_instruction_format: str | None = field(default=None, metadata=ALWAYS_IN_IDENTITY)
    """How instruction and query are joined: two `{}`."""
    passage_instruction: str | None = field(default=None, metadata=ALWAYS_IN_IDENTITY)
    """What stands before every passage."""
    passage_instruction_format: str = field(default="{}{}", metadata=ALWAYS_IN_IDENTITY)
    """How instruction and passage are joined: two `{}`."""
    query_max_length: int | None = field(default=None, metadata=ALWAYS_IN_IDENTITY | POSITIVE)
    """Tokens kept of a query, special tokens included; None: as for passages."""
    passage_max_length: int | None = field(default=None, metadata=ALWAYS_IN_IDENTITY | POSITIVE)
    """Tokens kept of a text, special tokens included; None: 512, or the model card's length if that is less."""
    truncate_dim: int | None = field(default=None, metadata=ALWAYS_IN_IDENTITY | POSITIVE)
    """Keep the first dimensions only (Matryoshka), before normalisation; in a sentence-transformers chain after it."""
    max_active_dims: int | None = field(default=None, metadata=POSITIVE)
    """SPLADE: number of largest weights kept per text; None: the checkpoint's, else all."""
    sparse_threshold: float | None = field(default=None, metadata=POSITIVE)
    """SPLADE: keep weights above this only; None: 0."""
    colbert_dim: int | None = field(default=None, metadata=NOT_IN_IDENTITY | POSITIVE)
    """Refuse a ColBERT head of another width; None takes the checkpoint's."""
    picture_weights: str | None = None
    """Visualized-BGE's weight file; `model` gives config and tokenizer."""
    trust_remote_code: bool = field(default=False, metadata=NOT_IN_IDENTITY)
    """Runs Python code from the checkpoint. Never set by a table, only by you."""
    cache_dir: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    """Where the hub's downloads are kept; None: the hub client's own folder."""
    compute: ComputeSpec = field(default_factory=ComputeSpec, metadata=NOT_IN_IDENTITY)

    def identity(self) -> dict[str, str | int | bool | None]:
        """Returns the fields that an index must agree on with whoever searches it."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata.get("identity") == "always"
            or (f.metadata.get("identity") != "never" and getattr(self, f.name) != f.default)
        }

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> EmbedderSpec:
        """Builds the spec of the embedder that an identity describes. Remote code is never run on a table's word."""
        named = (f.name for f in fields(cls) if f.metadata.get("identity") != "never")
        return cls(**{name: identity[name] for name in named if identity.get(name) is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Says how large a pool of actors is and what each takes.

    max_size None: as many actors as the cluster holds when the job starts.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    min_size: int = 1
    max_size: int | None = None
    accelerator_type: str | None = None


Boundaries = Literal["words", "sentences"]


class Window(NamedTuple):
    """Says how long texts are cut: at most `size` tokens, special tokens not counted; neighbours share `overlap` of
    them."""

    size: int
    overlap: int
    boundaries: Boundaries = "words"
    """Where windows end and begin if one is near: at words alone, or at paragraphs, headings and sentences first."""
