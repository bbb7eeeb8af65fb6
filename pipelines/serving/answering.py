"""Answers searches, explanations and document look-ups for HTTP and MCP, with the key's row filter applied here only.

Work runs on threads, whose kernels release the GIL; the event loop only waits. Every function takes a view once, so an
answer sees one version of the index.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
import numpy as np
import numpy.typing as npt

from actors.outputs import IntArray
from pipelines.config import CHANNELS, Channel, ConfigError, SearchOptions
from pipelines.retrieval.candidates import Candidates
from pipelines.retrieval.explain.explain import explain_row
from pipelines.retrieval.explain.explanation import Explanation
from pipelines.retrieval.fusion import FusionRule, normalised
from pipelines.retrieval.index import Index
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.request import Request
from pipelines.serving.batching import MicroBatcher
from pipelines.serving.catalog import Catalog, View
from pipelines.serving.errors import ApiError, as_api_error
from pipelines.serving.keys import Key, Keys
from pipelines.serving.metrics import Metrics
from pipelines.serving.models import Models
from pipelines.serving.settings import ServeConfig
from pipelines.serving.writing import Writer
from pipelines.store.table import sql_in

T = TypeVar("T")


class Service:
    """Holds what a server's routes and tools share: indexes, models, keys, limits and the thread pool."""

    def __init__(self, config: ServeConfig, keys: Keys) -> None:
        self.config, self.keys, self.limits = config, keys, config.limits
        self.metrics = Metrics()
        self.catalog = Catalog(config, self.metrics)
        self.threads = ThreadPoolExecutor(max(4, 2 * (os.cpu_count() or 1)), "answer")
        self.models = Models(config, self.catalog, self.batcher, self.on_thread)
        self.writer = Writer(self.catalog)
        self.active = 0
        self.ready = False
        self._queries: dict[str, MicroBatcher[str, EncodedQueries]] = {}
        self._searches: MicroBatcher[EncodedQueries, dict[str, Any]] = self.batcher("searches", search_together, 2)

    def warm_up(self) -> None:
        """Loads models and reads columns so that the first request is as fast as later ones (blocking)."""
        self.catalog.warm_up()
        self.models.warm_up()

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Admits a request, or refuses it with 429 if the maximum number of requests is in progress."""
        if self.active >= self.limits.concurrency:
            self.metrics.refused.inc()
            raise ApiError(429, f"{self.active} requests are being answered; try again", headers={"Retry-After": "1"})
        self.active += 1
        self.metrics.active.set(self.active)
        try:
            with anyio.fail_after(self.limits.answer_seconds):
                yield
        except TimeoutError:
            raise ApiError(504, f"no answer within {self.limits.answer_seconds:g} s; ask for less") from None
        finally:
            self.active -= 1
            self.metrics.active.set(self.active)

    async def on_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a blocking function on the thread pool."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    def batcher(
        self, kind: str, run: Callable[[Any, Sequence[Any]], Sequence[Any]], workers: int = 1
    ) -> MicroBatcher[Any, Any]:
        """Creates a micro-batcher whose batch sizes and queue length are exported as metrics.

        It encodes with one thread where other requests are being answered: 32 short queries take 3.3 ms of processor
        time each, one by one 7.6, and with OpenMP's threads, which spin beside the searches, 25 to 84.
        """

        def counted(group: Any, items: Sequence[Any]) -> Sequence[Any]:
            from actors.compute.resolve import single_torch_thread

            self.metrics.batches.labels(kind).observe(len(items))
            if kind == "searches":
                with self.metrics.stage("search"):
                    return run(group, items)
            alone = kind == "texts" and self.active <= 1
            with self.metrics.stage(f"encode_{kind}"), nullcontext() if alone else single_torch_thread():
                return run(group, items)

        limits = self.limits
        batcher: MicroBatcher[Any, Any] = MicroBatcher(
            counted,
            self.threads,
            limits.batch_queries,
            limits.batch_window_ms / 1000,
            lambda: self.active > 1,
            self.metrics.queued.labels(kind).set,
            workers,
        )
        return batcher

    def _query_batcher(self, view: View) -> MicroBatcher[str, EncodedQueries]:
        if view.name not in self._queries:
            self._queries[view.name] = self.batcher("queries", encode_queries)
        return self._queries[view.name]

    async def search(
        self, key: Key, name: str | None, queries: Sequence[str], options: SearchOptions, normalised: bool = False
    ) -> tuple[View, list[dict[str, Any]]]:
        """Searches for each query; returns the hits as plain values and the view that was searched.

        normalised: each hit has its channels' scores on the fusion's scale, too.
        """
        self.check_options(queries, options)

        async def attempt(view: View) -> list[dict[str, Any]]:
            view = view.with_channels(options.channels)
            request = await self._prepare(view, key, options)
            each = await self._encode(view, queries, request)
            if request.reranker is None and not normalised:
                return await self._searches.submit(SearchCall(view, request), each)
            answer = search_normalised if normalised else search_plain
            return await self.on_thread(self._timed, "search", answer, view.index, each, request)

        return await self._with_retry(name, attempt)

    async def explain(
        self, key: Key, name: str | None, query: str, id: str, options: SearchOptions
    ) -> tuple[View, Explanation]:
        """Explains the score of a row; 404 for an id that the key's filter excludes."""
        self.check_options([query], options)
        self.check_text(id, "id")

        async def attempt(view: View) -> Explanation:
            view = view.with_channels(options.channels)
            request = await self._prepare(view, key, options)
            (queries,) = await self._query_batcher(view).submit(view, [query])
            return await self.on_thread(self._timed, "explain", explain, view, key, queries, request, id)

        return await self._with_retry(name, attempt)

    async def document(self, key: Key, name: str | None, id: str) -> tuple[View, dict[str, Any]]:
        """Returns a document with all its chunks, or one chunk; 404 for an id that the key's filter excludes."""

        async def attempt(view: View) -> dict[str, Any]:
            return await self.on_thread(self._document, view, key, id)

        return await self._with_retry(name, attempt)

    async def _with_retry(self, name: str | None, attempt: Callable[[View], Any]) -> tuple[View, Any]:
        """Retries once at the newest version if the files of the open version have been deleted."""
        view = self.catalog.view(name)
        try:
            return view, await attempt(view)
        except Exception as error:
            failed = as_api_error(error) if _is_request(error) else None
            if failed is not None:
                raise failed from error
            if not await self.on_thread(self.catalog.refresh_one, self.catalog.served(view), True):
                raise as_api_error(error) from error
        view = self.catalog.view(name)
        return view, await attempt(view)

    def check_options(self, queries: Sequence[str], options: SearchOptions) -> None:
        """Checks a search's options against the server's limits."""
        limits = self.limits
        if len(queries) > limits.queries:
            raise ApiError(400, f"query: at most {limits.queries} at once, got {len(queries)}", "query")
        for text in queries:
            self.check_text(text, "query")
        if options.where is not None:
            self.check_text(options.where, "where")
        depth = options.offset + options.k * options.group_size
        for name, requested, most in (
            ("k", depth, limits.k),
            ("rerank_k", options.rerank_k, limits.k),
            ("candidates", options.candidates, limits.candidates),
        ):
            if requested > most:
                raise ApiError(400, f"{name}: at most {most} on this server, got {requested}", name)

    def check_text(self, text: str, field: str) -> None:
        """Refuses with 400 a text longer than the limit for queries, filters and ids."""
        if len(text) > self.limits.query_chars:
            raise ApiError(400, f"{field}: at most {self.limits.query_chars} characters, got {len(text)}", field)

    async def _prepare(self, view: View, key: Key, options: SearchOptions) -> Request:
        """Checks the request against the index and builds the query over the rows that the key may read."""
        if key.filter is None and options.where is None and self.models.is_loaded(options.rerank):
            return self._check(view, key, options)
        return await self.on_thread(self._check, view, key, options)

    def _check(self, view: View, key: Key, options: SearchOptions) -> Request:
        with self.metrics.stage("check"):
            reranker = self._reranker(options.rerank)
            request = view.index.request(options.model_copy(update={"where": None, "rerank": reranker}))
            return replace(request, where=view.filters.find(key, options.where))

    async def _encode(self, view: View, queries: Sequence[str], request: Request) -> list[EncodedQueries]:
        """Encodes queries in a batch shared with other requests; skips the model if only BM25 is searched."""
        if request.takes_text_alone:
            return [EncodedQueries((query,)) for query in queries]
        return await self._query_batcher(view).submit(view, queries)

    def _timed(self, stage: str, function: Callable[..., T], *args: Any) -> T:
        with self.metrics.stage(stage):
            return function(*args)

    def _reranker(self, name: Any) -> Any:
        return name if name is None or name in CHANNELS else self.models.reranker(str(name), "rerank")

    def _document(self, view: View, key: Key, id: str) -> dict[str, Any]:
        snapshot = view.index.snapshot
        rows = visible_rows(view, key, id, ("doc_id", "chunk_id"))
        own = ("doc_id", "chunk_id", "chunk_index", "start", "end", "text", "source")
        with self.metrics.stage("document"):
            chunks = snapshot.take(rows, [*own, *snapshot.metadata_columns]).to_pylist()
        chunks.sort(key=lambda chunk: chunk["chunk_index"])
        return document_of(chunks, snapshot.metadata_columns)

    def rows_seen(self, view: View, key: Key) -> int | None:
        """Counts the rows that a key may read; None means all."""
        allowed = view.filters.find(key, None)
        return None if allowed is None else int(np.count_nonzero(allowed.allowed))


