"""Writes in-memory data as Parquet beside the index, so that a job reads it like any input file.

Frames, tables, rows, iterators, `datasets` and Ray Data then have the same columns, quarantine and incremental rules as
files, and every worker can read them; the price is that they are written once, compressed, and removed afterwards. A
column of mixed Python values is written as JSON and judged value by value, as JSON Lines are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.config import ConfigError, IndexConfig, InputConfig
from pipelines.reading.files import READ_ERRORS, filesystem
from pipelines.reading.formats.parquet import JSON_KEY
from pipelines.store.lease import machine_name, process_name

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import ray.data

logger = logging.getLogger(__name__)

Rows: TypeAlias = (
    "pd.DataFrame | pl.DataFrame | pl.LazyFrame | pa.Table | pa.RecordBatch | pa.RecordBatchReader | datasets.Dataset"
    " | datasets.IterableDataset | ray.data.Dataset | Iterable[Mapping[str, Any]]"
)
"""In-memory data that `build_index` accepts beside a config."""

SPOOL = ".spool-"
"""Suffix of a spool folder's name, after the index's name."""
LABEL = "memory"
"""What the index calls the source of such rows."""
BATCH_ROWS = 4096
ROW_GROUP_BYTES = 16 * 2**20


@contextlib.contextmanager
def spooled(data: Rows, config: InputConfig, index: IndexConfig) -> Iterator[InputConfig]:
    """Yields an input config for `data` written to files beside the index, which are deleted when the block ends.

    TypeError for what holds no rows.
    """
    folder = f"{index.uri.rstrip('/')}{SPOOL}{_owner(os.getpid())}-{uuid.uuid4().hex[:8]}"
    files, path = filesystem(folder, index.storage_options)
    batches = None if _is_ray(data) else record_batches(data)
    try:
        files.create_dir(path, recursive=True)
        if batches is None:
            cast("ray.data.Dataset", data).write_parquet(path, filesystem=files)
        else:
            _write(batches, files, path)
        options = index.storage_options
        yield config.model_copy(
            update={"paths": (folder,), "format": "parquet", "label": LABEL, "storage_options": options}
        )
    finally:
        with contextlib.suppress(FileNotFoundError):
            files.delete_dir(path)


def _owner(pid: int) -> str:
    """Returns a process's id with hashes of its machine and its start, as parts of a folder's name."""
    parts = (machine_name(), process_name(pid) or "")
    return "-".join([str(pid), *(blake2b(part.encode(), digest_size=4).hexdigest() for part in parts)])


def remove_left_spools(index: IndexConfig) -> None:
    """Removes what killed processes of this machine have left beside an index; names what others may have left.

    Nothing happens if the folder around the index cannot be listed.
    """
    files, path = filesystem(index.uri, index.storage_options)
    pattern = re.compile(rf"{re.escape(path.rpartition('/')[2])}{re.escape(SPOOL)}((\d+)-(\w+)-\w+)-\w+")
    beside: list[pafs.FileInfo] = []
    with contextlib.suppress(*READ_ERRORS):
        beside = files.get_file_info(pafs.FileSelector(path.rpartition("/")[0] or "/", allow_not_found=True))
    for info in beside:
        found = pattern.fullmatch(info.base_name)
        if found is None or found[1] == _owner(int(found[2])):
            continue
        if machine_name() and found[3] == _owner(int(found[2])).split("-")[1]:
            files.delete_dir(info.path)
            logger.warning("removed %s, which a killed run had left", info.path)
        else:
            logger.warning("%s is of a run on another machine; if that has ended, remove it", info.path)


def _is_ray(data: object) -> bool:
    """Returns whether an object is a `ray.data.Dataset`, without importing Ray."""
    module = sys.modules.get("ray.data")
    return module is not None and isinstance(data, module.Dataset)


def record_batches(data: Any) -> Iterator[pa.RecordBatch]:
    """Yields Arrow batches of the rows in any supported object; TypeError at once for an unsupported one."""
    if isinstance(data, (str, bytes, Mapping)):
        raise TypeError(f"build_index takes a config, a frame, a table or rows, not a {type(data).__name__}")
    kind = type(data).__module__.partition(".")[0]
    if kind == "polars":
        frame = data.collect() if hasattr(data, "collect") else data
        return iter(frame.to_arrow().to_batches())
    if kind == "pandas":
        return _convert_pandas(data)
    if isinstance(data, pa.RecordBatch):
        return iter([data])
    if isinstance(data, (pa.Table, pa.RecordBatchReader)):
        return iter(data.to_batches()) if isinstance(data, pa.Table) else iter(data)
    if kind == "datasets" and hasattr(data, "data"):
        plain = data.with_format("arrow")
        return (batch for table in plain.iter(BATCH_ROWS) for batch in table.to_batches())
    if hasattr(data, "__arrow_c_stream__"):
        return iter(pa.RecordBatchReader.from_stream(data))
    if not hasattr(data, "__iter__"):
        raise TypeError(f"build_index takes a config, a frame, a table or rows, not a {type(data).__name__}")
    return _convert_rows(data)


def _convert_pandas(frame: pd.DataFrame) -> Iterator[pa.RecordBatch]:
    """Converts a pandas frame: columns of one type directly, others value by value; the index is dropped."""
    arrays = {str(name): _to_array(frame.iloc[:, i], from_pandas=True) for i, name in enumerate(frame.columns)}
    yield from _table(arrays).to_batches()


def _convert_rows(rows: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    iterator = iter(rows)
    first = 0
    while batch := list(itertools.islice(iterator, BATCH_ROWS)):
        for i, row in enumerate(batch):
            if not isinstance(row, Mapping):
                raise ConfigError(f"row {first + i}: is a {type(row).__name__}, a mapping of columns is needed")
        names = list(dict.fromkeys(str(name) for row in batch for name in row))
        yield from _table({name: _to_array([row.get(name) for row in batch]) for name in names}).to_batches()
        first += len(batch)


def _to_array(values: Any, from_pandas: bool = False) -> pa.Array | _JsonArray:
    """Builds an Arrow array of the values' common type, or of JSON if there is none."""
    with contextlib.suppress(pa.ArrowException, UnicodeError, OverflowError, ValueError, TypeError):
        array = pa.array(values, from_pandas=from_pandas)
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        if not _has_empty_struct(array.type):
            return array
    return _JsonArray([None if _is_missing(v) else json.dumps(v, default=_jsonable) for v in values])


