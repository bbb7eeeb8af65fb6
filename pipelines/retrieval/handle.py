"""Holds what searching, explaining and updating an index share: its table, its model and its stored columns."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import DEFAULT_MODEL
from pipelines.retrieval.columns.cache import ColumnCache
from pipelines.retrieval.encoder import QueryEncoder
from pipelines.search_indexes.document_frequencies import DocumentFrequencies, read_document_frequencies
from pipelines.store.schema import Identity
from pipelines.store.table import Snapshot

if TYPE_CHECKING:
    from pipelines.retrieval.query_expansion import QueryExpander

MEMORY = 4 * 2**30
"""Bytes of stored columns that an opened index may hold."""


class IndexHandle:
    """One embedder's view of an index, at one version."""

    def __init__(
        self,
        snapshot: Snapshot,
        encoder: QueryEncoder,
        memory: int = MEMORY,
        local: Path | None = None,
        disk: int | None = None,
        idf_weighting: bool | None = None,
        query_expansion: bool | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.encoder = encoder
        self._process = os.getpid()
        embedder = self.identity.embedders[self.name]
        fitted = embedder["model"] == DEFAULT_MODEL or bool(embedder.get("fitted_heads"))
        self.idf_weighting = fitted if idf_weighting is None else idf_weighting
        self.query_expansion = fitted if query_expansion is None else query_expansion
        self.column_cache = ColumnCache(snapshot, encoder.name, memory, local, disk)

    def check_process(self) -> None:
        """Raises RuntimeError in a forked child, where Lance would wait for ever for threads of the parent."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{self.snapshot.uri}: this index was opened in process {self._process}, and what it reads with does "
                "not survive a fork. Start workers by spawn (multiprocessing.get_context('spawn')), or open it in each"
            )

    @property
    def identity(self) -> Identity:
        """Returns the settings that made the index."""
        return self.snapshot.identity

    @property
    def name(self) -> str:
        """Returns which embedder's columns are searched."""
        return self.encoder.name

    @property
    def version(self) -> int:
        """Returns the table's version that is open."""
        return self.snapshot.version

    def __len__(self) -> int:
        return len(self.snapshot)

    @cached_property
    def document_frequencies(self) -> DocumentFrequencies | None:
        """Token counts for weighting queries by IDF; None where that is not wanted, or where none are counted yet."""
        return read_document_frequencies(self.snapshot, self.name) if self.idf_weighting else None

    @cached_property
    def query_expander(self) -> QueryExpander | None:
        """Adds near tokens to lexical queries; None where queries match their own tokens alone."""
        if not self.query_expansion:
            return None
        from pipelines.retrieval.query_expansion import QueryExpander

        embedder = self.encoder.embedder
        return QueryExpander(embedder.input_embeddings, embedder.tokenizer.names)
