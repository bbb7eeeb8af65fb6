"""Reads plain text and Markdown: one file is one document, and its path below the input folder is its id.

A path is a better id than a hash of the content: an edited file then replaces its old version in the index.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from pipelines.config import is_utf8
from pipelines.reading.compression import as_utf8
from pipelines.reading.files import File
from pipelines.reading.formats.base import Inspection, Part, RawRows, ReadOptions

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Returns one part without reading the file: an empty file is still a (bad) document."""
    return Inspection((Part(rows=1, size=file.size),), SCHEMA)


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields one row; reads at most one byte beyond the size limit, so that an oversized text costs no memory."""
    try:
        content = _content(file, options.encoding, options.max_bytes)
    except UnicodeError:  # `documents` reports the invalid bytes
        content = _content(file, "utf-8", options.max_bytes)
    yield RawRows({"id": [path_id(file)], "text": [content]}, np.zeros(1, dtype=np.int64), [None])


def _content(file: File, encoding: str, max_bytes: int) -> bytes:
    with as_utf8(file.stream(), encoding) as stream:
        return stream.read(max_bytes + 1).removeprefix(b"\xef\xbb\xbf")


def path_id(file: File) -> str:
    """Returns a path relative to the input folder, such as `docs/guide/a.md` for the folder `docs`."""
    relative = f"{file.root.rpartition('/')[2]}/{file.path.removeprefix(file.root).lstrip('/')}".lstrip("/")
    return relative if is_utf8(relative) else quote(os.fsencode(relative))
