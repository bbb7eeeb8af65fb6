"""Runs BGE models: embedders and rerankers with FlagEmbedding's names, arguments and numbers.

Names are resolved when they are first used, so that `import actors` costs nothing and needs neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.embedders.auto import FlagAutoModel as FlagAutoModel
    from actors.embedders.dense import FlagLLMModel as FlagLLMModel
    from actors.embedders.dense import FlagModel as FlagModel
    from actors.embedders.dense import FlagPseudoMoEModel as FlagPseudoMoEModel
    from actors.embedders.icl import FlagICLModel as FlagICLModel
    from actors.embedders.m3 import BGEM3FlagModel as BGEM3FlagModel
    from actors.embedders.registry import load_embedder as load_embedder
    from actors.embedders.visualized import VisualizedBGE as VisualizedBGE
    from actors.mixing import mix_models as mix_models
    from actors.mixing import mix_models_by_layers as mix_models_by_layers
    from actors.mixing import mix_models_with_data as mix_models_with_data
    from actors.models.model_classes import EmbedderModelClass as EmbedderModelClass
    from actors.models.model_classes import RerankerModelClass as RerankerModelClass
    from actors.outputs import EmbeddingBatch as EmbeddingBatch
    from actors.rerankers.cross_encoder import FlagReranker as FlagReranker
    from actors.rerankers.layerwise import LayerWiseFlagLLMReranker as LayerWiseFlagLLMReranker
    from actors.rerankers.lightweight import LightWeightFlagLLMReranker as LightWeightFlagLLMReranker
    from actors.rerankers.llm import FlagLLMReranker as FlagLLMReranker
    from actors.rerankers.registry import FlagAutoReranker as FlagAutoReranker
    from actors.rerankers.registry import load_reranker as load_reranker
    from actors.spec import ComputeSpec as ComputeSpec
    from actors.spec import EmbedderSpec as EmbedderSpec

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
    "VisualizedBGE": "actors.embedders.visualized",
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


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'actors' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
