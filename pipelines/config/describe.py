"""Formats pydantic's validation errors as one line each: key path, problem, and the nearest known key."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from actors.suggest import did_you_mean

Fault = tuple[str, str]
"""The dotted path of the value at fault, "" for the whole, and what is wrong with it."""


def describe_errors(error: ValidationError, model: type[BaseModel], given: Any = None) -> str:
    """Formats every error of a config as `key.path: problem`, one line each; missing keys come last."""
    lines = [f"{path or 'config'}: {problem}" for path, problem in find_faults(error.errors(), model, given)]
    missing = [OPTIONS[str(e["loc"][0])] for e in error.errors() if e["type"] == "missing" and e["loc"][0] in OPTIONS]
    return "\n".join([*lines, *missing])


OPTIONS = {
    "input": "name files, folders or globs with --input, or as `input: {paths: ...}` in a YAML file",
    "index": "name the folder or URI of the index with --index, or as `index: {uri: ...}` in a YAML file",
}
"""What to give where a section of a build's config is missing."""

WANTED = {
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "finite_number": "a finite number",
}
"""What must stand in a value's place, by pydantic's name of the error."""

PROBLEMS = {
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "string_too_short": "is empty",  # no field asks for more than one character or item
    "too_short": "is empty",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}
"""What is wrong with a value, by pydantic's name of the error; filled in from its context."""

PLAIN_TYPES = frozenset({"str", "int", "float", "bool", "bytes", "none"})


def find_faults(errors: Sequence[ErrorDetails], model: type[BaseModel], given: Any = None) -> list[Fault]:
    """Finds the path and the problem of each value at fault.

    pydantic reports one error for each member of a union that a value fails, with the member's name in the path. Here
    the members' errors are one fault ("must be a string or a list"), at the deepest value that any of them reached.

    given: the values that were validated, to tell a key from the name of a union's member.
    """
    by_path: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for fault in errors:
        by_path.setdefault(_path(fault, given), []).append(fault)
    deepest = [p for p in by_path if not any(p != other and p == other[: len(p)] for other in by_path)]
    return [(".".join(path), _problem(path, by_path[path], model)) for path in deepest]


def _path(fault: ErrorDetails, given: Any) -> tuple[str, ...]:
    kept = []
    for part in fault["loc"]:
        is_key = isinstance(given, Mapping) and part in given
        if is_key or not _names_a_type(part):
            kept.append(str(part))
            given = given[part] if is_key or (isinstance(part, int) and _has(given, part)) else None
    return tuple(kept)


def _has(given: Any, place: int) -> bool:
    return isinstance(given, (list, tuple)) and place < len(given)


def _names_a_type(part: int | str) -> bool:
    """Returns whether a part of a path looks like a member of a union, as `str`, `list[int]` or a class's name do."""
    return isinstance(part, str) and (part in PLAIN_TYPES or re.fullmatch(r"[a-z_]\w*", part) is None)


def _problem(path: Sequence[str], faults: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    """Joins the types that a value may have; any other error of the value says more than its type."""
    fault = next((fault for fault in faults if fault["type"] not in WANTED), None)
    if fault is None:
        wanted = dict.fromkeys(WANTED[fault["type"]] for fault in faults)
        return f"must be {' or '.join(wanted)}{_got(faults[0]['input'])}"
    kind, context = fault["type"], fault.get("ctx", {})
    problem = PROBLEMS[kind].format_map(context) if kind in PROBLEMS else fault["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return problem + did_you_mean(path[-1], _fields_at(path[:-1], model))
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context["expected"]))
        return problem + _got(fault["input"]) + did_you_mean(fault["input"], known)
    return problem


def _got(value: Any) -> str:
    """Shows a short value as Python writes it; a long one says more than its place."""
    shown = repr(value)
    return f", got {shown}" if len(shown) <= 40 else ""


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
