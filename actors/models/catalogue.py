"""Determines a model's class, pooling and template: from this table by name, else from the checkpoint itself.

The table holds FlagEmbedding's 47 embedders and the packaged default. A name that is not in it is read off its files:
M3 heads, the architecture in config.json, sentence-transformers' modules.json. The table never switches remote code
on: a model that needs it is refused with the reason unless the user sets `trust_remote_code=True`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import head_file
from actors.spec import EmbedderSpec, ModelClass, Pooling
from actors.text.prompts import INSTRUCT, PLAIN, TAGGED

DEFAULT_LENGTH = 512
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last_token")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """Holds what a model's name implies: values for the EmbedderSpec fields of the same names, and two facts more."""

    model_class: ModelClass
    pooling: Pooling
    query_instruction_format: str = PLAIN
    """Used only where there is an instruction."""
    own_code: bool = False
    """Whether the checkpoint was published with modelling code of its own (remote code)."""
    max_length: int = DEFAULT_LENGTH
    """Tokens of a text, unless the model has positions for fewer."""

    def fill(self, spec: EmbedderSpec) -> EmbedderSpec:
        """Fills every unset field of `spec` with this entry's value."""
        names = {f.name for f in fields(self)} & {f.name for f in fields(spec)}
        return replace(spec, **{name: getattr(self, name) for name in names if not getattr(spec, name)})


BERT_CLS = CatalogueEntry("encoder-only-base", "cls")
BERT_MEAN = CatalogueEntry("encoder-only-base", "mean")
BERT_CLS_OWN_CODE = CatalogueEntry("encoder-only-base", "cls", own_code=True)
LLM = CatalogueEntry("decoder-only-base", "last_token", INSTRUCT)
LLM_OWN_CODE = CatalogueEntry("decoder-only-base", "last_token", INSTRUCT, own_code=True)
QWEN3 = CatalogueEntry("decoder-only-base", "last_token", "Instruct: {}\nQuery:{}")

EMBEDDERS: dict[str, CatalogueEntry] = {
    "all-MiniLM-L6-v2": CatalogueEntry("encoder-only-m3", "mean", max_length=256),
    "bge-reasoner-embed-qwen3-8b-0923": LLM,
    "bge-code-v1": CatalogueEntry("decoder-only-base", "last_token", TAGGED, own_code=True),
    "bge-en-icl": CatalogueEntry("decoder-only-icl", "last_token", TAGGED),
    "bge-multilingual-gemma2": CatalogueEntry("decoder-only-base", "last_token", TAGGED),
    "bge-m3": CatalogueEntry("encoder-only-m3", "cls"),
    "bge-large-en-v1.5": BERT_CLS,
    "bge-base-en-v1.5": BERT_CLS,
    "bge-small-en-v1.5": BERT_CLS,
    "bge-large-zh-v1.5": BERT_CLS,
    "bge-base-zh-v1.5": BERT_CLS,
    "bge-small-zh-v1.5": BERT_CLS,
    "bge-large-en": BERT_CLS,
    "bge-base-en": BERT_CLS,
    "bge-small-en": BERT_CLS,
    "bge-large-zh": BERT_CLS,
    "bge-base-zh": BERT_CLS,
    "bge-small-zh": BERT_CLS,
    "Qwen3-Embedding-0.6B": QWEN3,
    "Qwen3-Embedding-4B": QWEN3,
    "Qwen3-Embedding-8B": QWEN3,
    "e5-mistral-7b-instruct": LLM,
    "e5-large-v2": BERT_MEAN,
    "e5-base-v2": BERT_MEAN,
    "e5-small-v2": BERT_MEAN,
    "multilingual-e5-large-instruct": CatalogueEntry("encoder-only-base", "mean", INSTRUCT),
    "multilingual-e5-large": BERT_MEAN,
    "multilingual-e5-base": BERT_MEAN,
    "multilingual-e5-small": BERT_MEAN,
    "e5-large": BERT_MEAN,
    "e5-base": BERT_MEAN,
    "e5-small": BERT_MEAN,
    "gte-Qwen2-7B-instruct": LLM_OWN_CODE,
    "gte-Qwen2-1.5B-instruct": LLM_OWN_CODE,
    "gte-Qwen1.5-7B-instruct": LLM_OWN_CODE,
    "gte-multilingual-base": BERT_CLS_OWN_CODE,
    "gte-large-en-v1.5": BERT_CLS_OWN_CODE,
    "gte-base-en-v1.5": BERT_CLS_OWN_CODE,
    "gte-large": BERT_MEAN,
    "gte-base": BERT_MEAN,
    "gte-small": BERT_MEAN,
    "gte-large-zh": BERT_CLS,
    "gte-base-zh": BERT_CLS,
    "gte-small-zh": BERT_CLS,
    "SFR-Embedding-2_R": LLM,
    "SFR-Embedding-Mistral": LLM,
    "Linq-Embed-Mistral": LLM,
    "bce-embedding-base_v1": BERT_CLS,
}

