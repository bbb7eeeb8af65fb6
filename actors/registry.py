"""The two ways to get a model by name: `load_embedder` for the pipeline, `FlagAutoModel` for FlagEmbedding's users."""

from __future__ import annotations

from actors.embedders.base import Embedder, load_engine
from actors.preparation import load_preparation
from actors.spec import EmbedderSpec


def load_embedder(spec: EmbedderSpec) -> Embedder:
    """Loads the model of `spec`. Raises CheckpointError (a ValueError) that names the file at fault."""
    preparation = load_preparation(spec)
    return Embedder(preparation, load_engine(preparation))