def encode_queries(view: View, texts: Sequence[str]) -> list[EncodedQueries]:
    """Encodes queries in one batch and returns one encoded query per text."""
    encoded = view.index.encode(texts)
    return [encoded.one(i) for i in range(len(texts))]


@dataclass(frozen=True, slots=True)
class SearchCall:
    """Identifies queries that can share a batch: same version of the index, same options, same rows allowed."""

    view: View
    request: Request


def search_together(call: SearchCall, each: Sequence[EncodedQueries]) -> list[dict[str, Any]]:
    """Searches the index for the queries of one batch in one pass."""
    return search_plain(call.view.index, each, call.request)


def search_plain(index: Index, each: Sequence[EncodedQueries], request: Request) -> list[dict[str, Any]]:
    """Searches the index for every query, as `Index.search` does."""
    return [hits.to_dict() for hits in index.answer(EncodedQueries.joined(each), request)]


def search_normalised(index: Index, each: Sequence[EncodedQueries], request: Request) -> list[dict[str, Any]]:
    """Searches like `search_plain`, and adds each hit's channel scores on the scale used for fusion."""
    if request.mode != "hybrid":
        return search_plain(index, each, request)
    return [_search_normalised(index, queries, request) for queries in each]


def _search_normalised(index: Index, queries: EncodedQueries, request: Request) -> dict[str, Any]:
    found = index.candidates_for(queries, request)
    (hits,) = index.page(queries, found, request)
    scales = normalised_scores(index, queries, found[0], request.rule)
    ids = index.snapshot.take(found[0].positions, ["chunk_id"])["chunk_id"].to_pylist()
    places = {chunk_id: place for place, chunk_id in enumerate(ids)}
    answer = hits.to_dict()
    for hit in answer["hits"]:
        hit["normalised"] = {c: float(values[places[hit["chunk_id"]]]) for c, values in scales.items()}
    return answer


