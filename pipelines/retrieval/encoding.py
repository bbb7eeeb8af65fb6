"""Encodes queries by the index's model, weights them by IDF, and expands them if the index is configured so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.spec import Output
from pipelines.config import InvalidRequest
from pipelines.retrieval.handle import IndexHandle
from pipelines.retrieval.queries import EncodedQueries
from pipelines.search_indexes.document_frequencies import apply_idf


def encode_queries(index: IndexHandle, texts: Sequence[str], outputs: Sequence[Output]) -> EncodedQueries:
    """Encodes queries to these outputs; loads no model if there are no outputs or no queries.

    InvalidRequest names a query that is empty or not a text.
    """
    check_queries(texts)
    if not outputs or not texts:
        return EncodedQueries(tuple(texts))
    encoded, token_weights = index.encoder.encode(texts, outputs), None
    if index.document_frequencies is not None:
        words = index.encoder.words(texts) if encoded.colbert is not None else None
        encoded, token_weights = apply_idf(encoded, words, index.document_frequencies)
    if encoded.sparse is not None and index.query_expander is not None:
        encoded = replace(encoded, sparse=index.query_expander.expand(encoded.sparse))
    return EncodedQueries(tuple(texts), encoded, token_weights)


def check_queries(texts: Sequence[str]) -> None:
    """Raises InvalidRequest with the number of the first query that is empty or no text."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"query {i}: expected a text, got {type(text).__name__}")
        if not text.strip():
            raise InvalidRequest(f"query {i}: is empty")
