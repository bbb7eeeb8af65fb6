"""Defines routes that write, for keys with the scope `write`: `POST` and `DELETE /v1/documents`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from pipelines.serving import schemas
from pipelines.serving.answering import Service
from pipelines.serving.bodies import Json, StrictRoute
from pipelines.serving.errors import documented
from pipelines.serving.guard import key_for, service_of
from pipelines.serving.keys import Key
from pipelines.serving.routes_models import check_count

router = APIRouter(prefix="/v1", tags=["documents"], route_class=StrictRoute, responses=documented(409))
The = Annotated[Service, Depends(service_of)]
Author = Annotated[Key, key_for("write")]


@router.post("/documents", response_model=schemas.UpsertAnswer)
async def upsert(body: schemas.UpsertBody, service: The, key: Author) -> Json:
    """Write documents. A write that has begun is finished, whether or not its client waits for it."""
    check_count(service, len(body.documents), "documents")
    view = service.catalog.view(body.index)
    rows = [document.model_dump() for document in body.documents]
    async with service.admitted():
        count, version = await service.on_thread(service.writer.upsert, view, key, rows)
    return Json({"index": view.name, "version": version, "upserted": count})


@router.delete("/documents", response_model=schemas.DeleteAnswer)
async def delete(body: schemas.DeleteBody, service: The, key: Author) -> Json:
    """Delete documents with all their chunks; ids that are not there are no error."""
    check_count(service, len(body.ids), "ids")
    view = service.catalog.view(body.index)
    async with service.admitted():
        count, version = await service.on_thread(service.writer.delete, view, key, body.ids)
    return Json({"index": view.name, "version": version, "deleted_rows": count})
