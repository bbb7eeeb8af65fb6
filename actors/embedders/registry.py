"""Loads a model by name for the pipeline."""

from __future__ import annotations

from actors.embedders.base import Embedder, load_chain_engine, load_engine
from actors.models.preparation import load_preparation
from actors.spec import EmbedderSpec


def load_embedder(spec: EmbedderSpec) -> Embedder:
    """Loads the model of `spec`. Raises CheckpointError (a ValueError) that names the file at fault.

    >>> model = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2"))
    >>> model.outputs, model.dim
    (('dense', 'sparse', 'colbert'), 384)
    """
    if spec.picture_weights is not None:
        from actors.embedders.visualized import VisualizedBGE  # needs Pillow, which the others do not

        return VisualizedBGE.from_spec(spec)
    preparation = load_preparation(spec)
    if preparation.chain is not None:
        return Embedder(preparation, load_chain_engine(preparation, preparation.chain))
    return Embedder(preparation, load_engine(preparation))
