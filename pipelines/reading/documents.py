"""Converts a file's rows to documents and validates each; an invalid row is kept with its error.

Columns that Arrow already types take vectorised checks; values of mixed types (JSON, CSV, odd Parquet) are looked at
one by one, about a microsecond each. Nothing here raises for a bad row.
"""

from __future__ import annotations

import contextlib
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import Columns, InputConfig
from pipelines.reading.columns import is_filled_by_chunks, state_type, stored_type
from pipelines.reading.formats.base import Column, RawRows, to_storable
from pipelines.store.hashes import HASH, hash_content, hash_metadata
from pipelines.store.skipped import MISFIT_NAMES, MISFITS, Skipped, misfit_entry

Errors = dict[int, str]


def read_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """Returns the schema of a block of documents; `fields` are the stored metadata columns."""
    names: list[pa.Field] = [pa.field("doc_id", pa.string()), pa.field("text", pa.string()), *fields]
    ends = [("source", pa.string()), ("position", pa.int64()), ("content_hash", HASH), ("metadata_hash", HASH)]
    ends += [("error", pa.string()), (MISFITS, MISFIT_NAMES)]
    return pa.schema([*names, *(pa.field(name, type_) for name, type_ in ends)])


def error_table(source: str, position: int, message: str, fields: Sequence[pa.Field]) -> pa.Table:
    """Builds a table of one row that holds the error of an unreadable piece of input."""
    row = {"source": source, "position": position, "error": message}
    return pa.Table.from_pylist([row], schema=read_schema(fields))


def to_documents(
    raw: RawRows, source: str, columns: Columns, config: InputConfig, fields: Sequence[pa.Field]
) -> pa.Table:
    """Converts rows of a file to documents in the read schema, in order; None for id or title: the file has none."""
    errors: Errors = {i: message for i, message in enumerate(raw.errors) if message is not None}
    n = len(raw)
    text = _to_strings(_column(raw, columns.text), "text", errors)
    title = None if columns.title is None else _to_titles(_column(raw, columns.title), errors)
    text = join_titles(text, title, config.template)
    text = text if config.pictures is None else pc.fill_null(text, "")
    _check_texts(text, config.max_text_bytes, errors, optional=config.pictures is not None)
    misfits: dict[int, list[str]] = {}
    kept = {f.name: _cast_column(_column(raw, columns.source_of(f.name)), f, misfits) for f in fields}
    _note_wider_types(raw, columns, fields, misfits)
    content = text if config.pictures is None else _join_picture(text, kept[config.pictures.column])
    ids = _ids(_column(raw, columns.id), errors) if columns.id is not None else _content_ids(content)
    bad = np.zeros(n, dtype=bool)
    bad[list(errors)] = True
    text = pc.if_else(pa.array(bad), pa.scalar(None, pa.string()), text)
    values = [ids, text, *kept.values(), pa.repeat(pa.scalar(source), n), pa.array(raw.positions, pa.int64())]
    hashed = pc.if_else(pa.array(bad), pa.scalar(None, content.type), content)
    picture = None if config.pictures is None else config.pictures.column
    described = {f.name: kept[f.name] for f in fields if f.name != picture and not is_filled_by_chunks(f)}
    values += [hash_content(hashed), hash_metadata(described, n)]
    values += [pa.array([errors.get(i) for i in range(n)], pa.string()) if errors else pa.nulls(n, pa.string())]
    values.append(pa.array([misfits.get(i) for i in range(n)], MISFIT_NAMES) if misfits else pa.nulls(n, MISFIT_NAMES))
    return pa.Table.from_arrays(values, schema=read_schema(fields))


def _column(raw: RawRows, name: str) -> Column:
    """Returns a column, or nulls: a row group that cannot be read has no columns at all."""
    return raw.columns[name] if name in raw.columns else [None] * len(raw)


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _has_types(values: list[Any], *types: type) -> bool:
    """Returns whether every value is null or of one of these types exactly: a pass at C speed."""
    return {*map(type, values)} <= {type(None), *types}


def _arrow_strings(column: Column) -> pa.Array | None:
    """Returns the column as strings if its type holds strings and all its bytes are valid UTF-8."""
    if isinstance(column, list):
        return None
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text(column.type):
        return None
    try:
        column.validate(full=True)
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return None


