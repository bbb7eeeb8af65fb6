"""Splits the input into units that are read independently, and reads each as a stream of documents.

Own units instead of `ray.data.read_*`: Ray's readers fail a whole block for one bad row and merge small files into one
input. Nothing here depends on Ray. A wrong request (no file, no such column) is a ConfigError before any work; a
damaged file or row is a row with `error` set, never an exception, so that one shard cannot end a night's job.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from pipelines.config import Columns, ConfigError, InputConfig
from pipelines.reading.columns import (
    PLACES,
    Found,
    check_column_names,
    fill_partitions,
    metadata_field,
    partition_values,
    with_partition_columns,
)
from pipelines.reading.documents import error_table, read_schema, to_documents
from pipelines.reading.files import READ_ERRORS, File, file_at, redact
from pipelines.reading.formats import NUMBERED_PARTS, READERS
from pipelines.reading.formats.base import UNREADABLE, Part, ReadOptions, field_at, single_part
from pipelines.reading.layouts import choose_formats
from pipelines.reading.listing import SkippedFile, count_by_kind, list_files
from pipelines.reading.table_formats import refusal_of_table
from pipelines.store.schema import SYSTEM_COLUMNS

__all__ = ["InputPlan", "Unit", "metadata_fields", "plan_input", "plan_units", "read_schema", "read_unit"]

UNIT_BYTES = 16 * 2**20
MIN_BYTES = 2**16
MIN_UNITS = 32
"""Small inputs are split finer than UNIT_BYTES, so that every worker gets a unit."""
MAX_FILES = 1000
THREADS = 16
"""Files inspected at once: on object storage, waiting is all that inspecting does."""
SAMPLE_FILES = 16

ID_NAMES = ("id", "_id", "doc_id")
RESERVED = {*SYSTEM_COLUMNS, "position", "error"}
_Listed: TypeAlias = tuple[File, str, str]
"""A file, its format, and the folder that it was found in."""

REWRITTEN = "the file was rewritten while the job ran"
"""Start of the error of a file replaced while the job ran; the next run reads the new content."""

NO_ROWS = "a file without rows"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Unit:
    """Describes the input of one task: a part of one file, or several small files. Holds no secrets."""

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
        """Returns the total size of the files in bytes."""
        return self.part.size

    @property
    def rows(self) -> int | None:
        """Returns the number of rows; None if only reading the file shows it."""
        return self.part.rows


@dataclass(frozen=True, slots=True)
class InputPlan:
    """Holds the result of planning an input: the units to read, and the skipped files with reasons."""

    units: list[Unit]
    skipped: tuple[SkippedFile, ...]


def plan_units(config: InputConfig) -> list[Unit]:
    """Returns `plan_input(config).units`."""
    return plan_input(config).units


def plan_input(config: InputConfig) -> InputPlan:
    """Finds the units of all input paths in a fixed order: equal files give equal units.

    Reads footers, headers and the first rows. ConfigError if a path matches no file, a format cannot be told, or a
    column does not exist. A file that cannot be opened becomes a unit all the same, and `read_unit` reports it.
    """
    _check_request(config)
    files: dict[str, _Listed] = {}
    skipped: list[SkippedFile] = []
    for i, path in enumerate(config.paths):
        listed, left_out = _files_of(config, i, path)
        skipped += left_out
        for entry in listed:  # a file that two paths name is read once
            files.setdefault(entry[0].uri, entry)
    total = sum(file.size for file, _, _ in files.values())
    part_bytes = max(min(UNIT_BYTES, total // MIN_UNITS), MIN_BYTES)
    options = ReadOptions.of(config)
    found = _in_threads(lambda f: _inspect(*f, part_bytes, options), list(files.values()))
    found = with_partition_columns(found, config.columns)
    _check_columns(config.columns, found)
    skipped += [SkippedFile(f.file.uri, NO_ROWS) for f in found if not f.seen.parts]
    units = _split(config.columns, found)
    read = {path for unit in units for path in unit.paths}
    return InputPlan(_group_small_files(units, part_bytes), tuple(s for s in skipped if s.uri not in read))


def list_versions(config: InputConfig) -> dict[str, str]:
    """Returns the version of every file of the input by its URI, without reading any: what a listing costs.

    A version changes with a file's size and modification time, or is that of a Lance table. ConfigError if a path
    matches no file.
    """
    options, versions = ReadOptions.of(config), {}
    for i, path in enumerate(config.paths):
        for file, format_, root in _files_of(config, i, path)[0]:
            seen = None if file.version else _inspect(file, format_, root, UNIT_BYTES, options).seen.version
            versions[file.uri] = file.version or str(seen)
    return versions


def _in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


def _check_request(config: InputConfig) -> None:
    taken = sorted(set(config.columns.metadata) & RESERVED)
    if taken:
        raise ConfigError(f"input.columns.metadata: {taken} are names of columns that tridex writes itself")
    check_column_names(config.columns)
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(config.template) if name is not None}
    except ValueError as error:
        raise ConfigError(f"input.template: {config.template!r}: {error}") from error
    if "text" not in names or names - {"title", "text"}:
        raise ConfigError(
            f"input.template: {config.template!r} must hold {{text}} and may hold {{title}}, nothing else"
        )


def _files_of(config: InputConfig, index: int, path: str) -> tuple[list[_Listed], list[SkippedFile]]:
    """Returns (file, format, root) of the files of one input path, and the skipped files."""
    where = f"input.paths.{index}"
    try:
        listing = list_files(path, config.storage_options)
    except READ_ERRORS as error:
        message = redact(str(error), config.storage_options)
        raise ConfigError(f"{where}: cannot list {path!r}: {message}") from error
    if listing.table is not None:
        raise ConfigError(f"{where}: {refusal_of_table(*listing.table)}")
    if not listing.files:
        kinds = "; ".join(str(kind) for kind in count_by_kind(listing.skipped)[:5])
        raise ConfigError(f"{where}: no file matches {path!r}{f'; left out: {kinds}' if kinds else ''}")
    files, skipped = choose_formats(config, where, path, listing)
    return [(file, format_, listing.root) for file, format_ in files], [*listing.skipped, *skipped]


def _inspect(file: File, format_: str, root: str, part_bytes: int, options: ReadOptions) -> Found:
    try:
        seen = READERS[format_].inspect(file, part_bytes, options)
    except READ_ERRORS:
        seen = single_part(file)
    if seen.schema is not None and options.paths:
        nested = [field_at(seen.schema, path) for path in options.paths if path not in seen.schema.names]
        seen = replace(seen, schema=pa.schema([*seen.schema, *(f for f in nested if f is not None)]))
    return Found(file, format_, root, seen)


def _check_columns(columns: Columns, found: Sequence[Found]) -> None:
    """Checks that files have the configured columns; in JSON Lines, only the text is needed in each file's start."""
    required = [("id", columns.id), ("text", columns.text), ("title", columns.title)]
    required += [("metadata", columns.source_of(name)) for name in columns.metadata]
    seen = [(f, f.seen.schema.names) for f in found if f.seen.schema is not None]
    loose = {name for f, names in seen if not READERS[f.format].strict for name in names}
    for f, names in seen:
        for key, name in required:
            present = names if READERS[f.format].strict or key == "text" else loose
            if READERS[f.format].is_document and key == "metadata":
                present = [*names, *PLACES]
            if name is not None and name not in present:
                has = ", ".join(n if n.isprintable() else repr(n) for n in names)
                raise ConfigError(f"input.columns.{key}: {f.file.uri} has no column {name!r}; it has {has}")
            if name is not None and names.count(name) > 1:
                raise ConfigError(f"input.columns.{key}: {f.file.uri} has {names.count(name)} columns {name!r}")