PUBLISHED: dict[str, tuple[int, str]] = {
    "all-MiniLM-L6-v2": (384, "apache-2.0"),
    "bge-reasoner-embed-qwen3-8b-0923": (4096, "apache-2.0"),
    "bge-code-v1": (1536, "apache-2.0"),
    "bge-en-icl": (4096, "apache-2.0"),
    "bge-multilingual-gemma2": (3584, "gemma"),
    "bge-m3": (1024, "mit"),
    "bge-large-en-v1.5": (1024, "mit"),
    "bge-base-en-v1.5": (768, "mit"),
    "bge-small-en-v1.5": (384, "mit"),
    "bge-large-zh-v1.5": (1024, "mit"),
    "bge-base-zh-v1.5": (768, "mit"),
    "bge-small-zh-v1.5": (512, "mit"),
    "bge-large-en": (1024, "mit"),
    "bge-base-en": (768, "mit"),
    "bge-small-en": (384, "mit"),
    "bge-large-zh": (1024, "mit"),
    "bge-base-zh": (768, "mit"),
    "bge-small-zh": (512, "mit"),
    "Qwen3-Embedding-0.6B": (1024, "apache-2.0"),
    "Qwen3-Embedding-4B": (2560, "apache-2.0"),
    "Qwen3-Embedding-8B": (4096, "apache-2.0"),
    "e5-mistral-7b-instruct": (4096, "mit"),
    "e5-large-v2": (1024, "mit"),
    "e5-base-v2": (768, "mit"),
    "e5-small-v2": (384, "mit"),
    "multilingual-e5-large-instruct": (1024, "mit"),
    "multilingual-e5-large": (1024, "mit"),
    "multilingual-e5-base": (768, "mit"),
    "multilingual-e5-small": (384, "mit"),
    "e5-large": (1024, "mit"),
    "e5-base": (768, "mit"),
    "e5-small": (384, "mit"),
    "gte-Qwen2-7B-instruct": (3584, "apache-2.0"),
    "gte-Qwen2-1.5B-instruct": (1536, "apache-2.0"),
    "gte-Qwen1.5-7B-instruct": (4096, "apache-2.0"),
    "gte-multilingual-base": (768, "apache-2.0"),
    "gte-large-en-v1.5": (1024, "apache-2.0"),
    "gte-base-en-v1.5": (768, "apache-2.0"),
    "gte-large": (1024, "mit"),
    "gte-base": (768, "mit"),
    "gte-small": (384, "mit"),
    "gte-large-zh": (1024, "mit"),
    "gte-base-zh": (768, "mit"),
    "gte-small-zh": (512, "mit"),
    "SFR-Embedding-2_R": (4096, "cc-by-nc-4.0"),
    "SFR-Embedding-Mistral": (4096, "cc-by-nc-4.0"),
    "Linq-Embed-Mistral": (4096, "cc-by-nc-4.0"),
    "bce-embedding-base_v1": (768, "apache-2.0"),
}
"""Dimensions of the dense vector and licence, as the model cards state them; for `tridex models` alone."""

CLASS_POOLING: dict[ModelClass, Pooling] = {
    "encoder-only-base": "cls",
    "encoder-only-m3": "cls",
    "decoder-only-base": "last_token",
    "decoder-only-icl": "last_token",
    "decoder-only-pseudo_moe": "last_token",
}

ENCODERS = frozenset({"bert", "roberta", "xlm-roberta"})
RUNNABLE_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})


def short_name(model: str) -> str:
    """Returns the name used in the table: the last part of the path, or its parent's for a `checkpoint-*` folder."""
    path = Path(model)
    return path.parent.name if path.name.startswith("checkpoint-") else path.name


def known_pooling(model: str) -> Pooling | None:
    """Returns the pooling of a model of this name in the catalogue; None for an unknown name."""
    entry = EMBEDDERS.get(short_name(model))
    return None if entry is None else entry.pooling


def published_pooling(model: str, folder: Path) -> Pooling | None:
    """Returns the pooling that a model was published with: by its name, else its modules.json; else None."""
    try:
        return known_pooling(model) or _sentence_transformers_pooling(folder)
    except CheckpointError:  # a module or a pooling that only sentence-transformers runs
        return None


def complete(spec: EmbedderSpec, folder: Path) -> EmbedderSpec:
    """Fills every None of the spec that the table or the checkpoint determines.

    `folder` holds the checkpoint.

    A `model_class` of the user's leaves pooling and template at that class's plain defaults, as upstream does.
    Raises ValueError if a length exceeds the model's positions, where pooling and class contradict each other, and
    where the model needs code that the user has not trusted.
    """
    listed = EMBEDDERS.get(short_name(spec.model))
    if not spec.trust_remote_code:
        refuse_own_code(spec.model, folder, listed is not None and listed.own_code)
    named = listed if spec.model_class is None else CatalogueEntry(spec.model_class, CLASS_POOLING[spec.model_class])
    entry = named or detect(folder)
    filled = entry.fill(spec)
    _check_pooling(str(filled.pooling), entry.model_class)
    normalize = spec.normalize if spec.normalize is not None else named is not None or _normalizes(folder)
    return replace(
        filled,
        normalize=normalize,
        query_max_length=_length(spec.query_max_length, entry, folder, "query_max_length"),
        passage_max_length=_length(spec.passage_max_length, entry, folder, "passage_max_length"),
    )


