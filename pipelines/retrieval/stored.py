"""One embedder's stored outputs as arrays: whole in memory where they fit, streamed or taken by row where they do not.

The first search that needs a whole column loads it, within a budget of bytes for each index opened. A laptop corpus
then answers from memory; a corpus beyond the budget still answers, at the price of reading from storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from actors.outputs import Array, IntArray, MultiVectors, SparseVectors, matrix_from_arrow, offsets_of
from actors.spec import Output
from pipelines.store.codecs import CODECS, width
from pipelines.store.table import Snapshot

Data = Array | SparseVectors | MultiVectors
T = TypeVar("T", Array, SparseVectors, MultiVectors)


class Stored:
    """The columns NAME_dense, NAME_sparse and NAME_colbert of one snapshot; rows are named by position."""

    def __init__(self, snapshot: Snapshot, name: str, memory: int) -> None:
        self.snapshot = snapshot
        self.name = name
        self.embedder: Mapping[str, Any] = snapshot.identity.embedders[name]
        self.memory = memory
        self._resident: dict[Output, Data | None] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.snapshot)

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(self.embedder["outputs"])

    @property
    def codec(self) -> str:
        return str(self.embedder["colbert"])

    @property
    def colbert_dim(self) -> int:
        return int(self.embedder["colbert_dim"])

    def column(self, output: Output) -> str:
        return f"{self.name}_{output}"

    def nbytes(self, output: Output) -> int:
        """About how many bytes the column takes in memory."""
        if output == "dense":
            return len(self) * int(self.embedder["dim"]) * 4
        field = next(f for f in self.snapshot.dataset.lance_schema.fields() if f.name() == self.column(output))
        sizes = {f.id: f.bytes_on_disk for f in self.snapshot.dataset.stats.data_stats().fields}
        return sum(sizes.get(i, 0) for i in _ids(field))

    def whole(self, output: Output) -> Data | None:
        """The whole column, loaded when first asked for; None if what is left of the budget cannot hold it."""
        with self._lock:
            if output not in self._resident:
                size = self.nbytes(output)
                fits = size <= self.memory
                self._resident[output] = self._load(output) if fits else None
                self.memory -= size if fits else 0
            return self._resident[output]

    def blocks(self, output: Output, batch_rows: int = 8192) -> Iterator[tuple[int, Data]]:
        """(first position, data) over the whole table: one block where it is in memory, else batches from storage."""
        data = self.whole(output)
        if data is not None:
            yield 0, data
            return
        start = 0
        for batch in self.snapshot.scan([self.column(output)], batch_rows):
            yield start, self.from_arrow(output, batch.column(0))
            start += batch.num_rows

    def take(self, output: Output, positions: IntArray) -> Data:
        """The rows at these positions, in this order."""
        data = self._resident.get(output)
        if data is None:
            return self.from_arrow(output, _one(self.snapshot.take(positions, [self.column(output)]).column(0)))
        return data[positions] if isinstance(data, np.ndarray) else data.take(positions)

    def from_arrow(self, output: Output, column: pa.Array) -> Data:
        if output == "dense":
            return matrix_from_arrow(column).astype(np.float32, copy=False)
        if output == "sparse":
            return SparseVectors.from_arrow(column)
        code = None if CODECS[self.codec].is_float else width(self.codec, self.colbert_dim)
        return MultiVectors.from_arrow(column, code)

    def _load(self, output: Output) -> Data:
        batches = (b.column(0) for b in self.snapshot.scan([self.column(output)]))
        return joined([self.from_arrow(output, column) for column in batches], self._nothing(output))

    def _nothing(self, output: Output) -> Data:
        kind = self.snapshot.schema.field(self.column(output)).type
        return self.from_arrow(output, pa.array([], kind))


def _ids(field: Any) -> Iterator[int]:
    yield field.id()
    for child in field.children():
        yield from _ids(child)


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _stack(parts: list[Array]) -> Array:
    """Concatenates and lets go of each part once it is copied, so that the peak is hardly above the result."""
    result = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    end = len(result)
    while parts:
        part = parts.pop()
        result[end - len(part) : end] = part
        end -= len(part)
    return result


def joined(parts: list[Any], nothing: Data) -> Data:
    """Blocks of one output to one block; `nothing` stands for no blocks at all. Consumes the list."""
    if not parts:
        return nothing
    if isinstance(nothing, np.ndarray):
        return _stack(parts)
    offsets = offsets_of(np.concatenate([np.diff(p.offsets) for p in parts]))
    if isinstance(nothing, SparseVectors):
        ids, weights = [p.token_ids for p in parts], [p.weights for p in parts]
        parts.clear()
        return SparseVectors(offsets, _stack(ids), _stack(weights))
    vectors = [p.vectors for p in parts]
    parts.clear()
    return MultiVectors(offsets, _stack(vectors))
