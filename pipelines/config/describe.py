"""Formats pydantic's validation errors as one line each: key path, problem, and the nearest known key."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from actors.suggest import did_you_mean


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """Formats every error of a config as `key.path: problem`, one line each; missing keys come last."""
    lines = [_line(e, model) for e in error.errors()]
    missing = [OPTIONS[str(e["loc"][0])] for e in error.errors() if e["type"] == "missing" and e["loc"][0] in OPTIONS]
    return "\n".join([*lines, *missing])


OPTIONS = {
    "input": "name files, folders or globs with --input, or as `input: {paths: ...}` in a YAML file",
    "index": "name the folder or URI of the index with --index, or as `index: {uri: ...}` in a YAML file",
}
"""What to give where a section of a build's config is missing."""


def _line(fault: ErrorDetails, model: type[BaseModel]) -> str:
    path, kind, message = fault["loc"], fault["type"], fault["msg"]
    where = ".".join(map(str, path)) or "config"
    if kind == "extra_forbidden":
        return f"{where}: {message}{did_you_mean(str(path[-1]), _fields_at(path[:-1], model))}"
    known = re.findall(r"'([^']*)'", str(fault.get("ctx", {}).get("expected"))) if kind == "literal_error" else []
    return f"{where}: {message.removeprefix('Value error, ')}{did_you_mean(fault['input'], known)}"


def _fields_at(path: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """Returns the keys of the model at a path of keys and list positions."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_within(part))), None)


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Returns the docstring below each field of a class, by the field's name; {} if the source is missing."""
    try:
        (body,) = ast.parse(inspect.getsource(cls)).body
    except (OSError, TypeError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[statement.target.id] = inspect.cleandoc(text.value)
    return found
