"""Reranks the best hits in a second stage: by a reranker, a channel or any object that scores pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from actors.suggest import did_you_mean
from pipelines.config import CHANNELS, Channel, InvalidRequest, Reranker
from pipelines.retrieval.hits import Hit


class ByChannel:
    """Reranks by a channel whose exact scores the hits already carry; runs no model."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel


def as_reranker(rerank: str | Reranker, channels: tuple[str, ...]) -> Reranker | ByChannel:
    """Resolves the reranker of a name: a channel's, or a model's, which is loaded; an object is returned as it is."""
    if not isinstance(rerank, str):
        return rerank
    channel = next((c for c in CHANNELS if c == rerank), None)
    if channel is None:
        return _load_cached(rerank)
    if channel not in channels:
        raise InvalidRequest(f"rerank: the index has no channel {rerank!r}; it has {', '.join(channels)}")
    return ByChannel(channel)


@lru_cache(maxsize=2)
def _load_cached(name: str) -> Reranker:
    """Loads a reranker and caches it for the next search; InvalidRequest if it cannot be loaded."""
    from actors.rerankers.registry import load_reranker

    try:
        return load_reranker(name)
    except ValueError as error:
        raise InvalidRequest(f"rerank: {error}{did_you_mean(name, CHANNELS)}") from error


def rerank_hits(query: str, hits: Sequence[Hit], reranker: Reranker | ByChannel, depth: int) -> list[Hit]:
    """Ranks the first `depth` hits by the second score (as scores["rerank"]), the rest below in their old order."""
    head, tail = list(hits[:depth]), list(hits[depth:])
    if isinstance(reranker, ByChannel):
        scores = [hit.scores[reranker.channel] for hit in head]
    else:
        scores = [float(s) for s in reranker.score(query, [hit.text for hit in head])] if head else []
    if len(scores) != len(head):
        raise InvalidRequest(f"rerank: {len(head)} passages were given, {len(scores)} scores came back")
    again = [
        replace(hit, score=score, scores={**hit.scores, "rerank": score})
        for hit, score in zip(head, scores, strict=True)
    ]
    return [*sorted(again, key=lambda hit: (-hit.score, hit.chunk_id)), *tail]
