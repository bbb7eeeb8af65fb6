"""Adapts an index and an encoder to mteb's evaluation runner. Extra: `mteb`.

    mteb.evaluate(TridexSearch("./idx", mode="hybrid"), tasks=mteb.get_tasks(["SciFact"]))

So every channel and every hybrid is ranked by mteb itself, and compared with its leaderboard's figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from actors.extras import require_extra
from actors.spec import EmbedderSpec
from pipelines.config import DEFAULT_MODEL
from pipelines.integrations import models
from pipelines.integrations.documents import DocumentIndex, StoredDocument

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ModuleNotFoundError:
    require_extra("mteb", __name__)
    raise

QUERIES_TOGETHER = 256


def model_meta(model: str, variant: str | None = None, dimensions: int | None = None) -> ModelMeta:
    """Builds mteb's record of a model; each variant gets its own results file."""
    name = model if model.count("/") == 1 else f"tridex/{Path(model).name}"
    meta: ModelMeta = ModelMeta.create_empty({"name": f"{name}-{variant}" if variant else name})
    return meta.model_copy(
        update={
            "revision": "tridex",
            "embed_dim": dimensions,
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.COSINE,
        }
    )


class TridexEncoder(AbsEncoder):  # type: ignore[misc]
    """Embeds texts of every mteb task as dense vectors of any model that tridex runs."""

    def __init__(self, model_name: str = DEFAULT_MODEL, revision: str | None = None, **options: Any) -> None:
        """Loads a model. model_name: a name, hub id or folder. options: further fields of `EmbedderSpec`."""
        spec = EmbedderSpec(model=model_name, revision=revision, **options)
        self.embedder = models.as_embedder(spec)
        self.mteb_model_meta = model_meta(model_name, dimensions=self.embedder.dim)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> npt.NDArray[np.float32]:
        """Embeds the texts of a data loader; queries get the model's query instruction."""
        texts = [text for batch in inputs for text in batch["text"]]
        embed = self.embedder.embed_queries if prompt_type == PromptType.query else self.embedder.embed_corpus
        vectors = embed(texts, ["dense"]).dense
        assert vectors is not None, "every model has a dense output"
        return np.asarray(vectors, np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Computes cosine similarities: the vectors have length 1."""
        return torch.as_tensor(np.asarray(embeddings1)) @ torch.as_tensor(np.asarray(embeddings2)).T


class TridexSearch:
    """Implements mteb's search protocol on an index: indexes the task's corpus and ranks it for the queries."""

    def __init__(
        self, index: str | Path | DocumentIndex, *, embedder: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Opens an index. index: its folder or URI; created, and filled with the task's corpus where rows are missing.

        options: keywords of every search: `mode="colbert"`, `fusion="rrf"`, `weights={...}`, `candidates=500`.
        """
        self.documents = index if isinstance(index, DocumentIndex) else DocumentIndex.open(index, embedder=embedder)
        self.options = options
        described = self.documents.index.identity.embedders[self.documents.index.name]
        variant = "-".join(f"{key}={value}" for key, value in sorted(options.items())) or "hybrid"
        self.mteb_model_meta = model_meta(str(described["model"]), variant, int(described["dim"]))

    def index(self, corpus: Any, **kwargs: Any) -> None:
        """Writes those documents of the corpus that the index lacks."""
        there = self.documents.existing([str(i) for i in corpus["id"]])
        rows = [
            StoredDocument(str(row["id"]), joined(row.get("title"), row["text"]))
            for row in corpus
            if str(row["id"]) not in there and joined(row.get("title"), row["text"])
        ]
        self.documents.upsert(rows)

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Mapping[str, list[str]] | None = None, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """Returns each query's `top_k` best documents; for reranking tasks, of the candidates that the task lists."""
        if top_ranked is not None:
            return {str(q["id"]): self._ranked(q["text"], top_ranked[str(q["id"])]) for q in queries}
        names, texts = [str(i) for i in queries["id"]], list(queries["text"])
        found: dict[str, dict[str, float]] = {}
        for first in range(0, len(texts), QUERIES_TOGETHER):
            part = slice(first, first + QUERIES_TOGETHER)
            answers = self.documents.index.search(texts[part], k=top_k, columns=[], **self.options)
            found |= {
                name: {hit.doc_id: hit.score for hit in hits} for name, hits in zip(names[part], answers, strict=True)
            }
        return found

    def _ranked(self, query: str, ids: list[str]) -> dict[str, float]:
        from pipelines.store.table import sql_in

        hits = self.documents.search(query, len(ids), where=sql_in("doc_id", ids), columns=[], **self.options)
        return {hit.doc_id: hit.score for hit in hits}


def joined(title: str | None, text: str) -> str:
    """Joins title and text as a job does."""
    return " ".join(part for part in ((title or "").strip(), text.strip()) if part)