def _resolve_columns(columns: Columns, schema: pa.Schema) -> Columns:
    """Returns the columns with `id` and `title` resolved for one file."""
    id_ = columns.id or next((name for name in ID_NAMES if name in schema.names), None)
    title = columns.title or ("title" if "title" in schema.names and columns.text != "title" else None)
    return columns.model_copy(update={"id": id_, "title": title})


def _split(columns: Columns, found: Sequence[Found]) -> list[Unit]:
    """Splits files into units; a file without known columns gets those of the previous file, or of the first."""
    schemas = [f.seen.schema for f in found if f.seen.schema is not None]
    last = schemas[0] if schemas else pa.schema([])
    units = []
    for f in found:
        last = f.seen.schema if f.seen.schema is not None else last
        mapping = _resolve_columns(columns, last)
        version = f.seen.version or f.file.version
        root = f.root if READERS[f.format].is_document else ""
        units += [Unit((f.file.uri,), f.format, mapping, root, part, (version,)) for part in f.seen.parts]
    return units


def _group_small_files(units: Iterable[Unit], part_bytes: int) -> list[Unit]:
    """Merges neighbouring small whole files of one kind into one unit."""
    grouped: list[Unit] = []
    for unit in units:
        last = grouped[-1] if grouped else None
        if last is not None and _can_merge(last, unit, part_bytes):
            grouped[-1] = _merge_units(last, unit)
        else:
            grouped.append(unit)
    return grouped


def _can_merge(a: Unit, b: Unit, part_bytes: int) -> bool:
    alike = (a.format, a.columns, a.root) == (b.format, b.columns, b.root)
    return alike and _is_whole(a) and _is_whole(b) and a.size + b.size <= part_bytes and len(a.paths) < MAX_FILES


