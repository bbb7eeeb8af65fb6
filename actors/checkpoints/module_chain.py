"""Describes a sentence-transformers, PyLate or Stanford ColBERT folder as its own library runs it.

A `ModuleChain` holds the modules, prompts, lengths and markers that `actors.checkpoints.chain_reader` reads from JSON;
no weights are loaded. Widths follow from it, for two kinds of module from the header of their weight file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from actors.checkpoints.files import CheckpointError, weight_files
from actors.checkpoints.loading import load_tensors
from actors.spec import ModelClass, Pooling

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which sentence-transformers joins their vectors."""
LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
RUNNABLE: dict[ModelClass, frozenset[str]] = {
    "sentence-transformer": frozenset({"Pooling", "Dense", "LayerNorm", "Normalize"}),
    "sparse-encoder": frozenset({"SpladePooling"}),
    "multi-vector-encoder": frozenset({"Dense", "LayerNorm", "Normalize", "MultiVectorMask"}),
}
STATIC_TABLES = ("embedding.weight", "embeddings")
"""Names of a StaticEmbedding's table: sentence-transformers', model2vec's."""


@dataclass(frozen=True, slots=True)
class ModuleConfig:
    """Describes one module after the transformer: its class, its folder and its config.json."""

    kind: str
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueryExpansion:
    """Configures ColBERT's query expansion: queries are padded to `length` tokens with the expansion token.

    attend: whether the encoder attends to the filled-in tokens. truncate: whether longer queries are cut to `length`.
    token: None takes the tokenizer's mask token, else its end-of-sequence token.
    """

    length: int
    attend: bool = False
    truncate: bool = True
    token: str | None = None


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """Describes how a ColBERT-type checkpoint writes queries and documents, and which tokens are scored."""

    query_marker: str | None = None
    document_marker: str | None = None
    """Inserted as one token after a text's first token; a marker written into a prompt is part of the prompt."""
    expansion: QueryExpansion | None = None
    skiplist: tuple[str, ...] = ()
    skips_unknown: bool = False
    """PyLate: a skip word that the vocabulary lacks skips the unknown token; sentence-transformers leaves it out."""
    skip_tasks: tuple[str, ...] = ("document",)
    keep_only: tuple[int, ...] | None = None
    strips: bool = False
    """PyLate removes whitespace around a text."""


@dataclass(frozen=True, slots=True)
class ModuleChain:
    """Describes a folder as its own library runs it."""

    model_class: ModelClass
    transformer: Path
    modules: tuple[ModuleConfig, ...]
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    """None: the tokenizer's length, at most the model's positions."""
    query_length: int | None = None
    document_length: int | None = None
    lower_case: bool = False
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    truncate_dim: int | None = None
    max_active_dims: int | None = None
    query_table: Path | None = None
    """Folder of the token weights that stand in for a query model (inference-free SPLADE)."""
    query: ModuleChain | None = None
    """The modules that queries go through instead of these (a Router with two routes)."""
    is_static: bool = False
    """Whether token vectors come from a table (StaticEmbedding); texts then get no special tokens."""
    late: LateInteraction | None = None
    similarity: str = "cosine"
    """How the library compares dense vectors: its `similarity_fn_name`, cosine where the folder names none."""
    projection_in_root: bool = False
    """Stanford's ColBERT keeps its projection as `linear.weight` among the encoder's weights."""

    @property
    def include_prompt(self) -> bool:
        """Returns whether a prompt's tokens count in the pooling."""
        return all(m.config.get("include_prompt", True) for m in self.modules if m.kind == "Pooling")

    @property
    def is_normalized(self) -> bool:
        """Returns whether vectors leave the chain with length 1, those of queries as well."""
        ends = bool(self.modules) and self.modules[-1].kind == "Normalize" and self.truncate_dim is None
        return ends and (self.query is None or self.query.is_normalized)

    def with_pooling(self, pooling: Pooling | None) -> ModuleChain:
        """Returns the chain with this pooling instead of its own; itself for None."""
        if pooling is None:
            return self
        config = {"pooling_mode": "lasttoken" if pooling == "last_token" else pooling}
        modules = (replace(m, config=config) if m.kind == "Pooling" else m for m in self.modules)
        query = None if self.query is None else self.query.with_pooling(pooling)
        return replace(self, modules=tuple(modules), query=query)

    def digest(self) -> str:
        """Hashes everything but weights that determines the outputs, paths left out: sha256."""
        modules = [(module.kind, sorted(module.config.items(), key=str)) for module in self.modules]
        rest: tuple[object, ...] = (self.lower_case, self.late, self.include_prompt, self.query_table is not None)
        rest = rest if self.query is None else (*rest, self.query.digest())
        return hashlib.sha256(repr((modules, rest)).encode()).hexdigest()

    def weight_folders(self) -> Iterator[Path]:
        """Lists the folders of the modules that have weights of their own."""
        yield from (module.folder for module in self.modules if module.kind in ("Dense", "LayerNorm"))
        if self.query_table is not None:
            yield self.query_table
        if self.query is not None:
            yield from (self.query.transformer, *self.query.weight_folders())

    def prompt(self, kind: str, name: str | None = None) -> str:
        """Returns the stored prompt for queries or passages, or the one of a given name.

        Raises ValueError for a name that the folder does not have, with those that it has.
        """
        if name is not None:
            if name not in self.prompts:
                known = ", ".join(sorted(self.prompts)) or "none"
                raise ValueError(f"{self.transformer}: no prompt is named {name!r}; the folder stores: {known}")
            return self.prompts[name]
        names: tuple[str, ...] = ("query",) if kind == "query" else ("document", "passage", "corpus")
        if self.late is not None and self.late.strips:
            names = ()  # PyLate uses the default prompt alone
        default = self.prompts.get(self.default_prompt or "", "")
        return next((self.prompts[known] for known in names if known in self.prompts), default)


