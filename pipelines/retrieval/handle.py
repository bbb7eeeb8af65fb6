"""Holds what searching, explaining and updating an index share: its table, its models and its stored columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from actors.spec import Output
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
    """Opens the columns of an index at one version that a search compares: of one embedder, or of one per output."""

    def __init__(
        self,
        snapshot: Snapshot,
        encoders: Mapping[Output, QueryEncoder],
        memory: int = MEMORY,
        local: Path | None = None,
        disk: int | None = None,
        idf_weighting: bool | None = None,
        query_expansion: bool | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.encoders = dict(encoders)
        self._process = os.getpid()
        self.given_weighting, self.given_expansion = idf_weighting, query_expansion
        self.column_cache = ColumnCache(snapshot, self.embedder_names, memory, local, disk)
        self._others: dict[str, QueryEncoder] = {}
        self._frequencies: dict[str, DocumentFrequencies | None] = {}
        self._expanders: dict[str, QueryExpander] = {}

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
    def encoder(self) -> QueryEncoder:
        """Returns the encoder of the first output: the only one, where one embedder is searched."""
        return next(iter(self.encoders.values()))

    @property
    def name(self) -> str:
        """Returns the name of the embedder whose columns are searched; the first output's, where there are several."""
        return self.encoder.name

    @property
    def embedder_names(self) -> dict[Output, str]:
        """Returns the embedder's name for each output that is searched."""
        return {output: encoder.name for output, encoder in self.encoders.items()}

    @property
    def version(self) -> int:
        """Returns the version of the table that is open."""
        return self.snapshot.version

    def __len__(self) -> int:
        return len(self.snapshot)

    def encoder_of(self, name: str) -> QueryEncoder:
        """Returns the encoder of an embedder of the index, whether or not it is searched; loads no model."""
        searched = {encoder.name: encoder for encoder in self.encoders.values()}
        if name not in {**searched, **self._others}:
            self._others[name] = QueryEncoder(self.snapshot.uri, self.identity, name)
        return searched.get(name) or self._others[name]

    @property
    def idf_weighting(self) -> bool:
        """Returns whether query tokens of the first output are weighted by IDF, as given or by default."""
        fitted = self.has_fitted_heads(next(iter(self.encoders)))
        return fitted if self.given_weighting is None else self.given_weighting

    @property
    def query_expansion(self) -> bool:
        """Returns whether lexical queries of the first output are expanded, as given or by default."""
        fitted = self.has_fitted_heads(next(iter(self.encoders)))
        return fitted if self.given_expansion is None else self.given_expansion

    @property
    def document_frequencies(self) -> DocumentFrequencies | None:
        """Returns `document_frequencies_of` the first output."""
        return self.document_frequencies_of(next(iter(self.encoders)))

    def has_fitted_heads(self, output: Output) -> bool:
        """Returns whether an output comes from the packaged model or from heads of `tridex fit-heads`."""
        embedder = self.identity.embedders[self.encoders[output].name]
        return embedder["model"] == DEFAULT_MODEL or bool(embedder.get("fitted_heads"))

    def document_frequencies_of(self, output: Output) -> DocumentFrequencies | None:
        """Returns the token counts that weight an output's queries by IDF; None if off or if nothing is counted."""
        on, name = self.given_weighting, self.encoders[output].name
        if not (self.has_fitted_heads(output) if on is None else on):
            return None
        if name not in self._frequencies:
            self._frequencies[name] = read_document_frequencies(self.snapshot, name)
        return self._frequencies[name]

    def query_expander_of(self, output: Output) -> QueryExpander | None:
        """Returns the expander of an output's lexical queries; None if queries match only their own tokens."""
        on, encoder = self.given_expansion, self.encoders[output]
        if not (self.has_fitted_heads(output) if on is None else on):
            return None
        if encoder.name not in self._expanders:
            from pipelines.retrieval.query_expansion import QueryExpander

            embedder = encoder.embedder
            self._expanders[encoder.name] = QueryExpander(embedder.input_embeddings, embedder.tokenizer.names)
        return self._expanders[encoder.name]
