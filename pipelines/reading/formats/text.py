"""Plain text and Markdown: one file is one document, and its path below the input folder is its id.

A path is a better id than a hash of the content: an edited file then replaces its old version in the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipelines.reading.files import File
from pipelines.reading.formats.base import Inspection, Part, RawRows

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


def inspect(file: File, part_bytes: int) -> Inspection:
    """Without opening it. An empty file is still a document, and a bad one."""
    return Inspection((Part(rows=1, size=file.size),), SCHEMA)


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, limit: int) -> Iterator[RawRows]:
    """One row; at most `limit` bytes and one more are read, so that the row is found too long and costs no memory."""
    with file.stream() as stream:
        content = stream.read(limit + 1).removeprefix(b"\xef\xbb\xbf")
    yield RawRows({"id": [_id(file)], "text": [content]}, np.zeros(1, dtype=np.int64), [None])


def _id(file: File) -> str:
    """`docs/guide/a.md` for an input folder `docs`, wherever that folder lies."""
    return f"{file.root.rpartition('/')[2]}/{file.path.removeprefix(file.root).lstrip('/')}".lstrip("/")
