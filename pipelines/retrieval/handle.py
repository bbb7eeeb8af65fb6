"""What searching, explaining and updating an index share: its table, its model and its stored columns."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import DEFAULT_MODEL
from pipelines.retrieval.columns.cache import Stored
from pipelines.retrieval.encoder import Encoder
from pipelines.store.schema import Identity
from pipelines.store.table import Snapshot

if TYPE_CHECKING:
    from pipelines.retrieval.query_expansion import Neighbours

MEMORY = 4 * 2**30
"""Bytes of stored columns that an opened index may hold."""


class Opened:
    """One embedder's view of an index, at one version."""

    def __init__(
        self,
        snapshot: Snapshot,
        encoder: Encoder,
        memory: int = MEMORY,
        local: Path | None = None,
        disk: int | None = None,
        rarity: bool | None = None,
        neighbours: bool | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.encoder = encoder
        embedder = self.identity.embedders[self.name]
        fitted = embedder["model"] == DEFAULT_MODEL or bool(embedder.get("fitted_heads"))
        self.rarity = fitted if rarity is None else rarity
        self.asks_neighbours = fitted if neighbours is None else neighbours
        self.stored = Stored(snapshot, encoder.name, memory, local, disk)

    @property
    def identity(self) -> Identity:
        return self.snapshot.identity

    @property
    def name(self) -> str:
        """Which embedder's columns are searched."""
        return self.encoder.name

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """Of the tokens of lexical queries; None where queries ask for their own tokens alone."""
        if not self.asks_neighbours:
            return None
        from pipelines.retrieval.query_expansion import Neighbours

        embedder = self.encoder.embedder
        return Neighbours(embedder.input_embeddings, embedder.tokenizer.names)

    @property
    def version(self) -> int:
        return self.snapshot.version

    def __len__(self) -> int:
        return len(self.snapshot)
