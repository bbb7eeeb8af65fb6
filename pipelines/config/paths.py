"""Normalises every path and URI of a config to one absolute form on the driver, before anything is sent to workers.

A worker of a cluster that runs already was started in another folder, Lance unquotes `file://` URIs and pyarrow does
not, and only a shell expands `~`: a spelling that is left as it came would name two folders.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from pipelines.config.settings import DEFAULT_MODEL, BuildConfig, EmbedderConfig

FILE_SCHEME = "file:"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


def scheme_of(uri: str) -> str:
    """Returns the scheme of a URI, `s3` of `s3://...`; empty for a plain path."""
    return uri.split("://", 1)[0].lower() if "://" in uri else ""


def absolute_uri(uri: str | os.PathLike[str]) -> str:
    """Returns a local path or `file:` URI as an absolute path, without `~`, `.`, `..` and %-escapes.

    URIs of other schemes come back unchanged. `..` is resolved after symbolic links, as the kernel does.
    """
    text = os.fspath(uri)
    if text.lower().startswith(FILE_SCHEME):
        text = _path_of_file_uri(text)
    elif scheme_of(text):
        return text
    if not text:
        return text
    path = Path(text).expanduser()
    parent = path.parts and ".." in path.parts
    return os.path.realpath(path) if parent else os.path.abspath(path)  # noqa: PTH100  # Path keeps `a/./b`


def expand_path(path: Path | None) -> Path | None:
    """Expands `~` and `file:` URIs of an argument, which a shell leaves alone in `--output=~/x`; None stays None."""
    if path is None or not str(path).startswith(("~", FILE_SCHEME)):
        return path
    return Path(absolute_uri(path))


def _path_of_file_uri(uri: str) -> str:
    """Decodes `file:///a%20b`, `file:/a%20b` and `file://localhost/a%20b` to `/a b`, invalid UTF-8 to surrogates."""
    rest = uri[len(FILE_SCHEME) :]
    rest = rest.removeprefix("//").removeprefix("localhost/") if rest.startswith("//") else rest
    rest = f"/{rest}" if uri.lower().startswith("file://localhost/") else rest
    return unquote(rest, errors="surrogateescape")


def printable_uri(path: str) -> str:
    """Formats a local path for display and storage on one line.

    A path with invalid UTF-8 or control characters becomes a %-quoted `file://` URI, which `absolute_uri` turns back.
    """
    if is_utf8(path) and (scheme_of(path) or not _CONTROLS.search(path)):
        return path
    return f"file://{quote(os.fsencode(path))}"


def is_utf8(path: str) -> bool:
    """Returns whether a path, or any text, is valid Unicode; invalid bytes of a path are lone surrogates in Python."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def absolute_model(model: str) -> str:
    """Makes the path of a local model folder absolute; names, and folders on workers only, are unchanged."""
    if model == DEFAULT_MODEL:
        return model
    local = model.lower().startswith(FILE_SCHEME) or Path(model).expanduser().exists()
    return absolute_uri(model) if local else model


def resolve_paths(config: BuildConfig) -> BuildConfig:
    """Returns the config with every path in it absolute: input, index, model folders, picture weights."""
    inputs = config.input.model_copy(update={"paths": tuple(absolute_uri(path) for path in config.input.paths)})
    index = config.index.model_copy(update={"uri": absolute_uri(config.index.uri)})
    embedders = tuple(_resolve_embedder(embedder) for embedder in config.embedders)
    return config.model_copy(update={"input": inputs, "index": index, "embedders": embedders})


def _resolve_embedder(embedder: EmbedderConfig) -> EmbedderConfig:
    weights = embedder.picture_weights
    paths = {
        "model": absolute_model(embedder.model),
        "picture_weights": None if weights is None else absolute_model(weights),
    }
    return embedder.model_copy(update=paths)
