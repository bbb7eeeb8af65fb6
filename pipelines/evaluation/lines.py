"""Reads text files of queries, judgements and runs line by line: plain or gzip, with or without a byte order mark."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipelines.config import ConfigError

GZIP_MAGIC = b"\x1f\x8b"


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (number, line) of the lines that are not blank, without line ends; ConfigError if unreadable.

    A file is gzip by its first bytes, whatever its name.
    """
    try:
        with _open_text(Path(path)) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name a file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _open_text(path: Path) -> TextIO:
    with path.open("rb") as start:
        zipped = start.read(2) == GZIP_MAGIC
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def parse_json_object(path: str | Path, number: int, line: str, expected: str = "") -> dict[str, Any]:
    """Parses one line of JSON; ConfigError with its number if it is no object or has an unpaired surrogate.

    expected: what the line should be, where the message shall say so.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {number}: {expected}not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path} line {number}: expected a JSON object, got {line[:60]!r}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path} line {number}: holds half of a surrogate pair, which is no character") from None
    return row
