"""Explains one row of one query: the fusion's parts, and below them the tokens that matched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.codecs.codec import Codec
from actors.codecs.pooling import pooled_groups
from actors.outputs import IntArray, MultiVectors, SparseVectors
from pipelines.config import InvalidRequest
from pipelines.retrieval.candidates import Candidates
from pipelines.retrieval.explain.explanation import ColbertMatch, Explanation, SparseMatch, channel_parts
from pipelines.retrieval.explain.tokens import Tokens
from pipelines.retrieval.handle import IndexHandle
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.request import Request
from pipelines.retrieval.scoring.maxsim import best_matches, normalised_weights
from pipelines.store.table import sql_in


def sparse_matches(
    index: IndexHandle, queries: EncodedQueries, i: int, position: int, text: str
) -> tuple[SparseMatch, ...]:
    """Returns the tokens that query i and a row share, the largest product first; they sum to the channel's score.

    text: the row's. A token that the model added to it (SPLADE's expansion) has no span.
    """
    tokens = Tokens(index.encoders["sparse"], text)
    row = index.column_cache.take("sparse", np.array([position]))
    assert isinstance(row, SparseVectors)
    query_ids, query_weights = queries.sparse(i)
    encoder, expander = index.encoders["sparse"], index.query_expander_of("sparse")
    own = list(dict.fromkeys(encoder.token_ids([queries.texts[i]])[0].tolist())) if expander else []
    shared, mine, theirs = np.intersect1d(query_ids, row.token_ids, return_indices=True)
    matches = []
    for token_id, a, b in zip(shared.tolist(), mine, theirs, strict=True):
        weights = float(query_weights[a]), float(row.weights[b])
        _, spans = tokens.text_of(np.flatnonzero(tokens.ids == token_id))
        expanded_from = expander.sources_of(own, token_id) if expander else ()
        names = tokens.name(token_id), tuple(map(tokens.name, expanded_from))
        matches.append(SparseMatch(names[0], token_id, *weights, weights[0] * weights[1], spans, names[1]))
    return tuple(sorted(matches, key=lambda match: -match.product))


@dataclass(frozen=True, slots=True, eq=False)
class ColbertQuery:
    """Holds a query as its ColBERT matches are explained: tokens, vectors as the codec scores them, and their shares.

    Made once per query: tokens and transformed vectors are the same for all hits.
    """

    tokens: Tokens
    vectors: npt.NDArray[np.float32]
    codec: Codec
    shares: npt.NDArray[np.float32]

    @classmethod
    def of(cls, index: IndexHandle, queries: EncodedQueries, i: int) -> ColbertQuery:
        """Prepares query i."""
        vectors, weights = queries.colbert(i)
        transformed, codec = index.column_cache.codec.transform_query(vectors)
        tokens = Tokens(index.encoders["colbert"], queries.texts[i], "query")
        return cls(tokens, transformed, codec, normalised_weights(len(vectors), weights))


def colbert_matches(index: IndexHandle, query: ColbertQuery, position: int, text: str) -> tuple[ColbertMatch, ...]:
    """Returns one match per token of a query, in its order; the parts sum to the channel's score. text: the row's."""
    row = index.column_cache.take("colbert", np.array([position]))
    assert isinstance(row, MultiVectors)
    if not len(row.vectors):
        return ()
    tokens = Tokens(index.encoders["colbert"], text)
    similarities, best = best_matches(query.vectors, row, query.codec)
    pooling = str(index.column_cache.embedder("colbert")["colbert_pooling"])
    groups = pooled_groups(np.array([0, len(tokens.ids)]), pooling, tokens.ids)
    matches = []
    for q, (similarity, share, vector) in enumerate(zip(similarities, query.shares, best, strict=True)):
        names, spans = tokens.text_of(np.flatnonzero(groups == vector))
        token_id, numbers = int(query.tokens.ids[q]), (float(similarity), float(share), float(similarity * share))
        continues = bool(tokens.tokenizer.continuing[token_id])
        name, span = query.tokens.name(token_id), query.tokens.span(q)
        matches.append(ColbertMatch(name, names, *numbers, spans, span, continues))
    return tuple(matches)


def rows_of(index: IndexHandle, id: str) -> IntArray:
    """Returns the positions of a chunk, or of all chunks of a document."""
    if not isinstance(id, str):
        raise InvalidRequest(f"id: expected a string, got {type(id).__name__}")
    for column in ("chunk_id", "doc_id"):
        rows = index.snapshot.matching(sql_in(column, [id]))
        if len(rows):
            return rows
    raise InvalidRequest(f"id: the index has no document or chunk {id!r}")


def explain_row(
    index: IndexHandle, queries: EncodedQueries, request: Request, found: Candidates, rows: IntArray
) -> Explanation:
    """Explains the best of some rows that are among the candidates. See `Index.explain`."""
    rule = request.effective_rule
    fused = found.fuse(rule)
    places = np.searchsorted(found.positions, rows)
    place = int(places[np.argmax(fused[places])])
    position = int(found.positions[place])
    (row,) = index.snapshot.take(np.array([position]), ["doc_id", "chunk_id", "text"]).to_pylist()
    has_sparse, has_colbert = "sparse" in found.scores, "colbert" in found.scores
    was_found = any(position in top.positions for top in found.tops.values())
    return Explanation(
        query=queries.texts[0],
        **row,
        rank=1 + int((fused > fused[place]).sum()) if was_found else 0,
        score=float(fused[place]),
        fusion=rule.fusion if request.mode == "hybrid" else request.mode,
        channels=channel_parts(
            {c: float(scores[place]) for c, scores in found.scores.items()},
            {c: float(weight) for c, weight in rule.weights.items()},
            {c: float(part[place]) for c, part in found.parts(rule).items()},
        ),
        sparse=sparse_matches(index, queries, 0, position, row["text"]) if has_sparse else (),
        colbert=colbert_matches(index, ColbertQuery.of(index, queries, 0), position, row["text"])
        if has_colbert
        else (),
    )
