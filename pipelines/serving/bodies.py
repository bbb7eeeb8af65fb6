"""Parses request bodies as strict JSON and serialises answers with a fast encoder."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute

from actors.outputs import Array
from pipelines.serving.errors import ApiError


class StrictRequest(Request):
    """Parses a request's body, refusing NaN, lone surrogates and nesting deeper than the limit."""

    async def json(self) -> Any:
        if not hasattr(self, "_strict"):
            self._strict = parse_json(await self.body(), self.app.state.service.limits.nesting)
        return self._strict


class StrictRoute(APIRoute):
    """Routes requests through `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def parse_json(body: bytes, nesting: int) -> Any:
    """Parses a request's JSON; 400 names the syntax error, 413 means that it is nested too deeply."""
    try:
        value = json.loads(body.decode("utf-8"))
    except RecursionError:
        raise ApiError(413, f"the body is nested more than {nesting} levels deep") from None
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start}", None, "invalid_json") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"the body is not JSON: {error.msg} at {place}", None, "invalid_json") from None
    except ValueError as error:  # integers of thousands of digits
        raise ApiError(400, f"the body is not JSON: {error}", None, "invalid_json") from None
    _check(value, "", nesting, nesting)
    return value


def _check(value: Any, path: str, left: int, nesting: int) -> None:
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, path)
    elif isinstance(value, (dict, list)):
        if left == 0:
            raise ApiError(413, f"the body is nested more than {nesting} levels deep")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            if isinstance(name, str) and not name.isascii():
                _check_text(name, path)
            _check(item, f"{path}.{name}" if path else str(name), left - 1, nesting)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ApiError(400, f"{path or 'body'}: must be a finite number", path or None)


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        field = path.encode(errors="replace").decode() or None
        raise ApiError(400, f"{field or 'body'}: holds half of a surrogate pair, which is no text", field) from None


class Json(Response):
    """Serialises an answer as JSON; NaN and infinities become null, bytes become base64."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return pydantic_core.to_json(content, bytes_mode="base64", inf_nan_mode="null", fallback=_fallback)


def _fallback(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def vector_json(vector: Array, encoding: str) -> list[Any] | str:
    """Serialises a vector or a matrix as numbers, or as base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    numbers: list[Any] = vector.astype(np.float32, copy=False).tolist()
    return numbers
