"""Stores the free-form metadata of a framework's documents in typed columns and restores it unchanged.

Each key is a column of its own, so filters run in Lance, at the speed of every other filter, and the command line and
HTTP see the same columns. A key gets its type from its first value; a value that does not fit (another type, a nested
mapping, None) is kept as JSON in the column `metadata_json`: it comes back, but filters do not see it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any

import pyarrow as pa

from pipelines.config import ConfigError
from pipelines.retrieval.hits import Hit
from pipelines.store.evolve import UPSERTED as UPSERTED
from pipelines.store.schema import SYSTEM_COLUMNS

REST = "metadata_json"
RESERVED = frozenset(SYSTEM_COLUMNS)
"""Columns that the index makes itself; a key of such a name is kept in the column `KEY_`."""
INT64 = 2**63


def column_of(key: str) -> str:
    """Returns the column that stores a metadata key.

    >>> column_of("year"), column_of("source")
    ('year', 'source_')
    """
    return f"{key}_" if key in RESERVED else key


def key_of(column: str) -> str:
    """Returns the metadata key that a column stores."""
    return column[:-1] if column.endswith("_") and column[:-1] in RESERVED else column


def type_of(value: Any) -> pa.DataType | None:
    """Returns the column type for a value; None for one that only JSON can hold.

    >>> type_of(3), type_of("a"), type_of(["a", "b"]), type_of({"a": 1})
    (DataType(int64), DataType(string), ListType(list<item: string>), None)
    """
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -INT64 <= value < INT64 else None
    if isinstance(value, (float, str)):
        return pa.float64() if isinstance(value, float) else pa.string()
    if isinstance(value, datetime):
        return pa.timestamp("us", "UTC" if value.tzinfo else None)
    if isinstance(value, date):
        return pa.date32()
    if isinstance(value, list) and value:
        kinds = {type_of(item) for item in value}
        kind = kinds.pop()
        return pa.list_(kind) if not kinds and kind is not None and not pa.types.is_list(kind) else None
    return None


def new_columns(documents: Iterable[Mapping[str, Any]], have: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Returns the columns that the metadata of these documents needs beyond `have`."""
    columns: dict[str, pa.DataType] = {}
    for metadata in documents:
        for key, value in metadata.items():
            column, kind = column_of(key), type_of(value)
            if kind is not None and _can_be_column(column) and column not in have:
                columns.setdefault(column, kind)
        if REST not in have and any(_rest(metadata, {**have, **columns})):
            columns[REST] = pa.string()
    return columns


def _can_be_column(name: str) -> bool:
    """Returns whether a key can name a column: no dot or backtick (Lance's filters), no name that tridex uses."""
    return bool(name) and name != REST and not name.startswith("_") and not set(name) & set(".`\"'\n")


def to_columns(metadata: Mapping[str, Any], types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """Converts a document's metadata to column values. ConfigError names a key that JSON cannot hold either."""
    rest = dict(_rest(metadata, types))
    row = {column_of(key): value for key, value in metadata.items() if key not in rest}
    if rest:
        try:
            row[REST] = json.dumps(rest, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metadata {', '.join(map(repr, rest))}: {error}") from error
    return row


def _rest(metadata: Mapping[str, Any], types: Mapping[str, pa.DataType]) -> Iterable[tuple[str, Any]]:
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise ConfigError(f"metadata: keys are texts, got {key!r}")
        if not _fits(value, types.get(column_of(key))):
            yield key, value


def _fits(value: Any, kind: pa.DataType | None) -> bool:
    if kind is None:
        return False
    own = type_of(value)
    if own == kind:
        return True
    if own is None:
        return False
    as_number = pa.types.is_integer(own) and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    return as_number or (pa.types.is_string(own) and pa.types.is_large_string(kind))


def of_hit(hit: Hit) -> dict[str, Any]:
    """Returns the metadata of a hit, with `chunk_id`, `score`, `scores` (each channel's own) and the `source` file."""
    source = {"source": hit.source} if hit.source not in (None, UPSERTED) else {}
    return {**source, **from_columns(hit.metadata), "chunk_id": hit.chunk_id, "score": hit.score} | {
        "scores": dict(hit.scores)
    }


def from_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Restores the metadata given to `to_columns`; columns without a value are left out."""
    rest = row.get(REST)
    metadata = {key_of(name): value for name, value in row.items() if value is not None and name != REST}
    return metadata | (json.loads(rest) if rest else {})