def _values(column: Column) -> list[Any]:
    """Returns Python values; strings with invalid UTF-8 as bytes."""
    if isinstance(column, list):
        return column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[Any] = (column.cast(pa.large_binary()) if _is_text(column.type) else column).to_pylist()
    return values


def _to_strings(column: Column, what: str, errors: Errors) -> pa.Array:
    """Returns a string array; a value that is no text becomes null and is recorded in `errors`."""
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    found = _arrow_strings(column)
    if found is not None:
        return found
    if isinstance(column, list) and _has_types(column, str):
        with contextlib.suppress(UnicodeEncodeError):
            return pa.array(column, pa.string())
    values: list[str | None] = []
    for i, value in enumerate(_values(column)):
        try:
            values.append(_to_string(value))
        except ValueError as error:
            values.append(None)
            errors.setdefault(i, f"{what} {error}")
    return pa.array(values, pa.string())


def _to_titles(column: Column, errors: Errors) -> pa.Array:
    """Converts titles to texts, numbers to decimal; any other value is recorded in `errors`."""
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(column, list) and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.cast(pa.string())
    if isinstance(column, list) and not _has_types(column, str):
        column = [str(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v for v in column]
    return _to_strings(column, "title", errors)


def _to_string(value: Any) -> str | None:
    """Returns a text or None; ValueError describes any other value."""
    if value is None:
        return None
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeDecodeError as error:
        raise ValueError(f"is not valid UTF-8: byte {error.start}: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode: lone surrogate at character {error.start}") from error
    raise ValueError(f"is {_kind(value)}, a string is needed: {_short(value)}")


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "an integer", float: "a float", list: "a list", dict: "an object", bytes: "binary"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def join_titles(text: pa.Array, title: pa.Array | None, template: str) -> pa.Array:
    """Joins title and text by the template; a text without a title, and a null text, are unchanged."""
    if title is None or len(text) == 0:
        return text
    pieces: list[Any] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        pieces += [pa.scalar(literal)] if literal else []
        pieces += [] if name is None else [{"title": title, "text": text}[name]]
    both = pc.binary_join_element_wise(*pieces, pa.scalar(""), null_handling="emit_null")
    return pc.if_else(pc.invert(_blank(title)), both, text)


def _blank(strings: pa.Array) -> pa.BooleanArray:
    """Returns whether texts are null, empty or whitespace."""
    empty = pc.or_(pc.equal(pc.binary_length(strings), 0), pc.utf8_is_space(strings))
    return pc.fill_null(empty, True)


def _check_texts(text: pa.Array, max_bytes: int, errors: Errors, *, optional: bool) -> None:
    """Records the errors of unusable texts. optional: a blank text is valid, as beside a picture."""
    lengths = pc.fill_null(pc.binary_length(text), 0).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(lengths > max_bytes).tolist():
        errors.setdefault(i, f"text has more than max_text_bytes ({max_bytes:,})")
    if optional:
        return
    is_null = text.is_null().to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(_blank(text).to_numpy(zero_copy_only=False)).tolist():
        state = "null or missing" if is_null[i] else "empty" if lengths[i] == 0 else "only whitespace"
        errors.setdefault(i, f"text is {state}")


def _ids(column: Column, errors: Errors) -> pa.Array:
    """Converts ids: strings unchanged, integers to decimal; other values and blank strings are errors and null."""
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(column, list) and pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    ids = _arrow_strings(column)
    if ids is None and isinstance(column, list) and _has_types(column, str):
        with contextlib.suppress(UnicodeEncodeError):
            ids = pa.array(column, pa.string())
    if ids is None:
        ids = pa.array([_id(value, i, errors) for i, value in enumerate(_values(column))], pa.string())
    blank = _blank(ids).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(blank).tolist():
        errors.setdefault(i, "id is null, missing or empty")
    return pc.if_else(pa.array(blank), pa.scalar(None, pa.string()), ids)


def _id(value: Any, row: int, errors: Errors) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    try:
        return _to_string(value)
    except ValueError as error:
        errors.setdefault(row, f"id {error}".replace("a string is", "a string or an integer is"))
        return None


def dropped_values(misfits: Mapping[str, int], fields: Sequence[pa.Field]) -> list[Skipped]:
    """Describes, for the summary, the values that did not fit their column's type."""
    types = {field.name: field.type for field in fields}
    reason = "not {0}, stored as null; `input.columns.metadata: {{{1}: TYPE}}` states another type"
    return [Skipped("values", name, reason.format(types[name], name), n) for name, n in sorted(misfits.items())]


def _cast_column(column: Column, field: pa.Field, misfits: dict[int, list[str]]) -> pa.Array:
    """Casts a column to the type common to all files; a value that does not fit becomes null and is recorded."""
    values = _to_castable(column, field)
    try:
        return _cast(values, field.type)
    except (pa.ArrowException, UnicodeError, OverflowError):
        if len(values) > 1:
            return pa.concat_arrays([_cast_row(values, i, field, misfits) for i in range(len(values))])
    misfits.setdefault(0, []).append(field.name)
    return pa.nulls(1, field.type)


def _note_wider_types(
    raw: RawRows, columns: Columns, fields: Sequence[pa.Field], misfits: dict[int, list[str]]
) -> None:
    """Adds to the first misfit of each column the type that would hold all of the column's values."""
    first = {name: row for row in sorted(misfits, reverse=True) for name in misfits[row]}
    for field in fields:
        if (row := first.get(field.name)) is not None:
            entry = misfit_entry(field.name, _wider_type(_column(raw, columns.source_of(field.name)), field))
            misfits[row][misfits[row].index(field.name)] = entry


def _wider_type(column: Column, field: pa.Field) -> str:
    """Returns the first of `double`, lists of it, lists of strings and `string` that a column can be cast to."""
    t = pa.types
    is_list = t.is_list(field.type)
    is_number = t.is_integer(field.type.value_type if is_list else field.type)
    candidates = ["list<double>"] * (is_list and is_number) + ["double"] * (not is_list and is_number)
    for name in [*candidates, *["list<string>"] * is_list]:
        wider = field.with_type(state_type(name))
        with contextlib.suppress(pa.ArrowException, UnicodeError, OverflowError):
            _cast(_to_castable(column, wider), wider.type)
            return name
    return "string"


def _to_castable(column: Column, field: pa.Field) -> Column:
    """Converts Python values to types that Arrow can cast; values without a storable type become JSON text."""
    if isinstance(column, list):
        if _has_types(column, str) or (_has_types(column, int, float, bool) and not pa.types.is_string(field.type)):
            return column
        return [_as_text(value) for value in column] if pa.types.is_string(field.type) else [*map(to_storable, column)]
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if stored_type(column.type) == pa.string() and not _is_text(column.type) and not _holds_text(column.type):
        return [_as_text(value) for value in column.to_pylist(maps_as_pydicts="lossy")]
    return column


def _holds_text(type_: pa.DataType) -> bool:
    """Returns whether a type is a dictionary or run-end encoding of strings."""
    encoded = pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_)
    return bool(encoded and _is_text(type_.value_type))