def _has_empty_struct(type_: pa.DataType) -> bool:
    """Returns whether a type holds a struct without fields, which Parquet cannot write."""
    if pa.types.is_struct(type_) and not type_.num_fields:
        return True
    return any(_has_empty_struct(type_.field(i).type) for i in range(type_.num_fields))


def _jsonable(value: Any) -> str:
    """Converts a value that JSON lacks to text; invalid UTF-8 becomes surrogates, which row validation reports."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


class _JsonArray(list[str | None]):
    """Holds values of mixed types, each as JSON."""


def _is_missing(value: Any) -> bool:
    """Returns whether a value is None or pandas' NaN or NA."""
    return value is None or (isinstance(value, float) and value != value) or str(value) == "<NA>"


def _table(columns: Mapping[str, Any]) -> pa.Table:
    fields, arrays = [], []
    for name, values in columns.items():
        mixed = isinstance(values, _JsonArray)
        arrays.append(pa.array(values, pa.string()) if mixed else values)
        fields.append(pa.field(name, arrays[-1].type, metadata={JSON_KEY: b"1"} if mixed else None))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _write(batches: Iterable[pa.RecordBatch], files: Any, folder: str) -> None:
    """Writes one file per run of batches with equal schemas, named by the number of its first row."""
    first, writer, schema = 0, None, None
    pending: list[pa.RecordBatch] = []
    try:
        for batch in batches:
            if schema is None or not batch.schema.equals(schema, check_metadata=True):
                _flush(writer, pending)
                _close(writer)
                schema = batch.schema
                writer = pq.ParquetWriter(f"{folder}/rows-{first:012d}.parquet", schema, filesystem=files)
            pending.append(batch)
            first += len(batch)
            if sum(b.nbytes for b in pending) >= ROW_GROUP_BYTES:
                _flush(writer, pending)
        _flush(writer, pending)
    finally:
        _close(writer)
    if not first:
        raise ConfigError("build_index: the data has no rows")


def _flush(writer: pq.ParquetWriter | None, pending: list[pa.RecordBatch]) -> None:
    if writer is not None and pending:
        writer.write_table(pa.Table.from_batches(pending))
    pending.clear()


def _close(writer: pq.ParquetWriter | None) -> None:
    if writer is not None:
        writer.close()
