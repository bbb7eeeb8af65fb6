"""`open_index(uri).search(...)`: candidates of every channel, every channel's exact score for each, then one ranking.

An opened index is a snapshot; open it again to see later commits. Nothing here imports Ray, and torch comes in only
when a query has to be encoded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from actors.spec import EmbedderSpec, Output
from pipelines.config import Channel, ConfigError, Fusion
from pipelines.retrieval import fusion as fusing
from pipelines.retrieval.candidates import Candidates, Union
from pipelines.retrieval.channels import (
    ChannelSearch,
    Colbert,
    Dense,
    Filter,
    FullText,
    Queries,
    Ranking,
    Sparse,
)
from pipelines.retrieval.encoder import Encoder
from pipelines.retrieval.explain.explain import explain_row, rows_of
from pipelines.retrieval.explain.explanation import Explanation
from pipelines.retrieval.grouping import Grouping, check_page, first_page
from pipelines.retrieval.handle import MEMORY, Opened
from pipelines.retrieval.hits import Hit, Hits
from pipelines.retrieval.request import Request
from pipelines.retrieval.rerank import Reranker, as_reranker, rerank_hits
from pipelines.retrieval.upsert import delete, upsert
from pipelines.search_indexes.document_frequencies import TokenStatistics, by_rarity, read_statistics
from pipelines.store.schema import Identity
from pipelines.store.table import check_filter, open_table

if TYPE_CHECKING:
    from actors.embedders.base import Embedder
    from actors.vision.preprocess import Picture

MODES = ("hybrid", "dense", "sparse", "colbert", "bm25")


class Index(Opened):
    """One embedder's view of an index, at one version. Safe to share between threads."""

    def __repr__(self) -> str:
        channels = ", ".join(self.channels)
        return f"Index({self.snapshot.uri!r}, {len(self)} rows, version {self.version}, {self.name}: {channels})"

    @cached_property
    def channels(self) -> dict[Channel, ChannelSearch]:
        """The channels that this index has, by name."""
        made: dict[Channel, ChannelSearch] = {}
        if "dense" in self.stored.outputs:
            made["dense"] = Dense(self.stored)
        if "sparse" in self.stored.outputs:
            made["sparse"] = Sparse(self.stored)
        if "colbert" in self.stored.outputs:
            made["colbert"] = Colbert(self.stored, threads=os.cpu_count() or 1)
        if "text" in self.snapshot.indexes():
            made["bm25"] = FullText(self.snapshot)
        return made

    def warm(self) -> dict[Output, str]:
        """Reads or copies now what searches would read or copy first; says where each output is held then."""
        return self.stored.warm()

    @cached_property
    def union(self) -> Union:
        """Finds and scores candidates."""
        return Union(self.channels, len(self))

    @property
    def default_rule(self) -> fusing.Rule:
        """Fusion and weights where a search names none: measured for the packaged model and for heads that
        `tridex fit-heads` made, upstream's for others."""
        embedder = self.identity.embedders[self.name]
        return fusing.default_rule(str(embedder["model"]), tuple(self.channels), bool(embedder.get("fitted_heads")))

    @overload
    def search(self, query: str, k: int = 10, **options: Any) -> Hits: ...
    @overload
    def search(self, query: Sequence[str], k: int = 10, **options: Any) -> list[Hits]: ...
    def search(self, query: str | Sequence[str], k: int = 10, **options: Any) -> Hits | list[Hits]:
        """The k best rows for a query, or for each of a list of queries in one pass.

        Options (all by keyword):
            mode: "hybrid" (default), or one channel: "dense", "sparse", "colbert", "bm25".
            where: SQL condition over the table's columns, applied in every channel before its best are taken.
            weights: weight of each channel in the hybrid; fusion: "zscore", "weighted", "rrf" or "dbsf".
                None takes `default_rule`.
            candidates: rows that each channel brings into the hybrid (200).
            rerank: a second stage over the best `rerank_k` (100): "colbert", a reranker's name, or any object with
                `.score(query, passages)`.
            group_by: a column; at most `group_size` (1) hits for each of its values, k groups. By default `doc_id`: a
                document that was cut into chunks is found once, by its best one. None: every chunk for itself.
            offset: hits (or groups) to skip.
            columns: metadata columns to return; None returns all.
            exact: no approximate index; ColBERT scans the table however large it is.

        Raises ConfigError that names the argument at fault.
        """
        queries = [query] if isinstance(query, str) else list(query)
        request = self.request(k, **options)
        answers = self._answer(self.encode(queries), request) if queries else []
        return answers[0] if isinstance(query, str) else answers

    def search_picture(self, picture: Picture, text: str = "", k: int = 10, **options: Any) -> Hits:
        """As `search`, for a picture, or for a picture and a text together; by vector alone where there is no text.

        picture: encoded bytes, a path or a PIL image. Raises ConfigError where the index's model sees no pictures,
        PictureError for a picture that cannot be used.
        """
        if not text.strip():
            options["mode"] = "dense"
            if options.get("rerank") is not None:
                raise ConfigError("rerank: a reranker reads texts, and this query has none")
        request = self.request(k, **options)
        hits = self._answer(Queries((text,), self.encoder.encode_picture(picture, text)), request)[0]
        name = Path(picture).name if isinstance(picture, (str, Path)) else "picture"
        return replace(hits, query=" + ".join(filter(None, [name, text.strip()])))

    def request(
        self,
        k: int = 10,
        *,
        mode: str = "hybrid",
        where: str | None = None,
        weights: Mapping[Channel, float] | None = None,
        fusion: Fusion | None = None,
        candidates: int = 200,
        rerank: str | Reranker | None = None,
        rerank_k: int = 100,
        group_by: str | None = "doc_id",
        group_size: int = 1,
        offset: int = 0,
        columns: Sequence[str] | None = None,
        exact: bool = False,
    ) -> Request:
        """Checks the options of a search; ConfigError names the one at fault."""
        self._check_mode(mode)
        check_page(k=k, candidates=candidates, rerank_k=rerank_k, group_size=group_size, offset=offset)
        chosen = tuple(self.snapshot.metadata_columns if columns is None else columns)
        self.snapshot.check_columns(chosen, "columns")
        return Request(
            k=k,
            mode=mode,
            rule=fusing.checked_rule(self.default_rule, tuple(self.channels), fusion, weights),
            where=None if where is None else self.filter(where),
            candidates=max(candidates, offset + k, rerank_k if rerank is not None else 0),
            columns=chosen,
            grouping=self._grouping(group_by, group_size),
            offset=offset,
            reranker=None if rerank is None else as_reranker(rerank, tuple(self.channels)),
            rerank_k=rerank_k,
            exact=exact,
        )

    def _grouping(self, column: str | None, size: int) -> Grouping | None:
        """None where every row would be a group of its own."""
        if column is None or (column == "doc_id" and not self.snapshot.has_chunks):
            return None
        self.snapshot.check_columns([column], "group_by")
        return Grouping(column, size)

    def _check_mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ConfigError(f"mode: {mode!r} is unknown; there are {', '.join(MODES)}")
        if mode == "bm25" and mode not in self.channels:
            raise ConfigError("mode: the index has no full-text index over the text; `tridex optimize` builds one")
        if mode != "hybrid" and mode not in self.channels:
            raise ConfigError(f"mode: the index has no {mode} output; it has {', '.join(self.channels)}")

    def filter(self, where: str) -> Filter:
        """A SQL condition, evaluated once for all channels; the last one is kept for the next page or query."""
        check_filter(where)  # what is no text need not have a hash
        return self._filter(where)

    @cached_property
    def _filter(self) -> Callable[[str], Filter]:
        return lru_cache(maxsize=1)(self._evaluated)

    def _evaluated(self, where: str) -> Filter:
        allowed = np.zeros(len(self), bool)
        allowed[self.snapshot.matching(where)] = True
        return Filter(allowed, self.snapshot.rows)

    def encode(self, queries: Sequence[str]) -> Queries:
        """Queries for `candidates`; ConfigError for one that is empty or not a text."""
        for i, text in enumerate(queries):
            if not isinstance(text, str):
                raise ConfigError(f"query {i}: expected a text, got {type(text).__name__}")
            if not text.strip():
                raise ConfigError(f"query {i}: is empty")
        outputs: list[Output] = [o for o in self.stored.outputs if o in self.channels]
        if not outputs or not queries:
            return Queries(tuple(queries))
        encoded, token_weights = self.encoder.encode(queries, outputs), None
        if self.token_statistics is not None:
            words = self.encoder.words(queries) if encoded.colbert is not None else None
            encoded, token_weights = by_rarity(encoded, words, self.token_statistics)
        if encoded.sparse is not None and self.neighbours is not None:
            encoded = replace(encoded, sparse=self.neighbours.expanded(encoded.sparse))
        return Queries(tuple(queries), encoded, token_weights)

    @cached_property
    def token_statistics(self) -> TokenStatistics | None:
        """Token counts for weighing query tokens; None where that is not wanted, or where none are counted yet."""
        return read_statistics(self.snapshot, self.name) if self.rarity else None

    def candidates(
        self,
        queries: Queries,
        searched: Iterable[Channel],
        n: int,
        where: Filter | None = None,
        exact: bool = False,
        sampled: bool = False,
        rule: fusing.Rule | None = None,
    ) -> list[Candidates]:
        """The union of the n best of each searched channel, scored exactly by every channel of the index.

        On a large table ColBERT brings no rows of its own unless `exact`: it ranks what the others bring, which then is
        more (`pipelines.retrieval.candidates`). `sampled` scores the index's sample of rows beside them, for z-scores.
        rule: the fusion to come, where only its best rows are wanted.
        """
        return self.union.find(queries, searched, n, where, exact, sampled, rule)

    def explain(self, query: str, id: str, **options: Any) -> Explanation:
        """Why a row has the score that `search(query, **options)` gives it: the parts, down to single tokens.

        id: a chunk id, or a document id, which stands for its best chunk. The row need not be among the hits; one
        that no channel finds is scored as if it had been found. Raises ConfigError for an id that is not there.
        """
        request, rows = self.request(1, **options), rows_of(self, id)
        queries = self.encode([query])
        (found,) = self._found(queries, request)
        return explain_row(self, queries, request, self.union.with_rows(queries, found, rows), rows)

    async def search_async(self, query: str | Sequence[str], k: int = 10, **options: Any) -> Hits | list[Hits]:
        """`search` without blocking the event loop: it runs in a thread, and the kernels release the GIL."""
        answer: Hits | list[Hits] = await asyncio.to_thread(lambda: self.search(query, k, **options))
        return answer

    def upsert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Embeds and writes whole documents (`doc_id`, `text`, own columns); see `pipelines.retrieval.upsert`."""
        return upsert(self, rows)

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents with all their chunks; returns the rows deleted."""
        return delete(self, ids)

    def _found(self, queries: Queries, request: Request) -> list[Candidates]:
        rule, where, exact = request.effective_rule, request.where, request.exact
        sampled = rule.fusion == "zscore"
        return self.candidates(queries, request.searched, request.candidates, where, exact, sampled, rule)

    def _answer(self, queries: Queries, request: Request) -> list[Hits]:
        if request.mode == "hybrid":
            found = self._found(queries, request)
            fused = [fusing.fuse(f.scores, request.rule, f.sample) for f in found]
        else:
            (channel,) = request.searched
            tops = self._single(queries, channel, request)
            found = [self.union.scored(queries, i, {channel: _kept(top, request)}) for i, top in enumerate(tops)]
            fused = [f.scores[channel].astype(np.float64) for f in found]
        return [self._hits(queries, i, found[i], fused[i], request) for i in range(len(queries))]

    def _single(self, queries: Queries, channel: Channel, request: Request) -> list[Ranking]:
        """One channel's own ranking."""
        search = self.channels[channel]
        if isinstance(search, Colbert) and not (search.scans or request.exact):
            found = self.candidates(queries, [channel], request.candidates, request.where, rule=request.effective_rule)
            return [f.tops[channel] for f in found]
        return search.top(queries, request.candidates, request.where, request.exact)

    def _hits(
        self, queries: Queries, i: int, found: Candidates, fused: npt.NDArray[np.float64], request: Request
    ) -> Hits:
        hits = self._fetch(queries, i, found, fused, request)
        if request.reranker is not None:
            hits = rerank_hits(queries.texts[i], hits, request.reranker, request.rerank_k)
        hybrid = request.mode == "hybrid"
        return Hits(
            queries.texts[i],
            tuple(first_page(hits, request.k, request.offset, request.grouping)),
            request.mode,
            request.rule.fusion if hybrid else None,
            request.rule.weights if hybrid else {},
            0 if queries.encoded is None else int(queries.encoded.n_truncated[i]),
        )

    def _fetch(
        self, queries: Queries, i: int, found: Candidates, fused: npt.NDArray[np.float64], request: Request
    ) -> list[Hit]:
        """Hits for the rows that may reach the page, best first; equal scores in the order of chunk ids."""
        order = np.argsort(-fused, kind="stable")
        for depth in _depths(request, len(order)):
            kept = order[: _depth_with_ties(fused[order], depth)]
            scores = self.union.shown(queries, i, found, kept)
            rows = self.snapshot.take(found.positions[kept], self._fetched_columns(request)).to_pylist()
            hits = [
                _hit(row, float(fused[j]), {c: float(s[place]) for c, s in scores.items()}, request)
                for place, (row, j) in enumerate(zip(rows, kept, strict=True))
            ]
            if request.grouping is None or len({request.grouping.key(hit) for hit in hits}) >= request.depth:
                break
        return sorted(hits, key=lambda hit: (-hit.score, hit.chunk_id))

    def _fetched_columns(self, request: Request) -> list[str]:
        group = [request.grouping.column] if request.grouping else []
        return list(dict.fromkeys(["doc_id", "chunk_id", "text", *request.columns, *group]))


