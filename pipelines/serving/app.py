"""Builds the ASGI application, the same for one uvicorn process and for every Ray Serve replica."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from pipelines.serving import routes_documents, routes_health, routes_models, routes_page, routes_search
from pipelines.serving.answering import Service
from pipelines.serving.errors import add_error_handlers
from pipelines.serving.guard import Guard
from pipelines.serving.keys import read_keys
from pipelines.serving.mcp_tools import McpEndpoint
from pipelines.serving.settings import ServeConfig

log = logging.getLogger("tridex.serve")
DESCRIPTION = (
    "Hybrid search over an index of tridex, with explanations; embeddings, reranking and BGE-M3's three outputs. "
    'Errors are JSON: `{"error": {"code", "message", "field"}}`.'
)


def open_service(config: ServeConfig) -> Service:
    """Reads the keys and opens the indexes. ConfigError names the index, the key or the alias at fault."""
    service = Service(config, read_keys(config.keys, config.open_writes))
    service.catalog.open()
    return service


def create_app(config: ServeConfig, mcp: Callable[[Service], McpEndpoint] = McpEndpoint) -> FastAPI:
    """Opens the indexes and builds the application; ConfigError as from `open_service`. mcp: what answers `/mcp`."""
    service = open_service(config)
    app = FastAPI(
        title="tridex", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=_lifespan
    )
    app.state.service = service
    add_error_handlers(app)
    for routes in (routes_search, routes_documents, routes_models, routes_health, routes_page):
        app.include_router(routes.router)
    app.state.mcp = mcp(service)
    app.router.routes.append(Route("/mcp", app.state.mcp, include_in_schema=False))
    app.add_middleware(Guard, service=service)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Warms up the indexes and polls for new versions in the background until the server stops."""
    service: Service = app.state.service
    following = asyncio.create_task(follow(service))
    try:
        async with app.state.mcp.start().run():
            yield
    finally:
        service.ready = False
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        service.threads.shutdown(wait=False, cancel_futures=True)


async def follow(service: Service) -> None:
    """Warms up if configured, then polls for new index versions until it is cancelled."""
    if service.config.prewarm:
        await service.on_thread(service.warm_up)
    service.ready = True
    while True:
        await asyncio.sleep(service.config.refresh_seconds)
        await service.on_thread(service.catalog.refresh)
