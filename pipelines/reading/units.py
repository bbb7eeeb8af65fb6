"""Cuts the input into units that are read independently, and reads each as a stream of documents.

Own units instead of `ray.data.read_*`: Ray's readers fail a whole block for one bad row and merge small files into one
input. Nothing here knows Ray. A wrong request (no file, no such column) is a ConfigError before any work; a damaged
file or row is a row with `error` set, never an exception, so that one shard cannot end a night's job.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipelines.config import Columns, ConfigError, InputConfig
from pipelines.reading.documents import error_table, read_schema, to_documents
from pipelines.reading.files import READ_ERRORS, File, Listing, filesystem, list_files, redact, version_of
from pipelines.reading.formats import READERS, format_of
from pipelines.reading.formats.base import UNREADABLE, Inspection, Part, single_part
from pipelines.store.schema import SYSTEM_COLUMNS

__all__ = ["Unit", "metadata_fields", "plan_units", "read_schema", "read_unit"]

UNIT_BYTES = 16 * 2**20
MIN_BYTES = 2**16
MIN_UNITS = 32
"""Small inputs are cut finer than UNIT_BYTES, so that every worker gets something."""
MAX_FILES = 1000
THREADS = 16
"""Files inspected at once: on object storage, waiting is all that inspecting does."""
SAMPLE_FILES = 16

ID_NAMES = ("id", "_id", "doc_id")
RESERVED = {*SYSTEM_COLUMNS, "position", "error"}

REWRITTEN = "the file was rewritten while the job ran"
"""How the error of such a file begins; the next run takes it as it is then."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of input that one task reads: a part of one file, or several small files whole. Holds no secrets."""

    paths: tuple[str, ...]
    format: str
    columns: Columns
    """With `id` and `title` resolved; None: these files have none."""
    root: str = ""
    """Folder that ids of text files are relative to."""
    part: Part = field(default_factory=Part)
    versions: tuple[str, ...] = ()
    """Of each file, as it was when the job was planned: size and time of the last change, a Lance table's version."""

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def size(self) -> int:
        """Bytes in the files."""
        return self.part.size

    @property
    def rows(self) -> int | None:
        """None where only reading can tell."""
        return self.part.rows


@dataclass(frozen=True, slots=True)
class _Found:
    """A file with its format, and what inspecting it gave."""

    file: File
    format: str
    root: str
    seen: Inspection


