"""Determines names and types of metadata columns from the config, the files' schemas and Hive partitions.

A column that Lance, or the index's own search columns, cannot hold under its name is refused before any work; a type
that Lance cannot hold is stored as text or as JSON. Hive's `year=2020/` is a column of every file below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from pipelines.config import Columns, ConfigError, is_utf8
from pipelines.reading.files import File
from pipelines.reading.formats.base import Inspection, RawRows

_BY_CHUNKS = {b"tridex.filled_by": b"chunks"}
PLACES = {
    "heading": pa.field("heading", pa.string(), metadata=_BY_CHUNKS),
    "page": pa.field("page", pa.int32(), metadata=_BY_CHUNKS),
}
"""Columns that chunks of documents fill: the nearest headings above, and the page or slide that it begins on."""

TAKEN_BY_LANCE = ("_rowid", "_rowaddr", "_rowoffset", "_row_created_at_version", "_row_last_updated_at_version")
TAKEN_BY_SEARCH = ("_score", "_distance", "_relevance_score")
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class Found:
    """Holds a file with its format, the folder that it was found in, and the result of inspecting it."""

    file: File
    format: str
    root: str
    seen: Inspection


def is_filled_by_chunks(field: pa.Field) -> bool:
    """Returns whether a column of PLACES is filled by chunking and not read from a file's column of that name."""
    return bool((field.metadata or {}).items() >= _BY_CHUNKS.items())


def check_column_names(columns: Columns) -> None:
    """Raises ConfigError for a metadata column that cannot be stored under its name, or that occurs twice."""
    for i, name in enumerate(columns.metadata):
        problem = _name_problem(name)
        if problem is not None:
            raise ConfigError(
                f"input.columns.metadata: {name!r} {problem}; keep it under another name: "
                f"`metadata: {{NAME: {{column: {name!r}}}}}`"
            )
        if name in columns.metadata[:i]:
            raise ConfigError(f"input.columns.metadata: {name!r} is there twice")


def _name_problem(name: str) -> str | None:
    if not name.strip():
        return "is an empty name"
    if not is_utf8(name):
        return "is not valid Unicode"
    if "." in name or "`" in name:
        return "has a dot or a backtick in its name, which no column of an index may have"
    if name.lower() in TAKEN_BY_LANCE:
        return "is a name that Lance keeps for itself"
    return "is a name that searches give to columns of their own" if name.lower() in TAKEN_BY_SEARCH else None


def metadata_field(name: str, columns: Columns, schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Field:
    """Returns the type of a metadata column: the configured one, or one that holds the values of all these files."""
    stated = columns.metadata_types.get(name)
    if stated is not None:
        return pa.field(name, state_type(stated))
    source = columns.source_of(name)
    common: tuple[str, pa.DataType] | None = None
    for path, schema in schemas:
        if source not in schema.names:
            continue
        type_ = stored_type(schema.field(source).type)
        common = (path, type_) if common is None else (common[0], _widen_type(name, common, (path, type_)))
    if common is None and name in PLACES:
        return PLACES[name]
    found = pa.null() if common is None else common[1]
    return pa.field(name, _replace_null_types(found))


def widest_type(names: Iterable[str]) -> str:
    """Returns the type that holds all values of these: of `double`, `list<double>`, `list<string>` and `string`."""
    several = set(names)
    if several == {"list<double>", "list<string>"}:
        return "list<string>"
    return several.pop() if len(several) == 1 else "string"


def with_types_of_index(fields: Sequence[pa.Field], columns: Columns, schema: pa.Schema | None) -> list[pa.Field]:
    """Gives guessed columns the index's type if that holds what was guessed: a guess changes with the files."""
    return [
        _type_of_index(field, schema) if schema is not None and field.name not in columns.metadata_types else field
        for field in fields
    ]


def _type_of_index(field: pa.Field, schema: pa.Schema) -> pa.Field:
    if field.name not in schema.names:
        return field
    there = schema.field(field.name).type
    return field.with_type(there) if pa.types.is_string(there) or _holds(there, field.type) else field


def _holds(type_: pa.DataType, other: pa.DataType) -> bool:
    """Returns whether every value of another type has its like in a type, as integers have in floats."""
    both = [pa.schema([("x", t)]) for t in (type_, other)]
    try:
        return bool(pa.unify_schemas(both, promote_options="permissive").field("x").type == type_)
    except pa.ArrowException:
        return False


def state_type(alias: str) -> pa.DataType:
    """Returns the type of a name as configs state it: `int64`, `list<string>`."""
    if alias.startswith("list<"):
        return pa.list_(state_type(alias[5:-1]))
    return pa.type_for_alias(alias)


def stored_type(type_: pa.DataType) -> pa.DataType:
    """Returns the type without its encoding; string for maps, unions and what else Lance cannot hold."""
    t = pa.types
    if t.is_dictionary(type_):
        return stored_type(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType):
        return stored_type(type_.storage_type)
    if t.is_large_string(type_) or t.is_string_view(type_):
        return pa.string()
    if t.is_binary_view(type_):
        return pa.binary()
    if t.is_run_end_encoded(type_):
        return stored_type(type_.value_type)
    if t.is_map(type_) or t.is_union(type_) or t.is_interval(type_) or (t.is_struct(type_) and not type_.num_fields):
        return pa.string()
    if t.is_list(type_) or t.is_large_list(type_) or t.is_list_view(type_) or t.is_large_list_view(type_):
        return pa.list_(stored_type(type_.value_type))
    if t.is_struct(type_):
        return pa.struct([pa.field(f.name, stored_type(f.type)) for f in type_])
    return type_


def _replace_null_types(type_: pa.DataType) -> pa.DataType:
    """Replaces null types, of columns or lists without any value, by string."""
    if pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_list(type_):
        return pa.list_(_replace_null_types(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, _replace_null_types(f.type)) for f in type_])
    return type_


