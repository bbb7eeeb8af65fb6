"""Runs BGE models: embedders and rerankers with FlagEmbedding's names, arguments and numbers.

Names are resolved when they are first used, so that `import actors` costs nothing and needs neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "FlagAutoModel": "actors.embedders.auto",
    "FlagAutoReranker": "actors.rerankers.registry",
    "load_reranker": "actors.rerankers.registry",
    "load_embedder": "actors.embedders.registry",
    "FlagModel": "actors.embedders.dense",
    "BGEM3FlagModel": "actors.embedders.m3",
    "FlagLLMModel": "actors.embedders.dense",
    "FlagPseudoMoEModel": "actors.embedders.dense",
    "FlagICLModel": "actors.embedders.icl",
    "FlagReranker": "actors.rerankers.cross_encoder",
    "FlagLLMReranker": "actors.rerankers.llm",
    "LayerWiseFlagLLMReranker": "actors.rerankers.layerwise",
    "LightWeightFlagLLMReranker": "actors.rerankers.lightweight",
    "VisualizedBGE": "actors.vision.visualized",
    "mix_models": "actors.mixing",
    "mix_models_by_layers": "actors.mixing",
    "mix_models_with_data": "actors.mixing",
    "EmbedderModelClass": "actors.models.model_classes",
    "RerankerModelClass": "actors.models.model_classes",
    "EmbeddingBatch": "actors.outputs",
    "EmbedderSpec": "actors.spec",
    "ComputeSpec": "actors.spec",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actors' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
