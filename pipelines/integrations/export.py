"""Exports an index to other systems: its table as Parquet, bit for bit, or decoded vectors one chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from actors.codecs.table import decode
from actors.outputs import MultiVectors, SparseVectors
from pipelines.config import ConfigError
from pipelines.integrations.metadata import from_columns
from pipelines.retrieval.index import Index, open_index
from pipelines.store.table import Snapshot, open_table

ROWS_PER_FILE = 100_000
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts what an export wrote."""

    folder: str
    files: int
    rows: int

    def text(self) -> str:
        """Formats the counts as one line."""
        return f"{self.rows:,} rows in {self.files} Parquet file{'s' * (self.files != 1)}: {self.folder}"


def export_parquet(
    uri: str | Path,
    folder: str | Path,
    *,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    rows_per_file: int = ROWS_PER_FILE,
) -> Exported:
    """Writes every row and column of an index's table as Parquet files, with the index's identity in their schema.

    `pyarrow.parquet.read_table(folder)` equals the table. Raises ConfigError for a folder that is not empty.
    """
    snapshot, target = open_table(uri, table, storage_options), Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"output: {target} is there and not empty; nothing was written")
    target.mkdir(parents=True, exist_ok=True)
    files = sum(1 for _ in _write_files(snapshot, target, rows_per_file))
    return Exported(str(target), files, len(snapshot))


def _write_files(snapshot: Snapshot, folder: Path, rows: int) -> Iterator[Path]:
    """Writes one file per `rows` rows, in table order; at least one."""
    columns = snapshot.schema.names
    for number, first in enumerate(range(0, max(1, len(snapshot)), rows)):
        part = snapshot.take(np.arange(first, min(first + rows, len(snapshot))), columns)
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(part.replace_schema_metadata(snapshot.schema.metadata), path, compression="zstd")
        yield path


@dataclass(frozen=True, slots=True)
class ExportedChunk:
    """Holds one row of an index with its vectors as floats."""

    doc_id: str
    chunk_id: str
    text: str
    metadata: Mapping[str, Any]
    dense: Floats | None
    """(d,)"""
    sparse: Mapping[int, float] | None
    """Weight of each token id."""
    colbert: Floats | None
    """(tokens, d): what the codec kept, decoded into the model's own space."""


def read_chunks(index: str | Path | Index, batch_rows: int = 1024) -> Iterator[ExportedChunk]:
    """Yields every row of an index with its vectors, in table order, for loading into another system."""
    opened = index if isinstance(index, Index) else open_index(index)
    snapshot, cache = opened.snapshot, opened.column_cache
    names = ["doc_id", "chunk_id", "text", *snapshot.metadata_columns]
    for first in range(0, len(snapshot), batch_rows):
        positions = np.arange(first, min(first + batch_rows, len(snapshot)))
        rows = snapshot.take(positions, names).to_pylist()
        vectors = {output: cache.take(output, positions) for output in cache.outputs}
        for i, row in enumerate(rows):
            yield ExportedChunk(
                row.pop("doc_id"),
                row.pop("chunk_id"),
                row.pop("text"),
                from_columns(row),
                _dense(vectors.get("dense"), i),
                _sparse(vectors.get("sparse"), i),
                _colbert(vectors.get("colbert"), i, opened),
            )


def _dense(vectors: Any, i: int) -> Floats | None:
    return None if vectors is None else np.asarray(vectors[i], np.float32)


def _sparse(vectors: Any, i: int) -> dict[int, float] | None:
    if not isinstance(vectors, SparseVectors):
        return None
    a, b = vectors.offsets[i], vectors.offsets[i + 1]
    return dict(zip(vectors.token_ids[a:b].tolist(), vectors.weights[a:b].tolist(), strict=True))


def _colbert(vectors: Any, i: int, index: Index) -> Floats | None:
    if not isinstance(vectors, MultiVectors):
        return None
    cache = index.column_cache
    codes = vectors.vectors[vectors.offsets[i] : vectors.offsets[i + 1]]
    return decode(codes, cache.codec, cache.colbert_dim)