def _as_text(value: Any) -> Any:
    """Converts values to texts: numbers to decimal, everything else to JSON."""
    if value is None or isinstance(value, (str, bytes)):
        return value
    value = to_storable(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cast(column: Column, type_: pa.DataType) -> pa.Array:
    values = pa.array(column) if isinstance(column, list) else column
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if _is_text(values.type):
        values.validate(full=True)
    return values.cast(type_)


def _cast_row(column: Column, row: int, field: pa.Field, misfits: dict[int, list[str]]) -> pa.Array:
    found: dict[int, list[str]] = {}
    value = _cast_column(column[row : row + 1], field, found)
    for names in found.values():
        misfits.setdefault(row, []).extend(names)
    return value


def _join_picture(text: pa.Array, pictures: pa.Array) -> pa.Array:
    """Combines text and picture (its bytes or its location) into one value for hashing."""
    parts = [column.cast(pa.binary()) for column in (text, pictures)]
    return pc.binary_join_element_wise(*parts, pa.scalar(b"\0"), null_handling="replace")


def _content_ids(content: pa.Array) -> pa.Array:
    """Hashes content to hexadecimal ids: equal texts get equal ids in every run and every file."""
    return pa.array([None if h is None else h.hex() for h in hash_content(content).to_pylist()], pa.string())
