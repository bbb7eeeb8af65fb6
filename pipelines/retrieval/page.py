"""Builds hits from ranked candidates: reads the rows that may reach the page, scores them by every channel, groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.outputs import IntArray
from pipelines.retrieval.candidates import CandidateGenerator, Candidates
from pipelines.retrieval.channels.base import Ranking
from pipelines.retrieval.grouping import first_page
from pipelines.retrieval.hits import Hit, Hits, Located
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.request import Request
from pipelines.retrieval.rerank import rerank_hits
from pipelines.store.table import Snapshot

Doubles = npt.NDArray[np.float64]
OWN = ("doc_id", "chunk_id", "chunk_index", "text", "source", "start")
"""Columns that every hit needs."""


def ranked_alone(generator: CandidateGenerator, queries: EncodedQueries, request: Request) -> list[Candidates]:
    """Returns one channel's ranking of each query, cut to what can reach the page: only that is then scored."""
    (channel,) = request.searched
    tops = generator.rank_by_one(queries, channel, request.candidates, request.where, request.exact)
    scored = generator.channels if request.scores == "all" else (channel,)
    pages = [truncate_to_page(top, request) for top in tops]
    return [generator.as_candidates(queries, i, channel, page, scored) for i, page in enumerate(pages)]


def truncate_to_page(top: Ranking, request: Request) -> Ranking:
    """Truncates a single-channel ranking to the page, ties included; groups may need all of it."""
    return top if request.grouping else top.first(_depth_with_ties(top.scores, request.depth))


@dataclass(frozen=True)
class PageReader:
    """Builds a request's page of hits from fused candidates."""

    snapshot: Snapshot
    generator: CandidateGenerator
    find_passages: Callable[[EncodedQueries, int, Mapping[str, int]], Callable[[Hit], Located]]
    """Query, its number and the row of each hit to what finds a hit's passage."""
    rows_ahead: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Rows that were read for the pages of several queries together, by position."""

    def read_ahead(self, found: Sequence[Candidates], fused: Sequence[Doubles], request: Request) -> None:
        """Reads the rows with which the pages of several queries begin, in one statement."""
        first = [
            candidates.positions[self._first_places(scores, request)]
            for candidates, scores in zip(found, fused, strict=True)
        ]
        positions = np.unique(np.concatenate(first))
        rows = self.snapshot.take(positions, _columns(request)).to_pylist()
        self.rows_ahead.update(zip(positions.tolist(), rows, strict=True))

    def _first_places(self, fused: Doubles, request: Request) -> npt.NDArray[np.int64]:
        order = np.argsort(-fused, kind="stable")
        return order[: _depth_with_ties(fused[order], _choose_depths(request, len(order))[0])]

    def _read_rows(self, positions: IntArray, request: Request) -> list[dict[str, Any]]:
        if all(position in self.rows_ahead for position in positions.tolist()):
            return [self.rows_ahead[position] for position in positions.tolist()]
        rows: list[dict[str, Any]] = self.snapshot.take(positions, _columns(request)).to_pylist()
        return rows

    def hits(self, queries: EncodedQueries, i: int, found: Candidates, fused: Doubles, request: Request) -> Hits:
        """Returns the page for query i."""
        ranked = self._read(queries, i, found, fused, request)
        if request.reranker is not None:
            ranked = rerank_hits(queries.texts[i], ranked, request.reranker, request.rerank_k)
        page = first_page(ranked, request.k, request.offset, request.grouping)
        hybrid = request.mode == "hybrid"
        return Hits(
            queries.texts[i],
            tuple(replace(hit, rank=request.offset + place) for place, hit in enumerate(page, start=1)),
            request.mode,
            request.rule.fusion if hybrid else None,
            request.rule.weights if hybrid else {},
            queries.n_truncated(i),
        )

    def _read(self, queries: EncodedQueries, i: int, found: Candidates, fused: Doubles, request: Request) -> list[Hit]:
        """Reads the rows that may reach the page, best first; equal scores in the order of chunk ids."""
        order = np.argsort(-fused, kind="stable")
        hits: list[Hit] = []
        for depth in _choose_depths(request, len(order)):
            kept = order[: _depth_with_ties(fused[order], depth)]
            hits = list(self._rows(queries, i, found, fused, kept, request))
            if request.grouping is None or len({request.grouping.key(hit) for hit in hits}) >= request.depth:
                break
        return sorted(hits, key=lambda hit: (-hit.score, hit.chunk_id))

    def _rows(
        self,
        queries: EncodedQueries,
        i: int,
        found: Candidates,
        fused: Doubles,
        places: npt.NDArray[np.int64],
        request: Request,
    ) -> Iterator[Hit]:
        if request.scores == "all":
            scores = self.generator.all_scores(queries, i, found, places)
        else:
            scores = {c: some[places] for c, some in found.scores.items()}
        metadata = [c for c in _columns(request) if c not in OWN]
        rows = self._read_rows(found.positions[places], request)
        positions = {row["chunk_id"]: int(p) for row, p in zip(rows, found.positions[places], strict=True)}
        locate = self.find_passages(queries, i, positions)
        for at, (row, place) in enumerate(zip(rows, places.tolist(), strict=True)):
            by_channel = {str(c): float(values[at]) for c, values in scores.items()}
            kept = {name: row[name] for name in metadata}
            own = {name: row[name] for name in OWN}
            yield Hit(**own, score=float(fused[place]), scores=by_channel, metadata=kept, locate=locate)


def _columns(request: Request) -> list[str]:
    """Lists the columns that a request's hits need."""
    return list(dict.fromkeys([*OWN, *request.columns, *_group_column(request)]))


def _group_column(request: Request) -> tuple[str, ...]:
    return (request.grouping.column,) if request.grouping else ()


def _choose_depths(request: Request, rows: int) -> list[int]:
    """Yields how many rows to read: with groups of one, which usually are most rows, first a few more."""
    if request.grouping is None:
        return [request.depth]
    first = 2 * request.depth
    return [rows] if request.grouping.size > 1 or first >= rows else [first, rows]


def _depth_with_ties(descending: npt.NDArray[Any], depth: int) -> int:
    """Counts the scores that are at least as good as the `depth`-th."""
    if len(descending) <= depth:
        return len(descending)
    return int(np.searchsorted(-descending, -descending[depth - 1], side="right"))
