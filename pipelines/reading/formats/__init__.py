"""The formats that can be read, one a module. To add one: two functions in a module, and one line here."""

from __future__ import annotations

import re

from pipelines.reading.formats import csv, jsonl, lance, parquet, text
from pipelines.reading.formats.base import Reader

_PACKED = r"(\.gz|\.zst|\.bz2)?$"

READERS: dict[str, Reader] = {
    "parquet": Reader(re.compile(r"\.(parquet|pq)$"), parquet.inspect, parquet.rows, strict=True),
    "jsonl": Reader(re.compile(rf"\.(jsonl|ndjson|json){_PACKED}"), jsonl.inspect, jsonl.rows, strict=False),
    "csv": Reader(re.compile(rf"\.csv{_PACKED}"), csv.inspect, csv.rows, strict=True),
    "text": Reader(re.compile(rf"\.(txt|md|markdown){_PACKED}"), text.inspect, text.rows, strict=True),
    "lance": Reader(re.compile(r"\.lance$"), lance.inspect, lance.rows, strict=True),
}


def format_of(name: str) -> str | None:
    """The format that a file's name tells, if any."""
    return next((known for known, reader in READERS.items() if reader.suffix.search(name.lower())), None)
