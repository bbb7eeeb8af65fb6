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
    """Opens one embedder's columns of an index at one version."""

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
        """Raises RuntimeError in a forked child, because Lance would wait there forever for threads of the parent."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{self.snapshot.uri}: this index was opened in process {self._process}, and what it reads with does "
                "not survive a fork. Start workers by spawn (multiprocessing.get_context('spawn')), or open it in each"
            )

    @property
    def identity(self) -> Identity:
        """Returns the settings that the index was built with."""
        return self.snapshot.identity

    @property
    def name(self) -> str:
        """Returns the name of the embedder whose columns are searched."""
        return self.encoder.name

    @property
    def version(self) -> int:
        """Returns the version of the table that is open."""
        return self.snapshot.version

    def __len__(self) -> int:
        return len(self.snapshot)

    @cached_property
    def document_frequencies(self) -> DocumentFrequencies | None:
        """Returns the token counts that weight queries by IDF; None if weighting is off or nothing is counted."""
        return read_document_frequencies(self.snapshot, self.name) if self.idf_weighting else None

    @cached_property
    def query_expander(self) -> QueryExpander | None:
        """Returns the expander of lexical queries; None if queries match only their own tokens."""
        if not self.query_expansion:
            return None
        from pipelines.retrieval.query_expansion import QueryExpander

        embedder = self.encoder.embedder
        return QueryExpander(embedder.input_embeddings, embedder.tokenizer.names)
