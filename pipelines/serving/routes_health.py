"""Defines routes for operating the server: `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from pipelines.serving.answering import Service
from pipelines.serving.bodies import Json
from pipelines.serving.errors import documented
from pipelines.serving.guard import service_of

router = APIRouter(tags=["operations"], responses=documented())
The = Annotated[Service, Depends(service_of)]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Report that the process is alive."""
    return {"status": "ok"}


@router.get("/readyz", response_model=dict[str, Any])
async def readyz(service: The) -> Json:
    """Report whether requests are answered at full speed; 503 during warm-up and while the server is draining."""
    served = service.catalog.indexes
    behind = {s.name: s.failure for s in served if s.failure is not None}
    state = {"ready": service.ready, "versions": {s.name: s.version for s in served}, "not_refreshed": behind}
    return Json(state, 200 if service.ready else 503)


@router.get("/metrics", response_class=Response)
async def metrics(service: The) -> Response:
    """Return the metrics in Prometheus's text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
