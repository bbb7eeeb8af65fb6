"""Opens an index, and answers queries in one direction: check, encode, candidates, scores, fusion, hits.

An opened index is a snapshot; open it again to see later commits. Nothing here imports Ray, and torch comes in only
when a query has to be encoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from actors.spec import EmbedderSpec, Output
from pipelines.config import Channel, ConfigError, InvalidRequest, SearchOptions, search_options
from pipelines.config.search import spell_out_options
from pipelines.retrieval import fusion as fusing
from pipelines.retrieval.candidates import CandidateGenerator, Candidates
from pipelines.retrieval.channels import open_channels
from pipelines.retrieval.channels.base import ChannelSearch
from pipelines.retrieval.encoder import QueryEncoder, describe_difference
from pipelines.retrieval.encoding import check_queries, encode_queries
from pipelines.retrieval.events import BATCH_EVENTS, BATCH_SECONDS, WAIT_SECONDS, Applied, Event, apply_events
from pipelines.retrieval.explain.explain import explain_row, rows_of
from pipelines.retrieval.explain.explanation import Explanation
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.handle import MEMORY, IndexHandle
from pipelines.retrieval.hits import Hits
from pipelines.retrieval.locate import PassageFinder
from pipelines.retrieval.page import PageReader, ranked_alone
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.request import Request, check_request
from pipelines.retrieval.upsert import delete, upsert
from pipelines.store.conditions import check_filter
from pipelines.store.event_positions import read_event_positions
from pipelines.store.table import Snapshot, open_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from actors.embedders.base import Embedder
    from actors.vision.preprocess import Picture
    from pipelines.config import SearchKeywords


class Index(IndexHandle):
    """Searches one embedder's columns of an index at one version. Safe to share between threads."""

    def __repr__(self) -> str:
        channels = ", ".join(self.channels)
        return f"Index({self.snapshot.uri!r}, {len(self)} rows, version {self.version}, {self.name}: {channels})"

    def __reduce__(self) -> tuple[Callable[[], Index], tuple[()]]:
        """Pickles and copies as the arguments that opened it: unpickling opens the same version again."""
        column_cache, given = self.column_cache, self.encoder.given
        reopen = partial(
            open_index,
            self.snapshot.uri,
            table=self.snapshot.table,
            storage_options=self.snapshot.storage_options,
            embedder=self.name if given is None else given,
            version=self.version,
            memory=column_cache.memory,
            local=column_cache.local,
            disk=column_cache.disk,
            idf_weighting=self.idf_weighting,
            query_expansion=self.query_expansion,
        )
        return reopen, ()

    @cached_property
    def channels(self) -> dict[Channel, ChannelSearch]:
        """Returns the channels that this index has, by name."""
        return open_channels(self.column_cache)

    def warm(self) -> dict[Output, str]:
        """Reads or copies in advance the columns that searches need; reports where each output is then held."""
        self.check_process()
        return self.column_cache.warm()

    @cached_property
    def candidate_generator(self) -> CandidateGenerator:
        """Returns the generator that finds and scores candidates."""
        return CandidateGenerator(self.channels, self.snapshot)

    @property
    def default_fusion(self) -> fusing.FusionRule:
        """Returns the fusion of a search that names none.

        It is measured for the packaged model and for heads that `tridex fit-heads` made, upstream's for others.
        """
        embedder = self.identity.embedders[self.name]
        return fusing.default_fusion(str(embedder["model"]), tuple(self.channels), bool(embedder.get("fitted_heads")))

    @overload
    def search(self, query: str, k: int = 10, **options: Unpack[SearchKeywords]) -> Hits: ...  # type: ignore[overload-overlap]
    @overload
    def search(self, query: Sequence[str], k: int = 10, **options: Unpack[SearchKeywords]) -> list[Hits]: ...
    @spell_out_options
    def search(self, query: str | Sequence[str], k: int = 10, **options: Unpack[SearchKeywords]) -> Hits | list[Hits]:
        """Finds the k best rows for a query, or for each of a list of queries in one pass.

        Options (all by keyword; `pipelines.config.search.SearchOptions` checks them):
            mode: "hybrid" (default), or one channel: "dense", "sparse", "colbert", "bm25".
            where: SQL condition over the table's columns, applied in every channel before its best are taken.
            weights: weight of each channel in the hybrid; fusion: "zscore", "weighted", "rrf" or "dbsf".
                None takes `default_fusion`.
            candidates: rows of each channel that enter the hybrid (200).
            rerank: a second stage over the best `rerank_k` (100): "colbert", a reranker's name, or any object with
                `.score(query, passages)`.
            group_by: a column; at most `group_size` (1) hits for each of its values, k groups. By default `doc_id`: a
                document that was cut into chunks is found once, by its best one. None: every chunk for itself.
            offset: hits (or groups) to skip.
            columns: metadata columns to return; None returns all.
            exact: no approximate index; ColBERT scans the table however large it is.

        Raises InvalidRequest (a ConfigError) that names the argument at fault.

        >>> hits = index.search("the scheduler reads dirty pages", k=3)
        >>> hits.ids
        ['d0010', 'd0013', 'd0011']
        """
        checked = search_options(k=k, **options)
        if isinstance(query, str):
            return self.search_with([query], checked)[0]
        return self.search_with(list(query), checked)

    def search_with(self, queries: Sequence[str], options: SearchOptions) -> list[Hits]:
        """Searches with options that are checked already, such as those of a command, a file or an HTTP request."""
        request = self.request(options)
        return self.answer(self._encode_for(queries, request), request) if queries else []

    @overload
    async def search_async(  # type: ignore[overload-overlap]
        self, query: str, k: int = 10, **options: Unpack[SearchKeywords]
    ) -> Hits: ...
    @overload
    async def search_async(
        self, query: Sequence[str], k: int = 10, **options: Unpack[SearchKeywords]
    ) -> list[Hits]: ...
    @spell_out_options
    async def search_async(
        self, query: str | Sequence[str], k: int = 10, **options: Unpack[SearchKeywords]
    ) -> Hits | list[Hits]:
        """Searches without blocking the event loop: in a thread, in which the kernels release the GIL."""
        return await asyncio.to_thread(partial(self.search, query, k, **options))

    @spell_out_options
    def search_picture(self, picture: Picture, text: str = "", k: int = 10, **options: Unpack[SearchKeywords]) -> Hits:
        """Searches by a picture, or by a picture and a text together; by vector alone if there is no text.

        picture: encoded bytes, a path or a PIL image. Raises InvalidRequest if the index's model sees no pictures,
        PictureError for a picture that cannot be used.
        """
        if not text.strip():
            options["mode"] = "dense"
            if options.get("rerank") is not None:
                raise InvalidRequest("rerank: a reranker reads texts, and this query has none")
        request = self.request(search_options(k=k, **options))
        queries = EncodedQueries((text,), self.encoder.encode_picture(picture, text))
        name = Path(picture).name if isinstance(picture, (str, Path)) else "picture"
        return replace(self.answer(queries, request)[0], query=" + ".join(filter(None, [name, text.strip()])))

    @spell_out_options
    def explain(self, query: str, id: str, **options: Unpack[SearchKeywords]) -> Explanation:
        """Explains why a row has the score that `search(query, **options)` gives it, down to single tokens.

        id: a chunk id, or a document id, which stands for its best chunk. The row need not be among the hits; one
        that no channel finds is scored as if it had been found. Raises InvalidRequest for an id that is not there.
        """
        return self.explain_with(query, id, search_options(**options))

    def explain_with(self, query: str, id: str, options: SearchOptions) -> Explanation:
        """Explains with options that are checked already."""
        request, rows = self.request(options.model_copy(update={"k": 1})), rows_of(self, id)
        queries = self.encode([query])
        (found,) = self.candidates_for(queries, request)
        found = self.candidate_generator.with_rows(queries, found, rows, request.effective_rule)
        return explain_row(self, queries, request, found, rows)

    def request(self, options: SearchOptions) -> Request:
        """Checks options against this index; InvalidRequest names the first wrong one."""
        self.check_process()
        return check_request(options, self.snapshot, self.channels, self.default_fusion, self.filter)

    def filter(self, where: str) -> Filter:
        """Evaluates a SQL condition once for all channels; the last one is cached for the next page or query."""
        check_filter(where)  # what is no text need not have a hash
        return self._filter(where)

    @cached_property
    def _filter(self) -> Callable[[str], Filter]:
        return lru_cache(maxsize=1)(self._evaluated)

    def _evaluated(self, where: str) -> Filter:
        return Filter(self.snapshot.matching_mask(where), self.snapshot.rows)

    def encode(self, queries: Sequence[str]) -> EncodedQueries:
        """Encodes queries for `candidates`; InvalidRequest for one that is empty or not a text."""
        return encode_queries(self, queries, [o for o in self.column_cache.outputs if o in self.channels])

    def _encode_for(self, queries: Sequence[str], request: Request) -> EncodedQueries:
        """Encodes queries if a channel of the request takes vectors: BM25 alone loads no model."""
        if request.takes_text_alone:
            check_queries(queries)
            return EncodedQueries(tuple(queries))
        return self.encode(queries)

    def candidates(
        self,
        queries: EncodedQueries,
        searched: Iterable[Channel],
        n: int,
        where: Filter | None = None,
        exact: bool = False,
        sampled: bool = False,
        rule: fusing.FusionRule | None = None,
    ) -> list[Candidates]:
        """Returns the union of the n best of each searched channel, scored exactly by every channel of the index.

        On a large table ColBERT finds no rows of its own unless `exact`: it ranks what the others find, which then is
        more (`pipelines.retrieval.candidates`). `sampled` scores the index's sample of rows beside them, for z-scores.
        rule: the fusion to come, where only its best rows are wanted.
        """
        return self.candidate_generator.find(queries, searched, n, where, exact, sampled, rule)

    def upsert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Embeds and writes whole documents (`doc_id`, `text`, own columns); see `pipelines.retrieval.upsert`."""
        self.check_process()
        return upsert(self, rows)

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents with all their chunks; returns the rows deleted."""
        self.check_process()
        return delete(self, ids)

    def apply(
        self,
        events: Iterable[Event | None],
        *,
        batch: int = BATCH_EVENTS,
        seconds: float = BATCH_SECONDS,
        wait: float = WAIT_SECONDS,
    ) -> Applied:
        """Applies a feed of changes, each event exactly once by its position; see `pipelines.retrieval.events`."""
        self.check_process()
        return apply_events(self, events, batch=batch, seconds=seconds, wait=wait)

    def applied_positions(self) -> dict[str, int]:
        """Returns the last applied position of each partition of the feeds, as the table is now."""
        options = self.snapshot.storage_options
        return read_event_positions(open_table(self.snapshot.uri, self.snapshot.table, options).dataset) or {}

    def candidates_for(self, queries: EncodedQueries, request: Request) -> list[Candidates]:
        """Returns the candidates that a request ranks, for every query."""
        rule = request.effective_rule
        sampled = rule.fusion == "zscore"
        found = self.candidates(
            queries, request.searched, request.candidates, request.where, request.exact, sampled, rule
        )
        return [self.candidate_generator.with_graph(each, rule) for each in found]

    def answer(self, queries: EncodedQueries, request: Request) -> list[Hits]:
        """Answers queries that are encoded: candidates with scores, their fusion, and the page of hits."""
        if request.mode == "hybrid":
            found = self.candidates_for(queries, request)
        else:
            found = ranked_alone(self.candidate_generator, queries, request)
        return self.page(queries, found, request)

    def page(self, queries: EncodedQueries, found: Sequence[Candidates], request: Request) -> list[Hits]:
        """Fuses the candidates of every query and reads the page of hits."""
        fused = [each.fuse(request.effective_rule) for each in found]
        page = PageReader(self.snapshot, self.candidate_generator, partial(PassageFinder, self))
        if len(queries) > 1:
            page.read_ahead(found, fused, request)
        return [page.hits(queries, i, found[i], fused[i], request) for i in range(len(queries))]


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
    idf_weighting: bool | None = None,
    query_expansion: bool | None = None,
) -> Index:
    """Opens an index at its newest version, or at `version`.

    embedder: the name of one of the index's embedders (None: the promoted one, or the only one); or a loaded
    `Embedder`, or a spec (for a model that moved to another folder, or that needs remote code). Where none is given,
    the model that the index names is loaded when the first query needs it. memory: bytes of stored columns to hold.
    local: a folder for copies of the columns that scoring reads (`pipelines.retrieval.columns.local_copy`), made by
    the first search, at most `disk` bytes of them (None: any number); the rest is read from the table. idf_weighting:
    whether query tokens weigh more where few rows have them (`pipelines.search_indexes.document_frequencies`);
    query_expansion: whether lexical queries match tokens near theirs, too (`pipelines.retrieval.query_expansion`).
    None, for both: for the packaged model and fitted heads; others keep M3's scores.

    Raises ConfigError for a missing index, a table that is no index, and a model that did not build it (naming the
    field that differs).

    >>> index = open_index(uri, embedder=embedder)
    >>> sorted(index.channels)
    ['bm25', 'colbert', 'dense', 'sparse']
    """
    snapshot = open_table(uri, table, storage_options, version)
    name = _embedder_name(snapshot, embedder)
    encoder = QueryEncoder(snapshot.uri, snapshot.identity, name, None if isinstance(embedder, str) else embedder)
    return Index(
        snapshot, encoder, memory, None if local is None else Path(local), disk, idf_weighting, query_expansion
    )


def _embedder_name(snapshot: Snapshot, embedder: str | Embedder | EmbedderSpec | None) -> str:
    """Returns the embedder that is named, the one that a loaded model built, or the promoted one."""
    identity, names = snapshot.identity, ", ".join(snapshot.identity.embedders)
    if isinstance(embedder, str) or embedder is None or isinstance(embedder, EmbedderSpec):
        name = embedder if isinstance(embedder, str) else snapshot.promoted
    else:
        built = [name for name in identity.embedders if describe_difference(identity, name, embedder) is None]
        name = built[0] if len(built) == 1 else snapshot.promoted
    if name is None:
        raise ConfigError(f"embedder: the index has several, name one of {names}, or `tridex promote` one")
    if name not in identity.embedders:
        raise ConfigError(f"embedder: the index has no {name!r}; it has {names}")
    return name