def plan_units(config: InputConfig) -> list[Unit]:
    """The units of all input paths, in a fixed order: same files, same units.

    Reads footers, headers and the first rows. ConfigError if a path matches no file, a format cannot be told, or a
    column does not exist. A file that cannot be opened becomes a unit all the same, and `read_unit` reports it.
    """
    _check_request(config)
    files = [found for i, path in enumerate(config.paths) for found in _files_of(config, i, path)]
    total = sum(file.size for file, _, _ in files)
    part_bytes = max(min(UNIT_BYTES, total // MIN_UNITS), MIN_BYTES)
    found = _in_threads(lambda f: _inspect(*f, part_bytes), files)
    _check_columns(config.columns, found)
    units = _split(config.columns, found)
    return _grouped(units, part_bytes)


def _in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


def _check_request(config: InputConfig) -> None:
    taken = sorted(set(config.columns.metadata) & RESERVED)
    if taken:
        raise ConfigError(f"input.columns.metadata: {taken} are names of columns that tridex writes itself")
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(config.template) if name is not None}
    except ValueError as error:
        raise ConfigError(f"input.template: {config.template!r}: {error}") from error
    if "text" not in names or names - {"title", "text"}:
        raise ConfigError(
            f"input.template: {config.template!r} must hold {{text}} and may hold {{title}}, nothing else"
        )


def _files_of(config: InputConfig, index: int, path: str) -> list[tuple[File, str, str]]:
    """(file, format, root) for one of the input paths."""
    where = f"input.paths.{index}"
    try:
        listing = list_files(path, config.storage_options)
    except READ_ERRORS as error:
        message = redact(str(error), config.storage_options)
        raise ConfigError(f"{where}: cannot list {path!r}: {message}") from error
    if not listing.files:
        raise ConfigError(f"{where}: no file matches {path!r}")
    return [(file, format_, listing.root) for file, format_ in _with_formats(config, where, path, listing)]


def _with_formats(config: InputConfig, where: str, path: str, listing: Listing) -> list[tuple[File, str]]:
    told = [(file, format_of(file.name)) for file in listing.files]
    if config.format != "auto":
        named = [file for file, format_ in told if format_ == config.format]
        return [(file, str(config.format)) for file in named or listing.files]
    known = [(file, format_) for file, format_ in told if format_ is not None]
    # Data sets come with a README beside their shards.
    data = known if listing.exact else [(f, format_) for f, format_ in known if format_ != "text"] or known
    formats = sorted({format_ for _, format_ in data})
    if len(formats) == 1:
        return data
    problem = f"it holds {' and '.join(formats)}" if formats else "its name does not tell the format"
    raise ConfigError(f"{where}: {path!r}: {problem}; set input.format to one of {', '.join(READERS)}")


def _inspect(file: File, format_: str, root: str, part_bytes: int) -> _Found:
    try:
        return _Found(file, format_, root, READERS[format_].inspect(file, part_bytes))
    except READ_ERRORS:
        return _Found(file, format_, root, single_part(file))


def _check_columns(columns: Columns, found: Sequence[_Found]) -> None:
    """Of JSON Lines only the text must be in every file's first rows; the rest may be sparse."""
    required = [("id", columns.id), ("text", columns.text), ("title", columns.title)]
    required += [("metadata", name) for name in columns.metadata]
    seen = [(f, f.seen.schema.names) for f in found if f.seen.schema is not None]
    loose = {name for f, names in seen if not READERS[f.format].strict for name in names}
    for f, names in seen:
        for key, name in required:
            present = names if READERS[f.format].strict or key == "text" else loose
            if name is not None and name not in present:
                has = ", ".join(names)
                raise ConfigError(f"input.columns.{key}: {f.file.uri} has no column {name!r}; it has {has}")


def _resolved(columns: Columns, schema: pa.Schema) -> Columns:
    """The columns with `id` and `title` as one file has them."""
    id_ = columns.id or next((name for name in ID_NAMES if name in schema.names), None)
    title = columns.title or ("title" if "title" in schema.names and columns.text != "title" else None)
    return columns.model_copy(update={"id": id_, "title": title})


def _split(columns: Columns, found: Sequence[_Found]) -> list[Unit]:
    """A file of which no column could be seen is taken to be like the last one before it, or else the first."""
    schemas = [f.seen.schema for f in found if f.seen.schema is not None]
    last = schemas[0] if schemas else pa.schema([])
    units = []
    for f in found:
        last = f.seen.schema if f.seen.schema is not None else last
        mapping = _resolved(columns, last)
        version = f.seen.version or f.file.version
        root = f.root if f.format == "text" else ""
        units += [Unit((f.file.uri,), f.format, mapping, root, part, (version,)) for part in f.seen.parts]
    return units


def _grouped(units: Iterable[Unit], part_bytes: int) -> list[Unit]:
    """Neighbours that are small whole files of one kind become one unit."""
    grouped: list[Unit] = []
    for unit in units:
        last = grouped[-1] if grouped else None
        if last is not None and _belong_together(last, unit, part_bytes):
            grouped[-1] = _merged(last, unit)
        else:
            grouped.append(unit)
    return grouped


def _belong_together(a: Unit, b: Unit, part_bytes: int) -> bool:
    alike = (a.format, a.columns, a.root) == (b.format, b.columns, b.root)
    return alike and _is_whole(a) and _is_whole(b) and a.size + b.size <= part_bytes and len(a.paths) < MAX_FILES


def _is_whole(unit: Unit) -> bool:
    return unit.format != "lance" and unit.part.stop < 0


def _merged(a: Unit, b: Unit) -> Unit:
    rows = None if a.rows is None or b.rows is None else a.rows + b.rows
    part = Part(rows=rows, size=a.size + b.size)
    return replace(a, paths=a.paths + b.paths, part=part, versions=a.versions + b.versions)


def metadata_fields(config: InputConfig, units: Sequence[Unit]) -> list[pa.Field]:
    """Names and types of the kept metadata columns, from up to 16 files pick_evenly over the units.

    Integers widen to what holds all files' values, nulls give way. ConfigError if two files disagree otherwise.
    """
    names = config.columns.metadata
    if not names:
        return []
    files = list(dict.fromkeys((path, unit.format) for unit in units for path in unit.paths))
    sample = files[:: max(1, len(files) // SAMPLE_FILES)]
    schemas = _in_threads(lambda f: _schema_of(config, *f), sample)
    return [_common_field(name, [(path, s) for (path, _), s in zip(sample, schemas, strict=True)]) for name in names]


def _schema_of(config: InputConfig, path: str, format_: str) -> pa.Schema:
    try:
        return READERS[format_].inspect(_file(path, config), UNIT_BYTES).schema or pa.schema([])
    except READ_ERRORS:
        return pa.schema([])


def _common_field(name: str, schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Field:
    common: tuple[str, pa.DataType] | None = None
    for path, schema in schemas:
        if name not in schema.names:
            continue
        type_ = _plain_type(schema.field(name).type)
        common = (path, type_) if common is None else (common[0], _wider(name, common, (path, type_)))
    found = pa.null() if common is None else common[1]
    return pa.field(name, pa.string() if pa.types.is_null(found) else found)


def _plain_type(type_: pa.DataType) -> pa.DataType:
    """The type without its encoding."""
    if pa.types.is_dictionary(type_):
        return _plain_type(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType):
        return _plain_type(type_.storage_type)
    return pa.string() if pa.types.is_large_string(type_) or pa.types.is_string_view(type_) else type_


def _wider(name: str, a: tuple[str, pa.DataType], b: tuple[str, pa.DataType]) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, type_)]) for _, type_ in (a, b)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        message = f"{name!r} is {a[1]} in {a[0]}, {b[1]} in {b[0]}"
        raise ConfigError(f"input.columns.metadata: shards disagree: {message}") from error


def _file(uri: str, config: InputConfig) -> File:
    fs, path = filesystem(uri, config.storage_options)
    info = fs.get_file_info(path)
    return File(fs, path, uri, info.size or 0, version_of(info), options=config.storage_options)


def pick_evenly(units: Sequence[Unit], most: int) -> list[Unit]:
    """At most so many units, at even distances over the whole input."""
    places = np.linspace(0, len(units) - 1, min(most, len(units))).round().astype(int)
    return [units[i] for i in places]


def read_unit(
    unit: Unit, config: InputConfig, batch_rows: int, fields: Sequence[pa.Field] | None = None
) -> Iterator[pa.Table]:
    """The unit's rows in order, in the read schema, in blocks of at most `batch_rows` rows and about 32 MiB.

    `fields` are the metadata columns as `metadata_fields` gave them for the whole input; None looks at this unit alone.
    `position` counts rows from the start of what `source` names: a file, or FILE@BYTE for a piece of a large JSON Lines
    file. What cannot be read (a file, the rest of it, a row group) is one row with `error`, `doc_id` null, position -1.
    So is a file that is not the one that was planned: what a census said of its rows would be said of others.
    """
    fields = metadata_fields(config, [unit]) if fields is None else fields
    for path, version in zip(unit.paths, unit.versions, strict=True):
        source = f"{path}@{unit.part.start}" if unit.format == "jsonl" and unit.part.start else path
        try:
            yield from _read_file(unit, path, version, source, config, batch_rows, fields)
        except READ_ERRORS as error:
            message = redact(f"{type(error).__name__}: {error}", config.storage_options)
            yield error_table(source, UNREADABLE, f"cannot be read: {message}", fields)


def _read_file(
    unit: Unit,
    path: str,
    version: str,
    source: str,
    config: InputConfig,
    batch_rows: int,
    fields: Sequence[pa.Field],
) -> Iterator[pa.Table]:
    wanted = [unit.columns.text, unit.columns.id, unit.columns.title, *(field.name for field in fields)]
    names = list(dict.fromkeys(name for name in wanted if name is not None))
    if _rewritten(unit, path, version, config):
        yield error_table(source, UNREADABLE, f"{REWRITTEN}: nothing of it was read", fields)
        return
    file = replace(_file(path, config), version=version, root=unit.root)
    for raw in READERS[unit.format].rows(file, unit.part, names, batch_rows, config.max_text_bytes):
        yield to_documents(raw, source, unit.columns, config, fields)
    if _rewritten(unit, path, version, config):
        yield error_table(source, UNREADABLE, f"{REWRITTEN}, and while it was read", fields)


def _rewritten(unit: Unit, path: str, version: str, config: InputConfig) -> bool:
    """Whether there is another file of that name now. A Lance table is read at its version, whatever came after."""
    file = _file(path, config)
    return unit.format != "lance" and file.version != version and file.exists
