"""Authenticates requests and bounds the size and duration of their bodies (ASGI middleware)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Depends, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.errors import ApiError
from pipelines.serving.keys import Key
from pipelines.serving.keys import Scope as KeyScope

if TYPE_CHECKING:
    from pipelines.serving.answering import Service

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics", "/openapi.json"})
"""Paths answered without a key; none returns document data."""
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", ""})
CLOSE = {"Connection": "close"}
"""Closes the connection, so that an unread rest of a body is not parsed as the next request."""
PORT = re.compile(r":\d+$")
SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Guard:
    """Checks keys, bodies and hosts, and counts responses. Plain ASGI: costs about 50 microseconds per request."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *SECURITY_HEADERS]}
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_host(headers)
            scope.setdefault("state", {})["key"] = self._key(scope["path"], headers)
            await self.app(scope, self._bound_body(headers, receive), watched)
        except ApiError as refused:
            await refused.response()(scope, receive, watched)
        finally:
            self._count(scope, status, time.perf_counter() - begun)

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Refuses host names other than this machine's on a server without keys, against DNS rebinding."""
        if self.service.keys.anonymous is None or self.service.config.any_host:
            return
        origin = headers.get("origin", "").partition("://")[2]
        for host in (headers.get("host", ""), origin):
            if PORT.sub("", host) not in LOCAL_HOSTS:
                raise ApiError(403, "this server has no keys and answers to localhost only")

    def _key(self, path: str, headers: Mapping[str, str]) -> Key | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = self.service.keys.find(token.strip() if scheme.lower() == "bearer" else None)
        if key is None and path not in OPEN_PATHS:
            raise ApiError(401, "a key is needed: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"})
        return key

    def _bound_body(self, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Limits the size of a body and the time in which it must arrive."""
        limits, read, deadline = self.service.limits, 0, time.monotonic() + self.service.limits.body_seconds
        too_large = ApiError(413, f"the body is longer than {limits.body_bytes} bytes", headers=CLOSE)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > limits.body_bytes:
            raise too_large
        whole = False

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except (TimeoutError, asyncio.TimeoutError):
                raise ApiError(408, f"the body took longer than {limits.body_seconds:g} s", headers=CLOSE) from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > limits.body_bytes:
                raise too_large
            return message

        return bounded

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", None) or ("/mcp" if scope["path"].startswith("/mcp") else "unknown")
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
        self.service.metrics.requests.labels(path, method, str(status)).inc()
        self.service.metrics.latency.labels(path).observe(seconds)


def service_of(request: Request) -> Service:
    """Returns the service of the application that received a request."""
    service: Service = request.app.state.service
    return service


def key_for(scope: KeyScope) -> Any:
    """Builds a dependency that returns the request's key; 403 if the key lacks a scope."""

    def check(request: Request) -> Key:
        key: Key = request.state.key
        if not key.may(scope):
            raise ApiError(403, f"key {key.name!r} has no scope {scope}")
        return key

    return Depends(check)
