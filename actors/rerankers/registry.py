"""Maps a reranker's name to its class: by FlagEmbedding's table of ten, else by the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from actors.checkpoints.files import read_json
from actors.checkpoints.loading import resolve_folder
from actors.models.catalogue import short_name
from actors.rerankers.cross_encoder import FlagReranker
from actors.rerankers.engine import Reranker
from actors.rerankers.flag_embedding import RerankerCompat
from actors.rerankers.layerwise import LayerWiseFlagLLMReranker
from actors.rerankers.library_folder import is_qwen3_reranker, read_cross_encoder
from actors.rerankers.lightweight import LightWeightFlagLLMReranker
from actors.rerankers.llm import FlagLLMReranker
from actors.rerankers.loading import open_checkpoint, read_config_json
from actors.spec import ComputeSpec

RerankerClass = Literal["encoder-only-base", "decoder-only-base", "decoder-only-layerwise", "decoder-only-lightweight"]
LibraryClass = Literal["cross-encoder", "qwen3-reranker"]
"""Sentence-transformers' CrossEncoder, and Qwen3-Reranker as its model card runs it."""
LIBRARY_CLASSES: tuple[LibraryClass, ...] = ("cross-encoder", "qwen3-reranker")
CLASSES: dict[RerankerClass, type[RerankerCompat]] = {
    "encoder-only-base": FlagReranker,
    "decoder-only-base": FlagLLMReranker,
    "decoder-only-layerwise": LayerWiseFlagLLMReranker,
    "decoder-only-lightweight": LightWeightFlagLLMReranker,
}

RERANKERS: dict[str, RerankerClass] = {
    "bge-reranker-base": "encoder-only-base",
    "bge-reranker-large": "encoder-only-base",
    "bge-reranker-v2-m3": "encoder-only-base",
    "bge-reranker-v2-gemma": "decoder-only-base",
    "bge-reranker-v2-minicpm-layerwise": "decoder-only-layerwise",
    "bge-reranker-v2.5-gemma2-lightweight": "decoder-only-lightweight",
    "jina-reranker-v2-base-multilingual": "encoder-only-base",
    "gte-multilingual-reranker-base": "encoder-only-base",
    "bce-reranker-base_v1": "encoder-only-base",
    "jina-reranker-v1-turbo-en": "encoder-only-base",
}
"""Names as FlagEmbedding lists them. The jina and gte ones run remote code and need `trust_remote_code=True`."""

OWN_CODE = frozenset({
    "jina-reranker-v2-base-multilingual", "gte-multilingual-reranker-base", "jina-reranker-v1-turbo-en",
})  # fmt: skip
OWN_DECODERS = frozenset({"minicpm", "cost_wise_gemma"})
"""Types with code of their own that tridex has forwards for."""

ARCHITECTURES: tuple[tuple[str, RerankerClass], ...] = (
    ("LayerWiseMiniCPM", "decoder-only-layerwise"),
    ("CostWiseGemma", "decoder-only-lightweight"),
    ("ForSequenceClassification", "encoder-only-base"),
    ("ForCausalLM", "decoder-only-base"),
)
"""Part of an architecture's name in config.json -> class; the first that fits."""


def class_of(model: str, folder: Path) -> RerankerClass:
    """Chooses the class by the model's name, else by config.json's architecture. ValueError if neither is known."""
    named = RERANKERS.get(short_name(model))
    if named is not None:
        return named
    architectures = read_config_json(folder).get("architectures") or []
    for part, kind in ARCHITECTURES:
        if any(part in architecture for architecture in architectures):
            return kind
    raise ValueError(
        f"{model}: config.json names {architectures or 'no architecture'}, which is no reranker that is known here; "
        f"give model_class, one of {', '.join(CLASSES)}"
    )


