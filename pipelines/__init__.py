"""Builds an index out of a sharded corpus and searches it.

Names are resolved when they are first used: `open_index` works in a process that has never loaded Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cluster.submit import submit_job as submit_job
    from pipelines.config import BuildConfig as BuildConfig
    from pipelines.config import ConfigError as ConfigError
    from pipelines.config import SearchConfig as SearchConfig
    from pipelines.config import load_config as load_config
    from pipelines.evaluation.compare import compare_embedders as compare_embedders
    from pipelines.indexing.build import build_index as build_index
    from pipelines.indexing.watch import watch as watch
    from pipelines.retrieval import Hit as Hit
    from pipelines.retrieval import Hits as Hits
    from pipelines.retrieval import Index as Index
    from pipelines.retrieval import open_index as open_index
    from pipelines.retrieval.create import create_index as create_index
    from pipelines.search_indexes.drop import drop_embedder as drop_embedder
    from pipelines.store.promote import promote_embedder as promote_embedder
    from pipelines.store.promote import roll_back_embedder as roll_back_embedder

_HOMES = {
    "build_index": "pipelines.indexing.build",
    "compare_embedders": "pipelines.evaluation.compare",
    "drop_embedder": "pipelines.search_indexes.drop",
    "promote_embedder": "pipelines.store.promote",
    "roll_back_embedder": "pipelines.store.promote",
    "create_index": "pipelines.retrieval.create",
    "open_index": "pipelines.retrieval",
    "Index": "pipelines.retrieval",
    "Hits": "pipelines.retrieval",
    "Hit": "pipelines.retrieval",
    "load_config": "pipelines.config",
    "watch": "pipelines.indexing.watch",
    "submit_job": "pipelines.cluster.submit",
    "BuildConfig": "pipelines.config",
    "SearchConfig": "pipelines.config",
    "ConfigError": "pipelines.config",
}

__all__ = sorted(_HOMES)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
