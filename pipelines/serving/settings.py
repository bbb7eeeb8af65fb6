"""Defines the server's settings: indexes, keys, and limits per request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator

from pipelines.config.settings import Model


class Limits(Model):
    """Limits what one request may contain and how many run concurrently; beyond each limit the response is a 4xx."""

    body_bytes: int = Field(8 * 2**20, gt=0)
    """A longer body is refused (413) before it is read to its end."""
    body_seconds: float = Field(20, gt=0)
    """A body that takes longer to arrive is refused (408); no worker waits for it."""
    nesting: int = Field(32, gt=0)
    """Depth of lists and objects in a body."""
    k: int = Field(1000, gt=0)
    """Hits per query, those skipped by `offset` and those that a reranker scores included."""
    candidates: int = Field(10_000, gt=0)
    queries: int = Field(64, gt=0)
    """Queries in one search."""
    query_chars: int = Field(8192, gt=0)
    """Characters of a query, of a filter and of an id."""
    texts: int = Field(1024, gt=0)
    """Texts in one call for embeddings, passages in one call for reranking, documents in one upsert."""
    concurrency: int = Field(64, gt=0)
    """Requests that are answered or queued at once; the next one gets a 429 with Retry-After."""
    answer_seconds: float = Field(120, gt=0)
    """A request that takes longer gets a 504."""
    batch_queries: int = Field(32, gt=0)
    """Queries that are encoded together."""
    batch_window_ms: float = Field(2, ge=0)
    """How long a query waits for others while other requests are being answered; an idle server waits for none."""


class ServeConfig(Model):
    """Holds every setting of `tridex serve`, for one process as for every Ray Serve replica."""

    indexes: tuple[str, ...] = Field(min_length=1)
    """URIs, each perhaps as NAME=URI; without a name, the last part of the path is the name."""
    aliases: Mapping[str, str] = {}
    """Further names of indexes, embedders and rerankers."""
    aliases_file: Path | None = None
    """YAML mapping like `aliases`, read again when it changes: an embedder is switched without a restart."""
    keys: Path | None = None
    """YAML file of hashed keys (`pipelines.serving.keys`); without it everybody who reaches the server may search."""
    open_writes: bool = False
    """Without a key file: whether requests may upsert and delete."""
    any_host: bool = False
    """Without a key file: answer requests whose Host header names another machine, for a server behind a proxy."""
    rerankers: tuple[str, ...] = ()
    """Rerankers that requests may name, each perhaps as NAME=MODEL; no other model is ever loaded by a request."""
    refresh_seconds: float = Field(5, gt=0)
    """Polling interval: a new version is served within this time plus the time to open it."""
    prewarm: bool = False
    """Load models and read columns before the server is ready."""
    memory: int = Field(4 * 2**30, gt=0)
    """Bytes of stored columns that each opened index may hold."""
    local: Path | None = None
    """Folder for local copies of what scoring reads, for indexes on object storage."""
    storage_options: Mapping[str, str] = {}
    limits: Limits = Limits()

    @field_validator("indexes")
    @classmethod
    def _names_differ(cls, indexes: tuple[str, ...]) -> tuple[str, ...]:
        names = [split_name(text)[0] for text in indexes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two indexes are called {twice!r}; name them as NAME=URI")
        return indexes


def split_name(text: str) -> tuple[str, str]:
    """Splits NAME=URI; without a name, the last part of the URI's path is used.

    >>> split_name("docs=s3://bucket/index"), split_name("/data/handbook/")
    (('docs', 's3://bucket/index'), ('handbook', '/data/handbook/'))
    """
    name, sign, uri = text.partition("=")
    if sign and name and "/" not in name:
        return name, uri
    return text.rstrip("/").rsplit("/", 1)[-1] or text, text