def load_reranker(
    model: str,
    *,
    model_class: RerankerClass | LibraryClass | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    peft_path: str | None = None,
    trust_remote_code: bool = False,
    compute: ComputeSpec | None = None,
    **options: Any,
) -> Reranker:
    """Loads a reranker by name, hub id or folder.

    model_class None: FlagEmbedding's class for its ten names; a folder that names sentence-transformers is run as its
    CrossEncoder runs it, a Qwen3-Reranker as its model card does; others by the architecture. `options` are fields of
    `RerankOptions`; what is not given is the class's default. compute: None takes the fastest exact-enough setting of
    this machine (bf16 where the hardware multiplies it). Raises CheckpointError, a ValueError, that names the file at
    fault.
    """
    folder = resolve_folder(model, revision, cache_dir, trust_remote_code)
    if not trust_remote_code:
        refuse_own_code(model, folder)
    library = _find_library_class(model, folder) if model_class is None else model_class
    if library in LIBRARY_CLASSES:
        return _load_library(model, folder, library, peft_path, trust_remote_code, compute, options)
    compat = CLASSES[_known(model_class or class_of(model, folder))]
    checkpoint = open_checkpoint(str(folder), adapter=peft_path, trust_remote_code=trust_remote_code, compute=compute)
    return Reranker(checkpoint, compat.load(checkpoint), compat.defaults().changed(options))


def _find_library_class(model: str, folder: Path) -> LibraryClass | None:
    """Returns the class of a model that FlagEmbedding does not list; None if its architecture decides."""
    name = short_name(model)
    if name in RERANKERS:
        return None
    if read_cross_encoder(folder) is not None:
        return "cross-encoder"
    if is_qwen3_reranker(name, folder):
        return "qwen3-reranker"
    if "mxbai-rerank" in name and "ForCausalLM" in str(read_config_json(folder).get("architectures")):
        raise ValueError(
            f"{model}: a language-model reranker of mxbai needs the modules.json, the LogitScore and the chat template "
            "of its sentence-transformers version, and this folder has no modules.json"
        )
    return None


def _load_library(
    model: str,
    folder: Path,
    library: str,
    adapter: str | None,
    trust_remote_code: bool,
    compute: ComputeSpec | None,
    options: dict[str, Any],
) -> Reranker:
    from actors.rerankers.library_cross_encoder import load_library_reranker, load_qwen3_reranker

    if adapter is not None and library == "cross-encoder":
        raise ValueError("peft_path: adapters are merged into decoders only")
    found = read_cross_encoder(folder, requested=True) if library == "cross-encoder" else None
    if library == "cross-encoder" and found is None:
        raise ValueError(f"{model}: config.json names no architecture for sequence classification")
    inner = folder if found is None else found.folder
    checkpoint = open_checkpoint(str(inner), adapter=adapter, trust_remote_code=trust_remote_code, compute=compute)
    if found is None:
        return load_qwen3_reranker(checkpoint, options)
    return load_library_reranker(found, checkpoint, options)


def refuse_own_code(model: str, folder: Path) -> None:
    """Raises ValueError if a reranker runs code of its own that transformers cannot replace."""
    config = read_json(folder / "config.json") or {}
    names = ("AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModel")
    code = next((found for name in names if (found := (config.get("auto_map") or {}).get(name))), None)
    if code is None:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if (kind not in CONFIG_MAPPING_NAMES and kind not in OWN_DECODERS) or short_name(model) in OWN_CODE:
        raise ValueError(
            f"{model} needs trust_remote_code=True: its config.json runs its own code ({code}). "
            "Read that code first; it runs with your rights."
        )


def _known(model_class: str) -> RerankerClass:
    for known in CLASSES:
        if known == model_class:
            return known
    raise ValueError(f"model_class must be one of {', '.join((*CLASSES, *LIBRARY_CLASSES))}, got {model_class!r}")


class FlagAutoReranker:
    """Implements FlagEmbedding's factory; `from_finetuned` is its only method."""

    def __init__(self) -> None:
        raise OSError("FlagAutoReranker makes other classes: call FlagAutoReranker.from_finetuned(model_name_or_path)")

    @staticmethod
    def from_finetuned(
        model_name_or_path: str,
        model_class: RerankerClass | None = None,
        use_fp16: bool = False,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> RerankerCompat:
        """Constructs the class for this model with `kwargs`.

        model_class None: by name, then, where upstream gives up, by the checkpoint's own config.json. ValueError if
        neither says which of the four classes it is.
        """
        trusted = bool(trust_remote_code)
        if model_class is None:
            folder = resolve_folder(model_name_or_path, None, kwargs.get("cache_dir"), trusted)
            model_class = class_of(model_name_or_path, folder)
        compat: Any = CLASSES[_known(model_class)]
        made: RerankerCompat = compat(model_name_or_path, use_fp16=use_fp16, trust_remote_code=trusted, **kwargs)
        return made
