"""Loads configs from YAML files, keyword arguments and `--set key.path=value`; errors name the key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pipelines.config.describe import describe_errors
from pipelines.config.search import SearchOptions
from pipelines.config.settings import BuildConfig, ConfigError, Model

M = TypeVar("M", bound=Model)
ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds the packages: site-packages, or the source tree."""


def parse_override(text: str) -> tuple[list[str], Any]:
    """Parses `embedders.0.pool.max_size=4` to (path, value); the value is read as YAML.

    >>> parse_override("embedders.0.pool.max_size=4")
    (['embedders', '0', 'pool', 'max_size'], 4)
    """
    key, sep, value = text.partition("=")
    if not sep or not key:
        raise ConfigError(f"--set {text!r}: expected key.path=value")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: not a YAML value: {value!r}") from error


def apply_override(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets one value in a tree of dicts and lists, creating missing dicts."""
    node: Any = tree
    for depth, (part, following) in enumerate(zip(path, [*path[1:], ""], strict=True)):
        last = depth == len(path) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) > len(node):
                raise ConfigError(f"{'.'.join(path[: depth + 1])}: expected an index from 0 to {len(node)}")
            key: Any = int(part)
            if key == len(node):
                node.append({})
        elif isinstance(node, dict):
            key = part
            node.setdefault(key, [] if following.isdigit() else {})
        else:
            raise ConfigError(f"{'.'.join(path[:depth])}: is a value, has no key {part!r}")
        if last:
            node[key] = value
        node = node[key]


def read_search_config(path: str | Path) -> SearchOptions:
    """Reads a search file, as `tridex tune` writes it; ConfigError names the file and the key."""
    try:
        return SearchOptions.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_errors(error, SearchOptions)}") from error


def validated(kind: type[M], tree: dict[str, Any]) -> M:
    """Validates a tree of plain values as a config; ConfigError has one line per invalid key path."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, kind, tree)) from error


def validate(tree: dict[str, Any]) -> BuildConfig:
    """Validates a build's config, as `validated` does."""
    return validated(BuildConfig, tree)


def find_packaged(path: str | Path) -> Path | None:
    """Finds `configs/...` in the installed package, or in the source tree; None for other paths and absent files."""
    parts = Path(path).parts
    places = (ROOT / "tridex" / "configs", ROOT / "configs") if parts[:1] == ("configs",) else ()
    return next((file for place in places if (file := place.joinpath(*parts[1:])).is_file()), None)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file as a tree; ConfigError names the file.

    A path `configs/...` that does not exist here is read from the package, so that examples run in every folder.
    """
    given = Path(path)
    found = given if given.exists() else find_packaged(path) or given
    try:
        tree = yaml.safe_load(found.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a config file: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top level")
    return tree


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), **sections: Any) -> BuildConfig:
    """Merges defaults < `sections` < YAML file < overrides. `sections` are whole top-level trees: `input={...}`.

    >>> config = load_config(None, ["chunk.size=128"], input={"paths": ["a.jsonl"]}, index={"uri": "idx"})
    >>> config.chunk.size, config.embedders[0].model
    (128, 'all-MiniLM-L6-v2')
    """
    tree: dict[str, Any] = {**sections, **(read_yaml(path) if path is not None else {})}
    for text in overrides:
        apply_override(tree, *parse_override(text))
    return validated(BuildConfig, tree)
