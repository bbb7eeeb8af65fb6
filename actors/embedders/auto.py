"""Implements `FlagAutoModel`, FlagEmbedding's factory: a name gives the class of the name or of the checkpoint."""

from __future__ import annotations

from typing import Any, cast

from actors.checkpoints.loading import resolve_folder
from actors.embedders.dense import FlagLLMModel, FlagModel, FlagPseudoMoEModel
from actors.embedders.flag_embedding import FlagEmbeddingCompat
from actors.embedders.icl import FlagICLModel
from actors.embedders.m3 import BGEM3FlagModel
from actors.models.catalogue import CLASS_POOLING, complete
from actors.models.model_classes import EmbedderModelClass
from actors.spec import EmbedderSpec, ModelClass, Pooling

COMPAT_CLASSES: dict[ModelClass, type[FlagEmbeddingCompat[Any]]] = {
    compat.model_class: compat for compat in (FlagModel, BGEM3FlagModel, FlagLLMModel, FlagICLModel, FlagPseudoMoEModel)
}


class FlagAutoModel:
    """Chooses the class for a model; use `FlagAutoModel.from_finetuned(...)`."""

    def __init__(self) -> None:
        raise OSError("FlagAutoModel is made by FlagAutoModel.from_finetuned(model_name_or_path)")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: str | None = None,
        normalize_embeddings: bool | None = None,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        devices: Any = None,
        pooling_method: str | None = None,
        trust_remote_code: bool | None = None,
        query_instruction_format: str | None = None,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> FlagEmbeddingCompat[Any]:
        """Returns the model under the class, pooling and template of its name, or of its own files
        where the name is unknown.

        `model_class` (as upstream: then the class's plain defaults hold) and every other argument win over both.
        normalize_embeddings None: True, or what an unknown checkpoint's modules.json states. Raises ValueError if
        the checkpoint needs remote code that was not trusted.
        """
        requested = EmbedderSpec(
            model=str(model_name_or_path),
            model_class=_model_class(model_class),
            pooling=cast("Pooling | None", pooling_method),
            normalize=normalize_embeddings,
            query_instruction_format=query_instruction_format,
            query_max_length=options.pop("query_max_length", None),
            passage_max_length=options.pop("passage_max_length", None),
            trust_remote_code=bool(trust_remote_code),
            revision=options.get("revision"),
            cache_dir=options.get("cache_dir"),
        )
        known = complete(
            requested,
            resolve_folder(requested.model, requested.revision, requested.cache_dir, requested.trust_remote_code),
        )
        assert known.model_class is not None, "the spec is complete"
        compat: Any = COMPAT_CLASSES[known.model_class]
        made: FlagEmbeddingCompat[Any] = compat(
            requested.model,
            bool(known.normalize),
            use_fp16,
            use_bf16,
            query_instruction_for_retrieval,
            known.query_instruction_format or "",
            devices=devices,
            pooling_method=known.pooling or "",
            trust_remote_code=requested.trust_remote_code,
            truncate_dim=truncate_dim,
            query_max_length=known.query_max_length,
            passage_max_length=known.passage_max_length,
            **options,
        )
        return made


def _model_class(name: str | None) -> ModelClass | None:
    if name is None:
        return None
    if name not in CLASS_POOLING:
        raise ValueError(f"model_class {name!r} is not one of {', '.join(CLASS_POOLING)}")
    return EmbedderModelClass(name).value
