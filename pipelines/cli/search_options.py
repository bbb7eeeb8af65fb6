"""Generates command line options from `SearchOptions`, so that each is declared and described once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from pipelines.config import ConfigError, SearchOptions, read_search_config, search_options

F = TypeVar("F", bound=Callable[..., Any])
SearchFile = Annotated[
    Path | None, typer.Option("--search", help="Search config (YAML) of `tridex tune`; other options override it.")
]
FLAGS = {"k": "-k"}


def takes_search_options(*left_out: str) -> Callable[[F], F]:
    """Adds an option to a command for every field of `SearchOptions`, passed by keyword; None if unset.

    left_out: fields that the command has no use for.
    """

    def add(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [_option(name) for name in SearchOptions.model_fields if name not in left_out]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
        return command

    return add


def _option(name: str) -> inspect.Parameter:
    field = SearchOptions.model_fields[name]
    alternatives = get_args(field.annotation) or (field.annotation,)
    kind = next((one for one in alternatives if one in (int, bool, float)), str)
    shown = "" if field.default is None or kind is bool else f" ({field.default})"
    flag = FLAGS.get(name, "--" + name.replace("_", "-"))
    option = typer.Option(flag, help=f"{(field.description or '').removesuffix('.')}{shown}.")
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def read_options(path: Path | None, given: Mapping[str, Any]) -> SearchOptions:
    """Merges options of the command line over a search file over the defaults, and validates them."""
    chosen = {} if path is None else read_search_config(path).model_dump(exclude_unset=True)
    return search_options(**{**chosen, **{name: _value(name, v) for name, v in given.items() if v is not None}})


def _value(name: str, value: Any) -> Any:
    """Parses the value of an option that is more than a word or a number."""
    if name == "weights":
        return _weights(value)
    if name == "channels":
        return _names_by_channel(value)
    if name == "columns":
        return [part.strip() for part in value.split(",") if part.strip()]
    return None if name == "group_by" and value == "none" else value


def _names_by_channel(text: str) -> dict[str, str]:
    """Parses `dense=qwen,sparse=splade` to a mapping; ConfigError names the invalid part."""
    names: dict[str, str] = {}
    for part in text.split(","):
        channel, _, name = (piece.strip() for piece in part.partition("="))
        if not (channel and name):
            raise ConfigError(
                f"--channels: {part.strip()!r}: expected CHANNEL=EMBEDDER, as in dense=qwen,sparse=splade"
            )
        names[channel] = name
    return names


def _weights(text: str) -> dict[str, float]:
    """Parses `dense=1,bm25=0.5` to a mapping; ConfigError names the invalid part."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        channel, sign, number = (piece.strip() for piece in part.partition("="))
        try:
            weights[channel] = float(number)
        except ValueError:
            sign = ""
        if not (channel and sign):
            raise ConfigError(f"--weights: {part.strip()!r}: expected CHANNEL=NUMBER, as in dense=1,bm25=0.5")
    return weights
