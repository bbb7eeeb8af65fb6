"""Registers tridex's models as a LanceDB embedding function, for any LanceDB table.

    from lancedb.embeddings import get_registry
    import pipelines.integrations.lancedb                       # registers "tridex"

    bge = get_registry().get("tridex").create(model="BAAI/bge-base-en-v1.5")

An index that tridex built needs none of this: `lancedb.connect("./idx").open_table("documents")` opens it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from lancedb.embeddings import TextEmbeddingFunction, register

from actors.spec import EmbedderSpec
from pipelines.config import DEFAULT_MODEL
from pipelines.integrations import models


@register("tridex")
class TridexEmbeddingFunction(TextEmbeddingFunction):  # type: ignore[misc]
    """Embeds texts as dense vectors of any model that tridex runs; queries get the model's instruction."""

    model: str = DEFAULT_MODEL
    """A name, hub id or folder."""
    query_instruction: str | None = None
    max_length: int | None = None

    def ndims(self) -> int:
        """Returns the number of dimensions of a vector."""
        return int(self._embedder.dim)

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> list[npt.NDArray[np.float32]]:
        """Embeds passages."""
        return [np.asarray(v, np.float32) for v in models.passage_vectors(self._embedder, list(texts))]

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[npt.NDArray[np.float32]]:
        """Embeds a query."""
        return [np.asarray(models.query_vector(self._embedder, query), np.float32)]

    @property
    def _embedder(self) -> Any:
        return models.as_embedder(
            EmbedderSpec(model=self.model, query_instruction=self.query_instruction, passage_max_length=self.max_length)
        )
