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
from pipelines.store.conditions import check_is_text
from pipelines.store.embedder_choice import check_channels, choose_embedders
from pipelines.store.event_positions import read_event_positions
from pipelines.store.table import Snapshot, open_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from actors.embedders.base import Embedder
    from actors.vision.preprocess import Picture
    from pipelines.config import SearchKeywords


SINGLE_OUTPUT_CLASSES = frozenset({"sparse-encoder", "multi-vector-encoder"})
"""Classes of models that give one output, and no dense vectors."""


class Index(IndexHandle):
    """Searches an index at one version, by the columns of one embedder or of one per channel. Thread-safe."""

    def __repr__(self) -> str:
        names, several = self.embedder_names, len(set(self.embedder_names.values())) > 1
        channels = ", ".join(f"{c} by {names[c]}" if several and c in names else c for c in self.channels)
        shown = channels if several else f"{self.name}: {channels}"
        return f"Index({self.snapshot.uri!r}, {len(self)} rows, version {self.version}, {shown})"

    def __reduce__(self) -> tuple[Callable[[], Index], tuple[()]]:
        """Pickles and copies as the arguments that opened it: unpickling opens the same version again."""
        column_cache = self.column_cache
        reopen = partial(
            open_index,
            self.snapshot.uri,
            table=self.snapshot.table,
            storage_options=self.snapshot.storage_options,
            embedder={e.name: e.given for e in self.encoders.values() if e.given is not None},
            channels={str(output): name for output, name in self.embedder_names.items()},
            version=self.version,
            memory=column_cache.memory,
            local=column_cache.local,
            disk=column_cache.disk,
            idf_weighting=self.given_weighting,
            query_expansion=self.given_expansion,
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

        It is measured for the packaged model and for heads that `tridex fit-heads` made, upstream's for other models
        with all outputs; channels of models that were made for one output are joined by weights of their own.
        """
        outputs, available = self.column_cache.outputs, tuple(self.channels)
        several = len(set(self.embedder_names.values())) > 1
        if several or any(self.column_cache.embedder(o).get("model_class") in SINGLE_OUTPUT_CLASSES for o in outputs):
            return fusing.fusion_of_separate_models(available)
        embedder = self.identity.embedders[self.name]
        return fusing.default_fusion(str(embedder["model"]), available, bool(embedder.get("fitted_heads")))

    def with_channels(self, channels: Mapping[str, str] | None) -> Index:
        """Returns the index with another embedder behind each of these outputs; itself for None or the same ones.

        Loaded models are shared; columns are held apart. channels: see `open_index`. Raises InvalidRequest.
        """
        if channels is None or dict(channels) == self.embedder_names:
            return self
        chosen = check_channels(self.identity, channels)
        return self._with_channels(tuple(chosen.items()))

    @cached_property
    def _with_channels(self) -> Callable[[tuple[tuple[Output, str], ...]], Index]:
        return lru_cache(maxsize=4)(self._reopened)

    def _reopened(self, chosen: tuple[tuple[Output, str], ...]) -> Index:
        loaded = {encoder.name: encoder for encoder in self.encoders.values()}
        encoders = open_encoders(self.snapshot, dict(chosen), loaded)
        cache = self.column_cache
        return Index(
            self.snapshot, encoders, cache.memory, cache.local, cache.disk, self.given_weighting, self.given_expansion
        )

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
            channels: the embedder behind each output, {"dense": "qwen", "sparse": "splade"}; None: as it was opened.
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
        index = self.with_channels(options.channels)
        request = index.request(options)
        return index.answer(index._encode_for(queries, request), request) if queries else []

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
        index, rows = self.with_channels(options.channels), rows_of(self, id)
        request = index.request(options.model_copy(update={"k": 1}))
        queries = index.encode([query])
        (found,) = index.candidates_for(queries, request)
        found = index.candidate_generator.with_rows(queries, found, rows, request.effective_rule)
        return explain_row(index, queries, request, found, rows)

    def request(self, options: SearchOptions) -> Request:
        """Checks options against this index; InvalidRequest names the first wrong one."""
        self.check_process()
        return check_request(options, self.snapshot, self.channels, self.default_fusion, self.filter)

    def filter(self, where: str) -> Filter:
        """Evaluates a SQL condition once for all channels; the last one is cached for the next page or query."""
        check_is_text(where)  # what is no text need not have a hash
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
    embedder: str | Embedder | EmbedderSpec | Mapping[str, Embedder | EmbedderSpec] | None = None,
    channels: Mapping[str, str] | None = None,
    version: int | None = None,
    memory: int = MEMORY,
    local: str | Path | None = None,
    disk: int | None = None,
    idf_weighting: bool | None = None,
    query_expansion: bool | None = None,
) -> Index:
    """Opens an index at its newest version, or at `version`.

    embedder: the name of one of the index's embedders; or a loaded `Embedder`, or a spec (for a model that moved to
    another folder, or that needs remote code), or several of them by name. Where none is given, the model that the
    index names is loaded when the first query needs it. channels: the embedder behind each output, {"dense": "qwen",
    "sparse": "splade", "colbert": "late"}, searched as one hybrid. Without both: the choice in the index's config, the
    promoted embedder, or the only one with each output. memory: bytes of stored columns to hold. local: a folder for
    copies of the columns that scoring reads (`pipelines.retrieval.columns.local_copy`), made by the first search, at
    most `disk` bytes of them (None: any number); the rest is read from the table. idf_weighting: whether query tokens
    weigh more where few rows have them (`pipelines.search_indexes.document_frequencies`); query_expansion: whether
    lexical queries match tokens near theirs, too (`pipelines.retrieval.query_expansion`). None, for both: for the
    packaged model and fitted heads; others keep M3's scores.

    Raises ConfigError for a missing index, a table that is no index, and a model that did not build it (naming the
    field that differs).

    >>> index = open_index(uri, embedder=embedder)
    >>> sorted(index.channels)
    ['bm25', 'colbert', 'dense', 'sparse']
    """
    snapshot = open_table(uri, table, storage_options, version)
    chosen = _choose_embedders(snapshot, embedder, channels)
    encoders = open_encoders(snapshot, chosen, _given_encoders(snapshot, chosen, embedder))
    return Index(
        snapshot, encoders, memory, None if local is None else Path(local), disk, idf_weighting, query_expansion
    )


def _choose_embedders(
    snapshot: Snapshot,
    embedder: str | Embedder | EmbedderSpec | Mapping[str, Embedder | EmbedderSpec] | None,
    channels: Mapping[str, str] | None,
) -> dict[Output, str]:
    """Returns the embedder of each output: those that are named, the one that a loaded model built, or the default."""
    identity, named = snapshot.identity, embedder if isinstance(embedder, str) else None
    if channels is None and not isinstance(embedder, (str, EmbedderSpec, Mapping, type(None))):
        built = [name for name in identity.embedders if describe_difference(identity, name, embedder) is None]
        named = built[0] if len(built) == 1 else snapshot.promoted
    return choose_embedders(identity, named, channels, snapshot.schema.metadata)


def open_encoders(
    snapshot: Snapshot, chosen: Mapping[Output, str], given: Mapping[str, QueryEncoder]
) -> dict[Output, QueryEncoder]:
    """Returns the encoder of each output, those that are given or new ones; one per embedder. Loads no model."""
    new = {n: QueryEncoder(snapshot.uri, snapshot.identity, n) for n in set(chosen.values()) - given.keys()}
    encoders = {**new, **given}
    return {output: encoders[name] for output, name in chosen.items()}


def _given_encoders(
    snapshot: Snapshot,
    chosen: Mapping[Output, str],
    embedder: str | Embedder | EmbedderSpec | Mapping[str, Embedder | EmbedderSpec] | None,
) -> dict[str, QueryEncoder]:
    """Returns encoders of the models or specs that a caller passed in. ConfigError if it is unclear which they are."""
    if embedder is None or isinstance(embedder, str):
        return {}
    names = list(dict.fromkeys(chosen.values()))
    if not isinstance(embedder, Mapping):
        if len(names) > 1:
            raise ConfigError(f"embedder: this search takes {', '.join(names)}; give a mapping of names to models")
        embedder = {names[0]: embedder}
    unknown = next((name for name in embedder if name not in snapshot.identity.embedders), None)
    if unknown is not None:
        raise ConfigError(f"embedder: the index has no {unknown!r}; it has {', '.join(snapshot.identity.embedders)}")
    return {name: QueryEncoder(snapshot.uri, snapshot.identity, name, model) for name, model in embedder.items()}