def normalised_scores(
    index: Index, queries: EncodedQueries, found: Candidates, rule: FusionRule
) -> dict[Channel, npt.NDArray[np.float64]]:
    """Normalises every channel's scores over all candidates as the fusion does, smoothed; weights are not applied."""
    generator = index.candidate_generator
    scores = generator.all_scores(queries, 0, found, np.arange(len(found.positions)))
    sample = found.sample
    if sample is not None:
        unknown = {c: index.channels[c].scores(queries, 0, generator.sample) for c in scores if c not in sample}
        sample = {**sample, **unknown}
    values = {channel: normalised(rule.fusion, channel, scores, sample) for channel in scores}
    return found.smooth(values, rule)


def explain(view: View, key: Key, queries: EncodedQueries, request: Request, id: str) -> Explanation:
    """Explains the score of a row as `Index.explain` does; 404 if the key's filter excludes the row."""
    index, rows = view.index, visible_rows(view, key, id)
    (found,) = index.candidates_for(queries, request)
    found = index.candidate_generator.with_rows(queries, found, rows, request.effective_rule)
    return explain_row(index, queries, request, found, rows)


def visible_rows(view: View, key: Key, id: str, columns: Sequence[str] = ("chunk_id", "doc_id")) -> IntArray:
    """Returns the positions of a chunk, or of a document's chunks, that the key may read; 404 if there are none."""
    allowed = view.filters.find(key, None)
    for column in columns:
        rows = view.index.snapshot.matching(sql_in(column, [id]))
        seen = rows if allowed is None else rows[allowed.allowed[rows]]
        if len(seen):
            return seen
    raise ApiError(404, f"id: there is no document or chunk {id!r}", "id")


def document_of(chunks: Sequence[Mapping[str, Any]], metadata: Sequence[str]) -> dict[str, Any]:
    """Builds the answer for one document: the values that its chunks share, and the values of each chunk."""
    first = chunks[0]
    return {
        "doc_id": first["doc_id"],
        "source": first["source"],
        "metadata": {name: first[name] for name in metadata},
        "chunks": [{name: chunk[name] for name in ("chunk_id", "start", "end", "text")} for chunk in chunks],
    }


def _is_request(error: Exception) -> bool:
    """Returns whether an error comes from the request or from memory, so that a retry would not help."""
    translated = error if isinstance(error, ApiError) else None
    if translated is None and isinstance(error, (ConfigError, MemoryError, TypeError)):
        translated = as_api_error(error)
    return translated is not None and translated.code != "index_unavailable"
