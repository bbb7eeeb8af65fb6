"""Registers the readable formats, one per module. To add one: two functions in a module, and one line here."""

from __future__ import annotations

import re

from pipelines.reading.compression import PACKED
from pipelines.reading.formats import arrow, avro, csv, document, jsonl, lance, orc, parquet, text
from pipelines.reading.formats.base import Reader

_DOCUMENTS = "|".join(suffix.removeprefix(".") for suffix in document.CONVERTERS)

READERS: dict[str, Reader] = {
    "parquet": Reader(re.compile(r"\.(parquet|parq|pq)$"), parquet.inspect, parquet.rows, strict=True),
    "jsonl": Reader(re.compile(rf"\.(jsonl|ndjson|json){PACKED}"), jsonl.inspect, jsonl.rows, strict=False),
    "csv": Reader(re.compile(rf"\.csv{PACKED}"), csv.inspect, csv.rows, strict=True),
    "tsv": Reader(re.compile(rf"\.(tsv|tab){PACKED}"), csv.inspect_tsv, csv.rows_tsv, strict=True),
    "arrow": Reader(re.compile(r"\.(arrow|arrows|feather|ipc)$"), arrow.inspect, arrow.rows, strict=True),
    "orc": Reader(re.compile(r"\.orc$"), orc.inspect, orc.rows, strict=True),
    "avro": Reader(re.compile(r"\.avro$"), avro.inspect, avro.rows, strict=False, extra="avro"),
    "text": Reader(
        re.compile(rf"\.(txt|text|md|markdown|rst){PACKED}"), text.inspect, text.rows, strict=True, is_document=True
    ),
    "document": Reader(
        re.compile(rf"\.({_DOCUMENTS})$"),
        document.inspect,
        document.rows,
        strict=True,
        is_document=True,
        extra="documents",
    ),
    "lance": Reader(re.compile(r"\.lance$"), lance.inspect, lance.rows, strict=True),
}

NUMBERED_PARTS = ("jsonl", "arrow", "orc")
"""Formats in which the first row number of a part is unknown: rows are counted from the part's start."""


def is_document(name: str) -> bool:
    """Returns whether a file of that name holds one document: text, Markdown, HTML, PDF and the like."""
    known = format_of(name)
    return known is not None and READERS[known].is_document


def format_of(name: str) -> str | None:
    """Returns the format of a file name's suffix, if known."""
    return next((known for known, reader in READERS.items() if reader.suffix.search(name.lower())), None)
