"""Loads the embedder or the reranker of an adapter, given by name or as a loaded object."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from actors.spec import EmbedderSpec
from pipelines.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from actors.embedders.base import Embedder


def as_embedder(model: str | EmbedderSpec | Embedder = DEFAULT_MODEL) -> Embedder:
    """Returns a loaded embedder; models are cached by name."""
    if isinstance(model, (str, EmbedderSpec)):
        return _load_embedder(EmbedderSpec(model=model) if isinstance(model, str) else model)
    return model


@lru_cache(maxsize=2)
def _load_embedder(spec: EmbedderSpec) -> Embedder:
    from actors.embedders.registry import load_embedder

    return load_embedder(spec)


@lru_cache(maxsize=2)
def _load_reranker(name: str) -> Any:
    from actors.rerankers.registry import load_reranker

    return load_reranker(name)


def passage_vectors(embedder: Embedder, texts: Sequence[str]) -> list[list[float]]:
    """Embeds passages as dense vectors."""
    dense = embedder.embed_corpus(list(texts), ["dense"]).dense if texts else None
    return [] if dense is None else [[float(x) for x in vector] for vector in dense]


def query_vector(embedder: Embedder, text: str) -> list[float]:
    """Embeds a query as a dense vector, with the model's query instruction."""
    dense = embedder.embed_queries([text], ["dense"]).dense
    assert dense is not None, "every model has a dense output"
    return [float(x) for x in dense[0]]


def rerank(model: Any, query: str, passages: Sequence[str]) -> list[float]:
    """Scores each passage against a query. model: a reranker's name, or any object with `.score(query, passages)`."""
    if not passages:
        return []
    reranker = _load_reranker(model) if isinstance(model, str) else model
    return [float(score) for score in reranker.score(query, list(passages))]


def best(scores: Sequence[float], n: int | None) -> list[int]:
    """Returns the positions of the n best scores (None: all), best first; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:n]
