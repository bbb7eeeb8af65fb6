"""Builds an index out of a sharded corpus and searches it.

Names are resolved when they are first used: `open_index` works in a process that has never loaded Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "build_index": "pipelines.indexing.build",
    "open_index": "pipelines.retrieval",
    "load_config": "pipelines.config",
    "submit_job": "pipelines.cluster.submit",
    "BuildConfig": "pipelines.config",
    "SearchConfig": "pipelines.config",
    "ConfigError": "pipelines.config",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