def _widen_type(name: str, a: tuple[str, pa.DataType], b: tuple[str, pa.DataType]) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, type_)]) for _, type_ in (a, b)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        message = f"{name!r} is {a[1]} in {a[0]}, {b[1]} in {b[0]}"
        hint = f"state the type to keep, `metadata: {{{name}: string}}`"
        raise ConfigError(f"input.columns.metadata: shards disagree: {message}; {hint}") from error


def with_partition_columns(found: Sequence[Found], columns: Columns, paths: Sequence[str] | None = None) -> list[Found]:
    """Adds the requested Hive partition columns (`year=2020`) to the schemas, typed by the values of all `paths`."""
    named = (columns.id, columns.text, columns.title, *map(columns.source_of, columns.metadata))
    wanted = {name for name in named if name is not None}
    fields = list(_partition_schema([f.file.path for f in found] if paths is None else paths, wanted))
    return [_with_fields(f, [x for x in fields if f"/{x.name}=" in f.file.path]) for f in found] if fields else [*found]


def _with_fields(found: Found, fields: Sequence[pa.Field]) -> Found:
    schema = found.seen.schema
    if schema is None or not fields:
        return found
    added = pa.schema([*schema, *(f for f in fields if f.name not in schema.names)])
    return replace(found, seen=replace(found.seen, schema=added))


def _partition_schema(paths: Sequence[str], names: set[str]) -> pa.Schema:
    """Infers the types of requested Hive partitions in some paths: int64 if all values are integers, else string."""
    folders = list(dict.fromkeys(path.rpartition("/")[0] for path in paths if "=" in path))
    found = [partition_values(f"{folder}/x", sorted(names)) for folder in folders]
    values = {name: [given[name] for given in found if given.get(name) is not None] for name in names}
    seen = {name for given in found for name in given}
    return pa.schema([(name, _partition_type(values[name])) for name in sorted(seen)])


def _partition_type(values: Sequence[str | None]) -> pa.DataType:
    try:
        pa.array(values, pa.string()).cast(pa.int64())
    except pa.ArrowException:
        return pa.string()
    return pa.int64() if values else pa.string()


def partition_values(path: str, names: Sequence[str]) -> dict[str, str | None]:
    """Returns a file's Hive partition values of these columns as text."""
    given = [name for name in names if f"/{name}=" in path]
    if not given or not is_utf8(path):
        return {}
    partitioning = pads.HivePartitioning(pa.schema([(name, pa.string()) for name in given]), null_fallback=NO_PARTITION)
    values: Mapping[str, Any] = pads.get_partition_keys(partitioning.parse(path))
    return {name: values.get(name) for name in given}


def fill_partitions(raw: RawRows, partitions: Mapping[str, str | None]) -> RawRows:
    """Adds the Hive partition columns that the file itself lacks."""
    added = {name: [value] * len(raw) for name, value in partitions.items() if _is_absent(raw, name)}
    return replace(raw, columns={**raw.columns, **added}) if added else raw


def _is_absent(raw: RawRows, name: str) -> bool:
    column = raw.columns.get(name)
    return column is None or (isinstance(column, list) and all(value is None for value in column))
