"""The second stage: the best hits are scored again by a reranker, by ColBERT, or by any object that scores pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

from pipelines.config import ConfigError
from pipelines.retrieval.hits import Hit


class Reranker(Protocol):
    """Anything that gives one number for each passage, higher for a better answer to the query."""

    def score(self, query: str, passages: Sequence[str]) -> Sequence[float]:
        """One score a passage, in order."""
        ...


class ByChannel:
    """Reranks by a channel whose exact scores the hits already carry: no model runs."""

    def __init__(self, channel: str) -> None:
        self.channel = channel


def as_reranker(rerank: Any, channels: tuple[str, ...]) -> Any:
    """ "colbert" and the other channels' names, a reranker's name, or an object with `.score(query, passages)`."""
    if isinstance(rerank, str):
        if rerank in ("dense", "sparse", "colbert", "bm25"):
            if rerank not in channels:
                raise ConfigError(f"rerank: the index has no channel {rerank!r}; it has {', '.join(channels)}")
            return ByChannel(rerank)
        return _loaded(rerank)
    if not callable(getattr(rerank, "score", None)):
        raise ConfigError(f"rerank: expected a name or an object with .score(query, passages), got {rerank!r}")
    return rerank


@lru_cache(maxsize=2)
def _loaded(name: str) -> Any:
    """A reranker that one search has named stays loaded for the next. ConfigError where it cannot be loaded."""
    from actors.rerankers.registry import load_reranker

    try:
        return load_reranker(name)
    except ValueError as error:
        raise ConfigError(f"rerank: {error}") from error


def rerank_hits(query: str, hits: Sequence[Hit], reranker: Any, depth: int) -> list[Hit]:
    """The first `depth` hits by the second score (kept as scores["rerank"]), the rest below them as they were."""
    head, tail = list(hits[:depth]), list(hits[depth:])
    if isinstance(reranker, ByChannel):
        scores = [hit.scores[reranker.channel] for hit in head]
    else:
        scores = [float(s) for s in reranker.score(query, [hit.text for hit in head])] if head else []
    if len(scores) != len(head):
        raise ConfigError(f"rerank: {len(head)} passages were given, {len(scores)} scores came back")
    again = [
        replace(hit, score=score, scores={**hit.scores, "rerank": score})
        for hit, score in zip(head, scores, strict=True)
    ]
    return [*sorted(again, key=lambda hit: (-hit.score, hit.chunk_id)), *tail]