def _is_whole(unit: Unit) -> bool:
    return unit.format != "lance" and unit.part.stop < 0


def _merge_units(a: Unit, b: Unit) -> Unit:
    rows = None if a.rows is None or b.rows is None else a.rows + b.rows
    part = Part(rows=rows, size=a.size + b.size)
    return replace(a, paths=a.paths + b.paths, part=part, versions=a.versions + b.versions)


def metadata_fields(config: InputConfig, units: Sequence[Unit]) -> list[pa.Field]:
    """Returns names and types of the stored metadata columns, from up to 16 files spread over the units.

    A type that the config states is taken as it is. Of guessed ones integers widen to what holds all files' values and
    nulls give way. ConfigError if two files disagree otherwise. Converted documents have two columns more, `heading`
    and `page`, which chunks fill.
    """
    names = config.columns.metadata
    places = [PLACES[name] for name in PLACES if name not in names and any(u.format == "document" for u in units)]
    if not names:
        return places
    files = list(dict.fromkeys((path, unit.format) for unit in units for path in unit.paths))
    sample = files[:: max(1, len(files) // SAMPLE_FILES)]
    found = _in_threads(lambda f: _inspect_again(config, *f), sample)
    found = with_partition_columns(found, config.columns, [path for path, _ in files])
    schemas = [(f.file.uri, f.seen.schema or pa.schema([])) for f in found]
    return [metadata_field(name, config.columns, schemas) for name in names] + places


def _inspect_again(config: InputConfig, path: str, format_: str) -> Found:
    return _inspect(file_at(path, config.storage_options), format_, "", UNIT_BYTES, ReadOptions.of(config))


def pick_evenly(units: Sequence[Unit], most: int) -> list[Unit]:
    """Selects at most so many units, evenly spaced over the whole input."""
    places = np.linspace(0, len(units) - 1, min(most, len(units))).round().astype(int)
    return [units[i] for i in places]


def read_unit(
    unit: Unit, config: InputConfig, batch_rows: int, fields: Sequence[pa.Field] | None = None
) -> Iterator[pa.Table]:
    """Yields the unit's rows in order, in the read schema, in blocks of at most `batch_rows` rows and about 32 MiB.

    `fields` are the metadata columns as `metadata_fields` gave them for the whole input; None looks at this unit alone.
    `position` counts rows from the start of what `source` names: a file, or FILE@BYTE for a piece of a large JSON Lines
    file. What cannot be read (a file, the rest of it, a row group) is one row with `error`, `doc_id` null, position -1.
    So is a file that is not the one that was planned: what a census said of its rows would be said of others.
    """
    fields = metadata_fields(config, [unit]) if fields is None else fields
    for path, version in zip(unit.paths, unit.versions, strict=True):
        numbered = unit.format in NUMBERED_PARTS and unit.part.start
        source = source_name(f"{path}@{unit.part.start}" if numbered else path, config)
        try:
            yield from _read_file(unit, path, version, source, config, batch_rows, fields)
        except READ_ERRORS as error:
            message = redact(f"{type(error).__name__}: {error}", config.storage_options)
            yield error_table(source, UNREADABLE, f"cannot be read: {message}", fields)


def source_name(path: str, config: InputConfig) -> str:
    """Returns the name of a file in the index: its path, or `input.label` for in-memory data."""
    return path if config.label is None else f"{config.label}/{path.rpartition('/')[2]}"


def _read_file(
    unit: Unit,
    path: str,
    version: str,
    source: str,
    config: InputConfig,
    batch_rows: int,
    fields: Sequence[pa.Field],
) -> Iterator[pa.Table]:
    columns = unit.columns
    wanted = [columns.text, columns.id, columns.title, *(columns.source_of(field.name) for field in fields)]
    names = list(dict.fromkeys(name for name in wanted if name is not None))
    if _is_replaced(unit, path, version, config):
        yield error_table(source, UNREADABLE, f"{REWRITTEN}: nothing of it was read", fields)
        return
    file = replace(file_at(path, config.storage_options), version=version, root=unit.root)
    partitions = partition_values(file.path, names)
    for raw in READERS[unit.format].rows(file, unit.part, names, batch_rows, ReadOptions.of(config)):
        yield to_documents(fill_partitions(raw, partitions), source, columns, config, fields)
    if _is_replaced(unit, path, version, config):
        yield error_table(source, UNREADABLE, f"{REWRITTEN}, and while it was read", fields)


def _is_replaced(unit: Unit, path: str, version: str, config: InputConfig) -> bool:
    """Returns whether the file has been replaced since planning. A Lance table is read at its planned version."""
    file = file_at(path, config.storage_options)
    return unit.format != "lance" and file.version != version and file.exists
