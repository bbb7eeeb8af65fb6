"""Reads stored outputs as arrays: held in memory, memory-mapped from a local copy, streamed, or by row.

A column is read whole when it is first needed and fits what is left of a budget of bytes; a laptop corpus then answers
from memory. With a folder for local copies (`local`) columns are copied there instead, once for all processes, and
mapped. What fits neither still answers, at the price of reading from storage. Scores are the same in all cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from actors.codecs.codec import Codec
from actors.codecs.parameters import from_metadata
from actors.codecs.table import get_codec, width
from actors.outputs import Array, IntArray, MultiVectors, SparseVectors, matrix_from_arrow, offsets_of
from actors.spec import Output
from pipelines.retrieval.columns.local_copy import LocalColumn, bytes_of, open_local
from pipelines.store.table import Snapshot

Data = Array | SparseVectors | MultiVectors
T = TypeVar("T", Array, SparseVectors, MultiVectors)


class ColumnCache:
    """Caches one column NAME_OUTPUT per output of a snapshot; positions name the rows.

    names: the embedder whose column stands for each output, one for all or another for each.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        names: Mapping[Output, str],
        memory: int,
        local: Path | None = None,
        disk: int | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.names = dict(names)
        self.memory = memory
        self.local = local
        self.disk = disk
        self._resident: dict[Output, Data | None] = {}
        self._copies: dict[Output, LocalColumn | None] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.snapshot)

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(self.names)

    def embedder(self, output: Output) -> Mapping[str, Any]:
        """Returns the index's identity of the embedder of an output."""
        return self.snapshot.identity.embedders[self.names[output]]

    @cached_property
    def codec(self) -> Codec:
        """Returns the codec of the ColBERT column."""
        parameters = from_metadata(self.snapshot.schema.metadata, self.names["colbert"])
        return get_codec(self.embedder("colbert")["colbert"], parameters)

    @property
    def colbert_dim(self) -> int:
        return int(self.embedder("colbert")["colbert_dim"])

    def column(self, output: Output) -> str:
        return f"{self.names[output]}_{output}"

    def nbytes(self, output: Output) -> int:
        """Estimates how many bytes the column takes in memory."""
        if output == "dense":
            return len(self) * int(self.embedder("dense")["dim"]) * 4
        return bytes_of(self.snapshot, self.column(output))

    def whole(self, output: Output) -> Data | None:
        """Returns the whole column in the order of positions; None if neither memory nor disk may hold it."""
        with self._lock:
            if output not in self._resident:
                copy = self._copy(output)
                self._resident[output] = self._loaded(output) if copy is None else _in_order(copy, len(self))
            return self._resident[output]

    def rows(self, output: Output, positions: IntArray) -> tuple[Data, IntArray]:
        """Returns data, and which of its rows are at these positions; reads them from the table if nothing is held."""
        whole = self.whole(output)
        if whole is not None:
            return whole, positions
        copy = self._copies.get(output)
        if copy is not None:
            return copy.data, copy.rows(positions)
        taken = self.from_arrow(output, _combine(self.snapshot.take(positions, [self.column(output)]).column(0)))
        return taken, np.arange(len(positions))

    def blocks(self, output: Output, batch_rows: int = 8192) -> Iterator[tuple[int, Data]]:
        """Yields (first position, data) over the whole table: one block if it is held, else batches from storage."""
        data = self.whole(output)
        if data is not None:
            yield 0, data
            return
        start = 0
        for batch in self.snapshot.scan([self.column(output)], batch_rows):
            yield start, self.from_arrow(output, batch.column(0))
            start += batch.num_rows

    def take(self, output: Output, positions: IntArray) -> Data:
        """Returns the rows at these positions, in this order."""
        data, rows = self.rows(output, positions)
        return data[rows] if isinstance(data, np.ndarray) else data.take(rows)

    def warm(self) -> dict[Output, str]:
        """Reads every column into memory or copies it to disk, within the limits; reports for each where it is held."""
        held = {o: self.whole(o) for o in self.outputs}
        return {o: "local" if self._copies.get(o) else "table" if d is None else "memory" for o, d in held.items()}

    def _copy(self, output: Output) -> LocalColumn | None:
        if self.local is not None and output not in self._copies:
            column, read = self.column(output), partial(self.from_arrow, output)
            self._copies[output] = open_local(self.local, self.snapshot, column, read, self.disk)
            if self.disk is not None and self._copies[output] is not None:
                self.disk -= self.nbytes(output)
        return self._copies.get(output)

    def _loaded(self, output: Output) -> Data | None:
        size = self.nbytes(output)
        if size > self.memory:
            return None
        self.memory -= size
        return self._load(output)

    def from_arrow(self, output: Output, column: pa.Array) -> Data:
        if output == "dense":
            return matrix_from_arrow(column).astype(np.float32, copy=False)
        if output == "sparse":
            return SparseVectors.from_arrow(column)
        code = None if self.codec.is_float else width(self.codec, self.colbert_dim)
        return MultiVectors.from_arrow(column, code)

    def _load(self, output: Output) -> Data:
        batches = (b.column(0) for b in self.snapshot.scan([self.column(output)]))
        return joined([self.from_arrow(output, column) for column in batches], self._nothing(output))

    def _nothing(self, output: Output) -> Data:
        kind = self.snapshot.schema.field(self.column(output)).type
        return self.from_arrow(output, pa.array([], kind))


def _in_order(copy: LocalColumn, rows: int) -> Data | None:
    return copy.data if not copy.shifts.any() and len(copy.data) == rows else None


def _combine(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _concatenate_and_free(parts: list[Array]) -> Array:
    """Concatenates parts and frees each once it is copied, so that the peak is hardly above the result."""
    result = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    end = len(result)
    while parts:
        part = parts.pop()
        result[end - len(part) : end] = part
        end -= len(part)
    return result


def joined(parts: list[Any], nothing: Data) -> Data:
    """Concatenates blocks of one output; `nothing` stands for no blocks at all. Consumes the list."""
    if not parts:
        return nothing
    if isinstance(nothing, np.ndarray):
        return _concatenate_and_free(parts)
    offsets = offsets_of(np.concatenate([np.diff(p.offsets) for p in parts]))
    if isinstance(nothing, SparseVectors):
        ids, weights = [p.token_ids for p in parts], [p.weights for p in parts]
        parts.clear()
        return SparseVectors(offsets, _concatenate_and_free(ids), _concatenate_and_free(weights))
    vectors = [p.vectors for p in parts]
    parts.clear()
    return MultiVectors(offsets, _concatenate_and_free(vectors))