def pooling_modes(module: ModuleConfig) -> tuple[str, ...]:
    """Lists the modes of a Pooling module, in the order of their vectors; CheckpointError names an unknown one."""
    config = module.config
    if "pooling_mode" in config:
        chosen = config["pooling_mode"]
        modes = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    else:
        modes = tuple(mode for key, mode in LEGACY_POOLING.items() if config.get(key)) or ("mean",)
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown:
        raise CheckpointError(
            f"{module.folder / 'config.json'} pools by {unknown[0]!r}; known are {', '.join(POOLING_MODES)}"
        )
    return modes


def chain_width(chain: ModuleChain, hidden_size: int) -> int:
    """Computes the width of the chain's vectors from its configuration. CheckpointError if a Dense does not fit."""
    width = hidden_size
    for module in chain.modules:
        if module.kind == "Pooling":
            width *= len(pooling_modes(module))
        elif module.kind == "Dense":
            width = _dense_width(chain, module, width)
    return width


def _dense_width(chain: ModuleChain, module: ModuleConfig, width: int) -> int:
    file = module.folder / "config.json"
    if chain.projection_in_root:
        return _root_projection_width(module.folder)
    try:
        takes, gives = int(module.config["in_features"]), int(module.config["out_features"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file} must give in_features and out_features of a Dense") from None
    if takes != width:
        raise CheckpointError(
            f"{file}: this Dense takes vectors of {takes} dimensions, what comes before gives {width}"
        )
    return gives


def static_width(folder: Path) -> int:
    """Returns the dimensions of a StaticEmbedding, from the header of its weights if they have one."""
    path = module_weights(folder)
    if path.suffix == ".safetensors" and path.is_file():
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
    else:
        found = {name: list(tensor.shape) for name, tensor in load_tensors(path).items()}
    for name in STATIC_TABLES:
        if name in found:
            return int(found[name][1])
    raise CheckpointError(f"{path} holds no table of a StaticEmbedding: expected {' or '.join(STATIC_TABLES)}")


def module_weights(folder: Path) -> Path:
    """Returns the weight file of a module's folder."""
    single = folder / "model.safetensors"
    return single if single.is_file() else folder / "pytorch_model.bin"


def _root_projection_width(folder: Path) -> int:
    """Reads the rows of Stanford's `linear.weight` from the header of the file that holds it."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                if "linear.weight" in file.keys():  # noqa: SIM118 - the file is no dict
                    return int(file.get_slice("linear.weight").get_shape()[0])
        elif "linear.weight" in (tensors := load_tensors(path)):
            return len(tensors["linear.weight"])
    raise CheckpointError(f"{folder} names HF_ColBERT, but its weights lack linear.weight")
