"""Converts HTML, PDF, Word, PowerPoint, Excel and EPUB to Markdown with markitdown (extra `documents`).

One file is one document, and its path is its id, as with plain text. Headings stay in the text as Markdown, so chunks
end at them; pages of a PDF end with a form feed and slides begin with a comment, which `places` reads. The converter is
chosen by suffix: markitdown's own guess would load a model into every worker. A file that cannot be converted is one
bad row.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.reading.files import READ_ERRORS, File
from pipelines.reading.formats.base import Inspection, Part, RawRows, ReadOptions
from pipelines.reading.formats.text import path_id

CONVERTERS = {
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".xhtml": "HtmlConverter",
    ".pdf": "PdfConverter",
    ".docx": "DocxConverter",
    ".pptx": "PptxConverter",
    ".xlsx": "XlsxConverter",
    ".epub": "EpubConverter",
}
"""Suffix to the class in `markitdown.converters`."""
MAX_FILE_BYTES = 256 * 2**20
"""A longer file is a bad row: converters hold it in memory, several times over."""
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


def inspect(file: File, part_bytes: int, options: ReadOptions) -> Inspection:
    """Returns one part without reading the file."""
    return Inspection((Part(rows=1, size=file.size),), SCHEMA)


def rows(file: File, part: Part, columns: Sequence[str], batch_rows: int, options: ReadOptions) -> Iterator[RawRows]:
    """Yields one row: the path, and the text as Markdown under its title if the format has one."""
    text = error = None
    try:
        text = _convert(file)
    except READ_ERRORS as failure:
        error = f"cannot be read: {failure}"
    except Exception as failure:  # the converters' libraries raise anything
        reason = " ".join(str(failure).split())[:300]
        error = f"cannot be converted to text: {type(failure).__name__}: {reason}"
    values = {"id": [path_id(file)], "text": [text]}
    yield RawRows(values, np.zeros(1, dtype=np.int64), [error])


def _convert(file: File) -> str:
    from markitdown import StreamInfo

    with file.open() as handle:
        content = handle.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(f"has more than {MAX_FILE_BYTES:,} bytes")
    suffix = f".{file.name.lower().rpartition('.')[2]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert = _converter(suffix).convert
        result = convert(io.BytesIO(content), StreamInfo(extension=suffix))
        if suffix == ".pdf" and "\f" not in result.markdown and len(pages := _split_pages(content)) > 1:
            parts = [convert(io.BytesIO(page), StreamInfo(extension=suffix)).markdown for page in pages]
            return "\f".join(part.removesuffix("\f") for part in parts)
    return _prepend_title(result.markdown, result.title)


def _split_pages(content: bytes) -> list[bytes]:
    """Returns each page of a PDF as a file; none if pdfium cannot split it.

    markitdown ends pages with a form feed, unless any page looks like a form or a table: then it joins them without.
    """
    pypdfium2: Any = importlib.import_module("pypdfium2")
    pages: list[bytes] = []
    with contextlib.suppress(pypdfium2.PdfiumError), pypdfium2.PdfDocument(content) as whole:
        for number in range(len(whole)):
            with pypdfium2.PdfDocument.new() as single:
                single.import_pages(whole, [number])
                out = io.BytesIO()
                single.save(out)
                pages.append(out.getvalue())
    return pages


def _prepend_title(text: str, title: str | None) -> str:
    """Prepends the title as a heading, unless the text begins with it."""
    title = " ".join((title or "").split())
    return text if not title or title in text[: len(title) + 200] else f"# {title}\n\n{text}"


@lru_cache(maxsize=16)
def _converter(suffix: str) -> Any:
    for noisy in ("pdfminer", "pdfplumber", "bs4"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return getattr(importlib.import_module("markitdown.converters"), CONVERTERS[suffix])()
