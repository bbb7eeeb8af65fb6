"""Encodes queries by the index's models, weights them by IDF, and expands them if the index is configured so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.outputs import EmbeddingBatch, merge_outputs
from actors.spec import Output
from pipelines.config import InvalidRequest, is_utf8
from pipelines.retrieval.encoder import QueryEncoder
from pipelines.retrieval.handle import IndexHandle
from pipelines.retrieval.queries import EncodedQueries, Floats
from pipelines.search_indexes.document_frequencies import apply_idf


def encode_queries(index: IndexHandle, texts: Sequence[str], outputs: Sequence[Output]) -> EncodedQueries:
    """Encodes queries to these outputs; loads no model if there are no outputs or no queries.

    InvalidRequest names a query that is empty or not a text.
    """
    check_queries(texts)
    if not outputs or not texts:
        return EncodedQueries(tuple(texts))
    wanted = {output: index.encoders[output] for output in outputs}
    parts = [
        _encode_by_one(index, encoder, texts, [o for o, e in wanted.items() if e is encoder])
        for encoder in dict.fromkeys(wanted.values())
    ]
    token_weights = next((weights for _, weights in parts if weights is not None), None)
    return EncodedQueries(tuple(texts), merge_outputs([batch for batch, _ in parts]), token_weights)


def _encode_by_one(
    index: IndexHandle, encoder: QueryEncoder, texts: Sequence[str], outputs: Sequence[Output]
) -> tuple[EmbeddingBatch, Floats | None]:
    """Encodes queries to the outputs that one model gives; returns them with a weight per ColBERT vector or None."""
    encoded, token_weights = encoder.encode(texts, outputs), None
    frequencies = index.document_frequencies_of(outputs[0])
    if frequencies is not None:
        words = encoder.words(texts) if encoded.colbert is not None else None
        encoded, token_weights = apply_idf(encoded, words, frequencies)
    expander = index.query_expander_of("sparse") if encoded.sparse is not None else None
    if encoded.sparse is not None and expander is not None:
        encoded = replace(encoded, sparse=expander.expand(encoded.sparse))
    return encoded, token_weights


def check_queries(texts: Sequence[str]) -> None:
    """Raises InvalidRequest with the number of the first query that is empty or no text."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"query {i}: expected a text, got {type(text).__name__}")
        if not text.strip():
            raise InvalidRequest(f"query {i}: is empty")
        if not is_utf8(text):
            raise InvalidRequest(f"query {i}: holds half of a surrogate pair, which is no character")