def _check_pooling(pooling: str, model_class: str) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if model_class.startswith("decoder") and pooling != "last_token":
        raise ValueError(f"pooling must be last_token for {model_class}, got {pooling!r}")


def detect(folder: Path) -> CatalogueEntry:
    """Detects class and pooling from the checkpoint's own files."""
    length = _card_length(folder)
    if _is_decoder(folder):
        return CatalogueEntry("decoder-only-base", "last_token", INSTRUCT, max_length=length)
    has_heads = any(head_file(folder, name) for name in ("sparse_linear", "colbert_linear"))
    model_class: ModelClass = "encoder-only-m3" if has_heads else "encoder-only-base"
    return CatalogueEntry(model_class, _sentence_transformers_pooling(folder) or "cls", max_length=length)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] | None = read_json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{folder} has no config.json: it is not a model folder")
    return config


def _is_decoder(folder: Path) -> bool:
    """Tests by transformers' own tables: a decoder has a causal head and no masked one.

    The common encoders need no table, which takes a second to import.
    """
    kind = _config(folder).get("model_type")
    if kind in ENCODERS:
        return False
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Returns (kind, folder) of sentence-transformers' modules; empty without modules.json."""
    listed = read_json(folder / "modules.json") or []
    modules = [(module["type"].rsplit(".", 1)[-1], folder / module["path"]) for module in listed]
    unknown = sorted({kind for kind, _ in modules} - RUNNABLE_MODULES)
    if unknown:
        raise CheckpointError(
            f"{folder / 'modules.json'} lists {', '.join(unknown)}, which is not supported; "
            "give model_class to run the transformer and pooling alone"
        )
    return modules


def _sentence_transformers_pooling(folder: Path) -> Pooling | None:
    for kind, path in _modules(folder):
        if kind == "Pooling":
            return _pooling_of(read_json(path / "config.json") or {}, path)
    return None


def _pooling_of(config: dict[str, Any], path: Path) -> Pooling:
    modes: dict[str, Pooling] = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean",
                                 "lasttoken": "last_token"}  # fmt: skip
    flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    chosen = [config["pooling_mode"]] if "pooling_mode" in config else []
    chosen += [key.removeprefix("pooling_mode_") for key in flags]
    if len(chosen) != 1 or chosen[0] not in modes:
        raise CheckpointError(f"{path / 'config.json'} pools by {chosen}; one of cls, mean, last token is supported")
    return modes[chosen[0]]


def _normalizes(folder: Path) -> bool:
    modules = _modules(folder)
    return not modules or any(kind == "Normalize" for kind, _ in modules)


def _card_length(folder: Path) -> int:
    card = read_json(folder / "sentence_bert_config.json") or {}
    return min(DEFAULT_LENGTH, card.get("max_seq_length") or DEFAULT_LENGTH)


def max_positions(folder: Path) -> int | None:
    """Returns the model's number of learned positions, special tokens included; None for relative positions."""
    config = _config(folder)
    rows = config.get("max_position_embeddings")
    if rows is None or "rope_theta" in config or "rope_parameters" in config or _is_decoder(folder):
        return None
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"):
        return int(rows) - int(config.get("pad_token_id", 1)) - 1
    return int(rows)


def _length(requested: int | None, entry: CatalogueEntry, folder: Path, name: str) -> int:
    positions = max_positions(folder)
    if requested is None:
        return min(entry.max_length, positions or entry.max_length)
    check_length(requested, positions, name)
    return requested


def check_length(length: int, positions: int | None, name: str) -> None:
    """Raises ValueError unless 1 <= length <= positions."""
    if length < 1:
        raise ValueError(f"{name} must be at least 1, got {length}")
    if positions is not None and length > positions:
        raise ValueError(f"{name} {length} is beyond the model's {positions} positions")


def refuse_own_code(model: str, folder: Path, published_with_code: bool) -> None:
    """Raises ValueError if the checkpoint runs code of its own that transformers cannot replace."""
    config = _config(folder)
    code = config.get("auto_map", {}).get("AutoModel")
    if code is None:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if published_with_code or kind not in CONFIG_MAPPING_NAMES:
        why = "" if kind in CONFIG_MAPPING_NAMES else f", and transformers has no {kind!r} of its own"
        raise ValueError(
            f"{model} needs trust_remote_code=True: its config.json runs its own code ({code}){why}. "
            "Read that code first; it runs with your rights."
        )
