"""Translates filters of other frameworks to SQL conditions over an index's columns.

All conditions are true or false, never null: a document that lacks the column compares as None does in Python, so that
"not equal" and NOT mean in SQL what the frameworks document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timezone
from math import isfinite
from typing import Any

import pyarrow as pa

from pipelines.config import ConfigError

ORDERED = (">", ">=", "<", "<=")
ALWAYS, NEVER = "true", "false"


def quoted(column: str) -> str:
    """Quotes a column's name for SQL; ConfigError for one that SQL cannot name."""
    if not column or "`" in column or "." in column:
        raise ConfigError(f"filter: {column!r} is no column that a filter can name")
    return f"`{column}`"


def literal(value: Any, kind: pa.DataType) -> str | None:
    """Formats a value as a SQL literal of the column's type; None for a value that no row of that type can equal."""
    if pa.types.is_boolean(kind):
        return str(value).lower() if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if pa.types.is_integer(kind):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return str(int(value)) if whole else None
    if pa.types.is_floating(kind):
        return repr(float(value)) if isinstance(value, (int, float)) and isfinite(value) else None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else None
    at = moment(value)
    if pa.types.is_timestamp(kind) and at is not None:
        return f"timestamp '{at.isoformat(sep=' ')}'"
    if pa.types.is_date(kind) and at is not None:
        return f"date '{at.date().isoformat()}'"
    return None


def moment(value: Any) -> datetime | None:
    """Parses a datetime, date or ISO text as a UTC datetime without a time zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).replace(tzinfo=None) if value.tzinfo else value
    return datetime(value.year, value.month, value.day) if isinstance(value, date) else None


def equals(columns: Mapping[str, pa.DataType], column: str, value: Any) -> str:
    """Tests that the column equals a value (a list column: the whole list); None tests that it has no value."""
    kind = columns.get(column)
    if value is None:
        return ALWAYS if kind is None else f"({quoted(column)} IS NULL)"
    if kind is None:
        return NEVER
    if pa.types.is_list(kind) and isinstance(value, list):
        items = [literal(item, kind.value_type) for item in value]
        made = None if None in items else f"make_array({', '.join(map(str, items))})"
    else:
        made = literal(value, kind)
    return NEVER if made is None else f"({quoted(column)} IS NOT NULL AND {quoted(column)} = {made})"


def one_of(columns: Mapping[str, pa.DataType], column: str, values: Sequence[Any]) -> str:
    """Tests that the column equals one of these values."""
    return any_of(equals(columns, column, value) for value in values)


def contains(columns: Mapping[str, pa.DataType], column: str, value: Any, ignore_case: bool = False) -> str:
    """Tests that a list column contains an item, or a text column a substring."""
    kind = columns.get(column)
    if kind is None:
        return NEVER
    if pa.types.is_list(kind):
        item = literal(value, kind.value_type)
        return NEVER if item is None else f"({quoted(column)} IS NOT NULL AND array_has({quoted(column)}, {item}))"
    part = literal(value, kind) if pa.types.is_string(kind) else None
    if part is None:
        return NEVER
    text, part = (f"lower({quoted(column)})", f"lower({part})") if ignore_case else (quoted(column), part)
    return f"({quoted(column)} IS NOT NULL AND contains({text}, {part}))"


def empty(columns: Mapping[str, pa.DataType], column: str) -> str:
    """Tests that the column has no value, or an empty list."""
    kind = columns.get(column)
    if kind is None:
        return ALWAYS
    missing = f"{quoted(column)} IS NULL"
    return f"({missing} OR array_length({quoted(column)}) = 0)" if pa.types.is_list(kind) else f"({missing})"


def ordered(columns: Mapping[str, pa.DataType], column: str, operator: str, value: Any) -> str:
    """Compares the column with a value of its type by order. ConfigError for a value that cannot be ordered with it."""
    kind = columns.get(column)
    if value is None or kind is None:
        return NEVER
    if isinstance(value, (list, bool, dict)):
        raise ConfigError(f"filter: {column!r} {operator} {value!r}: there is no order among such values")
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if numbers and isinstance(value, (int, float)):
        left = f"CAST({quoted(column)} AS DOUBLE)" if isinstance(value, float) else quoted(column)
        made = repr(value) if pa.types.is_integer(kind) else repr(float(value))
        return f"({quoted(column)} IS NOT NULL AND {left} {operator} {made})"
    made_or_none = literal(value, kind)
    if made_or_none is None:
        raise ConfigError(f"filter: {column!r} is {kind}, and {value!r} has no order with that")
    return f"({quoted(column)} IS NOT NULL AND {quoted(column)} {operator} {made_or_none})"


def ordered_dates(columns: Mapping[str, pa.DataType], column: str, operator: str, value: str) -> str:
    """Compares the column's text as an ISO date with a date; a text that is no date meets no condition."""
    at = moment(value)
    if column not in columns or at is None:
        return NEVER
    read = f"try_cast({quoted(column)} AS TIMESTAMP)"
    return f"({read} IS NOT NULL AND {read} {operator} timestamp '{at.isoformat(sep=' ')}')"


def all_of(conditions: Iterable[str]) -> str:
    """Joins conditions by AND; true if there are none."""
    made = list(conditions)
    return f"({' AND '.join(made)})" if made else ALWAYS


def any_of(conditions: Iterable[str]) -> str:
    """Joins conditions by OR; false if there are none."""
    made = list(conditions)
    return f"({' OR '.join(made)})" if made else NEVER


def negated(condition: str) -> str:
    """Negates a condition."""
    return f"(NOT {condition})"
