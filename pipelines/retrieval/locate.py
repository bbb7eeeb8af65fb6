"""Locates the passage of a hit that matched, by ColBERT's and the lexical matches, and its line in the document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipelines.retrieval.explain.explain import ColbertQuery, colbert_matches
from pipelines.retrieval.explain.explanation import join_pieces
from pipelines.retrieval.handle import IndexHandle
from pipelines.retrieval.hits import Hit, Located, Span
from pipelines.retrieval.passages import best_passage, word_strengths
from pipelines.retrieval.queries import EncodedQueries

LEXICAL_SHARE = 0.5
"""What another place of a query's word counts, beside the place that ColBERT matched."""
MIN_SIMILARITY = 0.4
"""A query token that nothing in the text is nearer to than this is taken to have no match there."""


@dataclass(frozen=True)
class PassageFinder:
    """Finds the passages of hits of one query, lazily, once each."""

    index: IndexHandle
    queries: EncodedQueries
    i: int
    positions: Mapping[str, int]
    """Row of each hit, by its chunk id."""
    kept: dict[str, Located] = field(default_factory=dict)

    @cached_property
    def colbert_query(self) -> ColbertQuery:
        """Returns the query as its matches are explained, prepared for the first hit."""
        return ColbertQuery.of(self.index, self.queries, self.i)

    def __call__(self, hit: Hit) -> Located:
        if hit.chunk_id not in self.kept:
            position = self.positions[hit.chunk_id]
            passage = best_passage(hit.text, self._strengths(hit.text, position), hit.start)
            self.kept[hit.chunk_id] = Located(passage, line_of(self.index, hit, position, passage.start))
        return self.kept[hit.chunk_id]

    def _strengths(self, text: str, position: int) -> dict[Span, float]:
        """Scores how relevant each word of a text is to the query; by shared words alone if nothing is encoded."""
        if self.queries.encoded is None or self.queries.encoded.colbert is None:
            return word_strengths(self.queries.texts[self.i], text)
        matches = colbert_matches(self.index, self.colbert_query, position, text)
        words = [w for w in join_pieces(matches, self.queries.texts[self.i], text) if w.similarity >= MIN_SIMILARITY]
        if not words:
            return word_strengths(self.queries.texts[self.i], text)
        found: dict[Span, float] = {}
        for word in words:
            for span in (*word.spans, *_find_word(word.query_word, text)):
                share = 1.0 if span in word.spans else LEXICAL_SHARE
                found[span] = max(found.get(span, 0.0), share * word.part)
        return found


def _find_word(word: str, text: str) -> list[Span]:
    """Returns where a word occurs in a text, ignoring letter case."""
    return [found.span() for found in re.finditer(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)]


def line_of(index: IndexHandle, hit: Hit, position: int, start: int) -> int | None:
    """Returns the line of the document's text that holds character `start`, from 1.

    The chunks before the hit are read for it; they are the rows before it. None if they are not (after an upsert
    into an old index, say).
    """
    own = hit.text.count("\n", 0, start - hit.start)
    if hit.start == 0:
        return 1 + own
    before = np.arange(max(0, position - hit.chunk_index), position)
    rows = index.snapshot.take(before, ["doc_id", "start", "text"]).to_pylist()
    lines, read = 1, 0
    for row in rows:
        if row["doc_id"] != hit.doc_id or row["start"] > read:
            return None
        lines += row["text"].count("\n", read - row["start"], hit.start - row["start"])
        read = min(hit.start, row["start"] + len(row["text"]))
    return lines + own if read == hit.start else None
