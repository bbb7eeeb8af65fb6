"""Converts every failure to one JSON form: `{"error": {"code", "message", "field"}}`.

Messages name the request's fault. A fault of the server is logged, and the answer holds no more than a code
and the request's id: paths, addresses and tracebacks stay inside.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from pipelines.config import ConfigError, InvalidRequest, SearchOptions, WorkFailed
from pipelines.config.describe import PROBLEMS, find_faults

log = logging.getLogger("tridex.serve")

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    429: "overloaded",
    500: "internal",
    503: "unavailable",
    504: "timeout",
}
FIELD = re.compile(r"^(?:query \d+|[a-z_]+(?:\.[A-Za-z0-9_]+)*)(?=: )")
"""How messages of ConfigError begin that are about an argument; others name files and addresses."""


class ErrorDetail(BaseModel):
    """Describes an error: a code for programs, a sentence for people, and the request field at fault."""

    code: str
    message: str
    field: str | None = Field(None, description="Path of the field at fault, as in weights.dense")


class ErrorBody(BaseModel):
    """Holds the error of a request."""

    error: ErrorDetail


class ApiError(HTTPException):
    """Ends a request with a status, an error code, a message and the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        field: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code or CODES[status]
        self.field = field

    def response(self) -> JSONResponse:
        return error_response(self.status_code, self.detail, self.field, self.code, dict(self.headers or {}))


def error_response(
    status: int,
    message: str,
    field: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Builds the JSON response of an error."""
    detail = ErrorDetail(code=code or CODES.get(status, "error"), message=_printable(message), field=field)
    return JSONResponse(ErrorBody(error=detail).model_dump(), status, headers)


def as_api_error(error: BaseException) -> ApiError:
    """Converts exceptions of searching and encoding to API errors; others are logged and become a plain 500."""
    if isinstance(error, ApiError):
        return error
    if out_of_memory(error):
        log.error("out of memory", exc_info=error)
        return ApiError(503, "the model ran out of memory; ask for less", None, "out_of_memory", {"Retry-After": "1"})
    found = FIELD.match(str(error)) if isinstance(error, ConfigError) else None
    if isinstance(error, InvalidRequest) or (
        found is not None and found[0].split(".")[0] in SearchOptions.model_fields
    ):
        return ApiError(400, str(error), found[0] if found is not None else None)
    if isinstance(error, (ConfigError, WorkFailed, OSError, pa.ArrowInvalid)):
        log.error("the index cannot answer: %s", error, exc_info=error)
        return ApiError(503, "the index cannot be read at the moment", None, "index_unavailable", {"Retry-After": "5"})
    log.error("unforeseen", exc_info=error)
    return ApiError(500, "the server failed to answer this request; its log has the cause")


def out_of_memory(error: BaseException) -> bool:
    """Returns whether host or device memory ran out, without importing torch."""
    return isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")


def _printable(message: str) -> str:
    """Removes lone surrogates, which JSON in UTF-8 can't hold, and truncates long messages."""
    return message[:1000].encode(errors="replace").decode()


def _validation_failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(400, f"the body is not JSON: {first['ctx']['error']}", None, "invalid_json")
    body = getattr(request.scope.get("route"), "body_field", None)
    model = body.field_info.annotation if body is not None else BaseModel
    parts = [{**fault, "loc": fault["loc"][1:]} for fault in error.errors()]  # without `body`, `query` or `path`
    return invalid_request(parts, model, error.body).response()


def invalid_request(errors: Sequence[Any], model: type[BaseModel], given: Any) -> ApiError:
    """Converts pydantic's errors of a request to a 400 that names one field: an unknown one, or else the deepest."""
    unknown = PROBLEMS["extra_forbidden"]
    faults = find_faults(errors, model, given)
    path, problem = max(faults, key=lambda fault: (fault[1].startswith(unknown), fault[0].count(".")))
    if not path:
        return ApiError(400, "a JSON object is expected as the body")
    return ApiError(400, f"{path}: {problem}", path)


def _http_failed(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error.response()
    code = 400 if error.status_code == 422 else error.status_code
    return error_response(code, str(error.detail), headers=dict(error.headers or {}))


def _unforeseen(_request: Request, error: Exception) -> JSONResponse:
    return as_api_error(error).response()


def add_error_handlers(app: FastAPI) -> None:
    """Registers the handlers that convert every failure of the application to the JSON form."""
    app.add_exception_handler(RequestValidationError, _validation_failed)
    app.add_exception_handler(HTTPException, _http_failed)
    app.add_exception_handler(ConfigError, _unforeseen)
    app.add_exception_handler(Exception, _unforeseen)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describes error responses for the OpenAPI document; those that any request may get are always included."""
    return {status: {"model": ErrorBody, "description": CODES[status]} for status in sorted({*statuses, *ALWAYS})}


ALWAYS = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504)