def _depths(request: Request, rows: int) -> list[int]:
    """How many rows to read: for groups of one, which most often are most of the rows, first a few more than groups."""
    if request.grouping is None:
        return [request.depth]
    first = 2 * request.depth
    return [rows] if request.grouping.size > 1 or first >= rows else [first, rows]


def _depth_with_ties(descending: npt.NDArray[Any], depth: int) -> int:
    """How many of the scores are at least as good as the `depth`-th."""
    if len(descending) <= depth:
        return len(descending)
    return int(np.searchsorted(-descending, -descending[depth - 1], side="right"))


def _kept(top: Ranking, request: Request) -> Ranking:
    """What of one channel's ranking can reach the page: no other channel has a say, so only that is scored."""
    n = len(top.scores) if request.grouping else _depth_with_ties(top.scores, request.depth)
    return Ranking(top.positions[:n], top.scores[:n])


def _hit(row: dict[str, Any], score: float, scores: dict[str, float], request: Request) -> Hit:
    names = (*request.columns, *((request.grouping.column,) if request.grouping else ()))
    metadata = {name: row[name] for name in names if name not in ("doc_id", "chunk_id", "text")}
    return Hit(row["doc_id"], row["chunk_id"], score, scores, row["text"], metadata)


def open_index(
    uri: str | Path,
    *,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    embedder: str | Embedder | EmbedderSpec | None = None,
    version: int | None = None,
    memory: int = MEMORY,
    local: str | Path | None = None,
    disk: int | None = None,
    rarity: bool | None = None,
    neighbours: bool | None = None,
) -> Index:
    """Opens an index at its newest version, or at `version`.

    embedder: the name of one of the index's embedders where it has several; or a loaded `Embedder`, or a spec (for a
    model that moved to another folder, or that needs remote code). None loads the model that the index names, when
    the first query needs it. memory: bytes of stored columns to hold. local: a folder for copies of the columns that
    scoring reads (`pipelines.retrieval.columns.local_copy`), made by the first search, at most `disk` bytes of them
    (None: any number); the rest is read from the table. rarity: whether query tokens weigh more where few rows have
    them (`pipelines.search_indexes.document_frequencies`); neighbours: whether lexical queries ask for words like
    theirs, too (`pipelines.retrieval.query_expansion`). None, for both: for the packaged model and fitted heads; others
    keep M3's scores.

    Raises ConfigError for a missing index, a table that is no index, and a model that did not build it (naming the
    field that differs).
    """
    snapshot = open_table(uri, table, storage_options, version)
    name = _embedder_name(snapshot.identity, embedder if isinstance(embedder, str) else None)
    encoder = Encoder(snapshot.uri, snapshot.identity, name, None if isinstance(embedder, str) else embedder)
    return Index(snapshot, encoder, memory, None if local is None else Path(local), disk, rarity, neighbours)


def _embedder_name(identity: Identity, wanted: str | None) -> str:
    names = list(identity.embedders)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise ConfigError(f"embedder: the index has several, name one of {', '.join(names)}")
    if wanted not in names:
        raise ConfigError(f"embedder: the index has no {wanted!r}; it has {', '.join(names)}")
    return wanted
