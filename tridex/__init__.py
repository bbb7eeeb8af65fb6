"""Embeds a corpus of any size with BGE models on Ray, and searches it by dense, sparse and ColBERT vectors and BM25.

    from tridex import build_index, load_config, open_index     # an index
    from tridex import BGEM3FlagModel, FlagReranker             # FlagEmbedding's classes, the same numbers

Names are resolved when they are first used, so that `import tridex` takes a millisecond and needs neither torch nor
Ray. What they are made of is in two packages beside this one: `actors` runs models, `pipelines` moves and finds data.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors import BGEM3FlagModel as BGEM3FlagModel
    from actors import ComputeSpec as ComputeSpec
    from actors import EmbedderModelClass as EmbedderModelClass
    from actors import EmbedderSpec as EmbedderSpec
    from actors import EmbeddingBatch as EmbeddingBatch
    from actors import FlagAutoModel as FlagAutoModel
    from actors import FlagAutoReranker as FlagAutoReranker
    from actors import FlagICLModel as FlagICLModel
    from actors import FlagLLMModel as FlagLLMModel
    from actors import FlagLLMReranker as FlagLLMReranker
    from actors import FlagModel as FlagModel
    from actors import FlagPseudoMoEModel as FlagPseudoMoEModel
    from actors import FlagReranker as FlagReranker
    from actors import LayerWiseFlagLLMReranker as LayerWiseFlagLLMReranker
    from actors import LightWeightFlagLLMReranker as LightWeightFlagLLMReranker
    from actors import RerankerModelClass as RerankerModelClass
    from actors import VisualizedBGE as VisualizedBGE
    from actors import load_embedder as load_embedder
    from actors import load_reranker as load_reranker
    from actors import mix_models as mix_models
    from actors import mix_models_by_layers as mix_models_by_layers
    from actors import mix_models_with_data as mix_models_with_data
    from pipelines import BuildConfig as BuildConfig
    from pipelines import ConfigError as ConfigError
    from pipelines import Hit as Hit
    from pipelines import Hits as Hits
    from pipelines import Index as Index
    from pipelines import SearchConfig as SearchConfig
    from pipelines import build_index as build_index
    from pipelines import compare_embedders as compare_embedders
    from pipelines import create_index as create_index
    from pipelines import drop_embedder as drop_embedder
    from pipelines import load_config as load_config
    from pipelines import open_index as open_index
    from pipelines import promote_embedder as promote_embedder
    from pipelines import roll_back_embedder as roll_back_embedder
    from pipelines import submit_job as submit_job
    from pipelines import watch as watch

__version__ = "0.1.0"
_PACKAGES = ("actors", "pipelines")
_ROOT = Path(__file__).resolve().parent.parent


def _refuse_other_packages() -> None:
    """Raises ImportError where a package of the caller's own hides one of ours.

    Python would go on with his package and fail later over a name that it lacks.
    """
    for name in _PACKAGES:
        spec = find_spec(name)
        found = (
            [] if spec is None else [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]]
        )
        if not any(place.resolve() == _ROOT / name for place in found):
            where = ", ".join(map(str, found)) or "nothing at all"
            raise ImportError(
                f"tridex needs its own package {name!r} in {_ROOT / name}, but Python finds {where} under that name. "
                f"Rename that one, or take its folder out of sys.path: start Python in another folder, or unset "
                f"PYTHONPATH."
            )


_refuse_other_packages()
__all__ = sorted({name for package in _PACKAGES for name in import_module(package).__all__})


def main() -> None:
    """Runs the command `tridex`."""
    from pipelines.cli import main as run

    run()


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        for package in map(import_module, _PACKAGES):
            if name in package.__all__:
                return getattr(package, name)
        raise AttributeError(f"module 'tridex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
