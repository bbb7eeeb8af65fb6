"""Turns pydantic's validation errors into one line each: the key's path, what is wrong, and the nearest known key."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'mode'?" for the known name that is nearest to a misspelt one, "" where none is near.

    >>> did_you_mean("mod", ["mode", "where"])
    "; did you mean 'mode'?"
    """
    near = get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """Describes every fault of a config on a line of its own, `key.path: what is wrong`."""
    return "\n".join(_line(e["loc"], e["type"], e["msg"], model) for e in error.errors())


def _line(path: Sequence[int | str], kind: str, message: str, model: type[BaseModel]) -> str:
    where = ".".join(map(str, path)) or "config"
    if kind == "extra_forbidden":
        return f"{where}: is not a key here{did_you_mean(str(path[-1]), _fields_at(path[:-1], model))}"
    return f"{where}: {message.removeprefix('Value error, ')}"


def _fields_at(path: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """Returns the keys of the model that lies at a path of keys and list positions."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_within(part))), None)


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Returns the string that stands below each field of a class, by the field's name; {} without its source."""
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
