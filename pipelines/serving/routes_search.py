"""Defines routes that search an index: `/v1/search`, `/v1/explain`, `/v1/documents/{id}` and `/v1/indexes`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from pipelines.serving import schemas
from pipelines.serving.answering import Service
from pipelines.serving.bodies import Json, StrictRoute
from pipelines.serving.catalog import View, describe
from pipelines.serving.errors import documented
from pipelines.serving.guard import key_for, service_of
from pipelines.serving.keys import Key
from pipelines.serving.waiting import unless_gone

router = APIRouter(prefix="/v1", tags=["search"], route_class=StrictRoute, responses=documented())
The = Annotated[Service, Depends(service_of)]
Searcher = Annotated[Key, key_for("search")]
IndexName = Annotated[str | None, Query(description="Name or alias of an index; by default the first one.")]


@router.post("/search", response_model=schemas.SearchAnswer)
async def search(body: schemas.SearchBody, request: Request, service: The, key: Searcher) -> Json:
    """Search: the k best rows of each query, with every channel's score."""
    async with service.admitted():
        view, results = await unless_gone(request, service.search(key, body.index, body.queries, body, body.normalised))
    return Json({"index": view.name, "version": view.index.version, "results": results})


@router.post("/explain", response_model=schemas.ExplainAnswer)
async def explain(body: schemas.ExplainBody, request: Request, service: The, key: Searcher) -> Json:
    """Explain why a row has the score that the same search gives it, down to single tokens."""
    async with service.admitted():
        view, explanation = await unless_gone(request, service.explain(key, body.index, body.query, body.id, body))
    return Json({"index": view.name, "version": view.index.version, "explanation": explanation.to_dict()})


@router.get("/documents/{id:path}", response_model=schemas.DocumentAnswer)
async def document(
    id: Annotated[str, Path(description="A document's or a chunk's id; slashes need no escape.")],
    request: Request, service: The, key: Searcher, index: IndexName = None,
) -> Json:  # fmt: skip
    """Return a document with all its chunks, or one chunk."""
    service.check_text(id, "id")
    async with service.admitted():
        view, found = await unless_gone(request, service.document(key, index, id))
    return Json({"index": view.name, "version": view.index.version, "document": found})


@router.get("/indexes", response_model=schemas.IndexesAnswer)
async def indexes(service: The, key: Searcher) -> Json:
    """List the indexes that this server searches, with their current versions."""
    found = await service.on_thread(lambda: list(described(service, key)))
    return Json({"indexes": found, "rerankers": [*service.models.rerankers], "scopes": list(key.scopes)})


def described(service: Service, key: Key) -> Iterator[dict[str, Any]]:
    """Describes every view with the facts that a key may read."""
    for view in service.catalog.views():
        yield description(service, key, view)


def description(service: Service, key: Key, view: View) -> dict[str, Any]:
    """Describes one view with the facts that a key may read."""
    return describe(view, service.catalog.aliases, service.rows_seen(view, key))
