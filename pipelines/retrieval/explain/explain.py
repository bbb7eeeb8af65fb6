"""Explains one row of one query: the fusion's parts, and below them the tokens that matched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.codecs.pooling import pooled_groups
from actors.outputs import Array, IntArray, MultiVectors, SparseVectors
from pipelines.config import InvalidRequest
from pipelines.retrieval import fusion as fusing
from pipelines.retrieval.candidates import Candidates
from pipelines.retrieval.explain.explanation import ColbertMatch, Explanation, Span, SparseMatch, channel_parts
from pipelines.retrieval.handle import IndexHandle
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.request import Request
from pipelines.retrieval.scoring.maxsim import best_matches, normalised_weights
from pipelines.store.table import sql_in


class Tokens:
    """The tokens of one stored text as the model read it: those with a ColBERT vector, and where each stands.

    ids: int64 (m,), all but the first token. spans: (m, 2) characters, -1 for special and instruction tokens.
    """

    def __init__(self, index: IndexHandle, text: str) -> None:
        embedder = index.encoder.embedder
        self.tokenizer = embedder.tokenizer
        self.ids = embedder.tokenise([text], "passage").ids[1:].astype(np.int64)
        self.spans = aligned_spans(self.ids, *self.tokenizer.offsets(text))

    def name(self, token_id: int) -> str:
        return str(self.tokenizer.decode([token_id])).strip()

    def text_of(self, members: IntArray) -> tuple[tuple[str, ...], tuple[Span, ...]]:
        """Returns names and places of those of the tokens that stand in the text."""
        inside = [i for i in members if self.spans[i, 0] >= 0]
        names = tuple(self.name(int(self.ids[i])) for i in inside)
        return names, tuple((int(self.spans[i, 0]), int(self.spans[i, 1])) for i in inside)


def aligned_spans(model_ids: Array, text_ids: Array, starts: Array, ends: Array) -> npt.NDArray[np.int64]:
    """Places of the model's tokens in the text. The model saw the text's tokens cut at the end, perhaps after an
    instruction and before special tokens; the longest run of equal ids is where they are."""
    spans = np.full((len(model_ids), 2), -1, np.int64)
    best_shift, best_length = 0, 0
    for shift in range(len(model_ids)):
        room = min(len(model_ids) - shift, len(text_ids))
        if room <= best_length:
            break
        same = model_ids[shift : shift + room] == text_ids[:room]
        length = room if same.all() else int(same.argmin())
        if length > best_length:
            best_shift, best_length = shift, length
    spans[best_shift : best_shift + best_length, 0] = starts[:best_length]
    spans[best_shift : best_shift + best_length, 1] = ends[:best_length]
    return spans


def sparse_matches(
    index: IndexHandle, queries: EncodedQueries, position: int, tokens: Tokens
) -> tuple[SparseMatch, ...]:
    """Shared tokens, the largest product first; the products sum to the channel's score."""
    row = index.column_cache.take("sparse", np.array([position]))
    assert isinstance(row, SparseVectors)
    query_ids, query_weights = queries.sparse(0)
    own = list(dict.fromkeys(index.encoder.token_ids(queries.texts)[0].tolist()))
    shared, mine, theirs = np.intersect1d(query_ids, row.token_ids, return_indices=True)
    matches = []
    for token_id, i, j in zip(shared.tolist(), mine, theirs, strict=True):
        weights = float(query_weights[i]), float(row.weights[j])
        _, spans = tokens.text_of(np.flatnonzero(tokens.ids == token_id))
        asking = index.query_expander.sources_of(own, token_id) if index.query_expander else ()
        names = tokens.name(token_id), tuple(map(tokens.name, asking))
        matches.append(SparseMatch(names[0], token_id, *weights, weights[0] * weights[1], spans, names[1]))
    return tuple(sorted(matches, key=lambda match: -match.product))


def colbert_matches(
    index: IndexHandle, queries: EncodedQueries, position: int, tokens: Tokens
) -> tuple[ColbertMatch, ...]:
    """Returns one match a query token, in the order of the query; the parts sum to the channel's score."""
    row = index.column_cache.take("colbert", np.array([position]))
    assert isinstance(row, MultiVectors)
    if not len(row.vectors):
        return ()
    vectors, weights = queries.colbert(0)
    similarities, best = best_matches(vectors, row, index.column_cache.codec)
    pooling = str(index.column_cache.embedder["colbert_pooling"])
    groups = pooled_groups(np.array([0, len(tokens.ids)]), pooling, tokens.ids)
    query_ids, _ = index.encoder.token_ids(queries.texts)
    shares = normalised_weights(len(vectors), weights)
    return tuple(
        ColbertMatch(tokens.name(int(q)), names, float(s), float(w), float(s * w), spans)
        for q, s, w, vector in zip(query_ids, similarities, shares, best, strict=True)
        for names, spans in [tokens.text_of(np.flatnonzero(groups == vector))]
    )


def rows_of(index: IndexHandle, id: str) -> IntArray:
    """Returns positions of a chunk, or of all chunks of a document."""
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
    fused = fusing.fuse(found.scores, rule, found.sample)
    places = np.searchsorted(found.positions, rows)
    place = int(places[np.argmax(fused[places])])
    position = int(found.positions[place])
    (row,) = index.snapshot.take(np.array([position]), ["doc_id", "chunk_id", "text"]).to_pylist()
    tokens = Tokens(index, row["text"]) if {"sparse", "colbert"} & found.scores.keys() else None
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
            {c: float(part[place]) for c, part in fusing.parts(found.scores, rule, found.sample).items()},
        ),
        sparse=sparse_matches(index, queries, position, tokens) if tokens and "sparse" in found.scores else (),
        colbert=colbert_matches(index, queries, position, tokens) if tokens and "colbert" in found.scores else (),
    )
