"""What an embedder returns: contiguous buffers and offsets, never one Python object per token or vector.

The buffers are laid out as Arrow lays them out, so `to_arrow` wraps them without a copy. That costs readability in
one place (a row is `values[offsets[i]:offsets[i + 1]]`, not `rows[i]`) and buys the rest: a list of Python floats
for ColBERT takes about 100 microseconds a token to convert, this takes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]


def _check_offsets(offsets: IntArray, size: int, what: str) -> None:
    if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != size:
        raise ValueError(f"{what}: offsets must run from 0 to {size}, got {offsets[:1]}..{offsets[-1:]}")


def ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """Enumerates `start, start + 1, ... start + length - 1` of every range in turn: int64 (sum,).

    >>> ranges(np.array([10, 20]), np.array([2, 3])).tolist()
    [10, 11, 20, 21, 22]
    """
    ends: IntArray = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    positions: IntArray = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return positions


def offsets_of(lengths: npt.NDArray[np.integer[Any]]) -> IntArray:
    """Turns lengths (n,) into offsets (n + 1,), starting at 0.

    >>> offsets_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Holds texts as token ids, special tokens included, ready for a forward pass.

    ids: int32 (m,); offsets: int64 (n + 1,); n_truncated: int32 (n,), tokens that did not fit and were dropped.
    attended: int32 (n,), leading tokens of each text that attention sees (ColBERT's query expansion); None: all.
    """

    ids: npt.NDArray[np.int32]
    offsets: IntArray
    n_truncated: npt.NDArray[np.int32]
    attended: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        _check_offsets(self.offsets, len(self.ids), "TokenBatch")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.offsets)

    def take(self, rows: IntArray) -> TokenBatch:
        lengths = self.lengths[rows]
        ids = self.ids[ranges(self.offsets[:-1][rows], lengths)]
        attended = None if self.attended is None else self.attended[rows]
        return TokenBatch(ids, offsets_of(lengths), self.n_truncated[rows], attended)


def concat_tokens(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Concatenates several batches, in order."""
    attended = [b.lengths.astype(np.int32) if b.attended is None else b.attended for b in batches]
    return TokenBatch(
        np.concatenate([b.ids for b in batches]),
        _stack([b.offsets for b in batches]),
        np.concatenate([b.n_truncated for b in batches]),
        None if all(b.attended is None for b in batches) else np.concatenate(attended),
    )


@dataclass(frozen=True, slots=True, eq=False)
class SparseVectors:
    """Holds learned lexical weights as compressed sparse rows (CSR).

    offsets: int64 (n + 1,); token_ids: uint32 (nnz,), strictly ascending within a row; weights: float32 (nnz,), > 0.
    """

    offsets: IntArray
    token_ids: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        _check_offsets(self.offsets, len(self.token_ids), "SparseVectors")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def empty(cls, rows: int) -> SparseVectors:
        """Makes rows without any weight."""
        return cls(np.zeros(rows + 1, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.float32))

    @classmethod
    def join(cls, parts: Sequence[SparseVectors]) -> SparseVectors:
        """Concatenates the rows of all parts, in order; at least one part."""
        return cls(
            _stack([part.offsets for part in parts]),
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def row(self, i: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.token_ids[part], self.weights[part]

    def take(self, rows: IntArray) -> SparseVectors:
        lengths = np.diff(self.offsets)[rows]
        where = ranges(self.offsets[:-1][rows], lengths)
        return SparseVectors(offsets_of(lengths), self.token_ids[where], self.weights[where])

    def to_arrow(self) -> pa.StructArray:
        """Converts to `struct<indices: list<uint32>, values: list<float32>>`, one struct per row, without a copy."""
        offsets = pa.array(self.offsets.astype(np.int32))
        indices = pa.ListArray.from_arrays(offsets, pa.array(self.token_ids))
        values = pa.ListArray.from_arrays(offsets, pa.array(self.weights))
        return pa.StructArray.from_arrays([indices, values], names=["indices", "values"])

    @classmethod
    def from_arrow(cls, column: pa.StructArray) -> SparseVectors:
        lists, values = column.field("indices"), column.field("values")
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return cls(
            offsets_of(lengths),
            lists.flatten().to_numpy(zero_copy_only=False).astype(np.uint32, copy=False),
            values.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False),
        )


@dataclass(frozen=True, slots=True, eq=False)
class MultiVectors:
    """Holds several vectors per text (ColBERT).

    offsets: int64 (n + 1,), counted in vectors; vectors: (m, d) float32 or float16, or (m, bytes) uint8 where a codec
    has already encoded them (`actors.codecs.table` lists the codecs and how to read them).

    >>> vectors = MultiVectors(offsets_of(np.array([2, 1])), np.zeros((3, 4), np.float32))
    >>> len(vectors), vectors.row(1).shape
    (2, (1, 4))
    """

    offsets: IntArray
    vectors: Array

    def __post_init__(self) -> None:
        _check_offsets(self.offsets, len(self.vectors), "MultiVectors")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> Array:
        return self.vectors[self.offsets[i] : self.offsets[i + 1]]

    def take(self, rows: IntArray) -> MultiVectors:
        lengths = np.diff(self.offsets)[rows]
        return MultiVectors(offsets_of(lengths), self.vectors[ranges(self.offsets[:-1][rows], lengths)])

    def to_arrow(self) -> pa.Array:
        """Converts floats to `list<fixed_size_list<float, d>>`, codes to `large_binary`: those of a row in sequence."""
        if self.vectors.dtype == np.uint8:
            buffers = [
                None,
                pa.py_buffer(self.offsets * self.vectors.shape[1]),
                pa.py_buffer(_contiguous(self.vectors)),
            ]
            return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), matrix_to_arrow(self.vectors))

    @classmethod
    def from_arrow(cls, column: pa.Array, width: int | None = None) -> MultiVectors:
        """Inverts `to_arrow`; `width` is the number of bytes of one code and is needed for binary columns only."""
        if pa.types.is_list(column.type):
            lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            return cls(offsets_of(lengths), matrix_from_arrow(column.flatten()))
        if width is None:
            raise ValueError("MultiVectors.from_arrow: a binary column needs the number of bytes of one code")
        _, offset_buffer, data = column.cast(pa.large_binary()).buffers()
        bounds = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
        codes = np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]].reshape(-1, width)
        return cls((bounds - bounds[0]) // width, codes)


def _contiguous(values: Array) -> Array:
    return np.ascontiguousarray(values)


def matrix_to_arrow(matrix: Array) -> pa.FixedSizeListArray:
    """Wraps (n, d) as `fixed_size_list<float16|float32, d>` without a copy: Lance searches this, not Ray's tensors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(_contiguous(matrix).reshape(-1)), matrix.shape[1])


def matrix_from_arrow(column: pa.FixedSizeListArray) -> Array:
    """Views `fixed_size_list<float, d>` as (n, d), same dtype; no nulls allowed."""
    flat: Array = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingBatch:
    """Holds everything that one forward pass gave for n texts; an output that was not requested is None.

    dense: (n, d) float32, or float16 from a half-precision GPU pass. n_tokens, n_truncated: int32 (n,), tokens that
    the model saw (special tokens included) and tokens that were dropped to fit.
    """

    dense: Array | None
    sparse: SparseVectors | None
    colbert: MultiVectors | None
    n_tokens: npt.NDArray[np.int32]
    n_truncated: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for name in ("dense", "sparse", "colbert"):
            part = getattr(self, name)
            if part is not None and len(part) != len(self):
                raise ValueError(f"EmbeddingBatch: {name} has {len(part)} rows, n_tokens has {len(self)}")

    def __len__(self) -> int:
        return len(self.n_tokens)

    def take(self, rows: IntArray) -> EmbeddingBatch:
        """Returns the given rows, in the given order."""
        return EmbeddingBatch(
            None if self.dense is None else self.dense[rows],
            None if self.sparse is None else self.sparse.take(rows),
            None if self.colbert is None else self.colbert.take(rows),
            self.n_tokens[rows],
            self.n_truncated[rows],
        )

    def to_arrow(self, name: str) -> dict[str, pa.Array]:
        """Makes the columns `NAME_dense`, `NAME_sparse`, `NAME_colbert` for the outputs that exist."""
        columns: dict[str, pa.Array] = {}
        if self.dense is not None:
            columns[f"{name}_dense"] = matrix_to_arrow(self.dense)
        if self.sparse is not None:
            columns[f"{name}_sparse"] = self.sparse.to_arrow()
        if self.colbert is not None:
            columns[f"{name}_colbert"] = self.colbert.to_arrow()
        return columns


def _stack(parts: Sequence[IntArray]) -> IntArray:
    return offsets_of(np.concatenate([np.diff(offsets) for offsets in parts]))


def concat(batches: Sequence[EmbeddingBatch]) -> EmbeddingBatch:
    """Concatenates batches that hold the same outputs, in order."""
    if not batches:
        raise ValueError("concat: at least one batch is needed")
    dense = [b.dense for b in batches if b.dense is not None]
    sparse = [b.sparse for b in batches if b.sparse is not None]
    colbert = [b.colbert for b in batches if b.colbert is not None]
    for name, parts in (("dense", dense), ("sparse", sparse), ("colbert", colbert)):
        if len(parts) not in (0, len(batches)):
            raise ValueError(f"concat: {name} is there in {len(parts)} of {len(batches)} batches")
    return EmbeddingBatch(
        np.concatenate(dense) if dense else None,
        SparseVectors.join(sparse) if sparse else None,
        MultiVectors(_stack([c.offsets for c in colbert]), np.concatenate([c.vectors for c in colbert]))
        if colbert
        else None,
        np.concatenate([b.n_tokens for b in batches]),
        np.concatenate([b.n_truncated for b in batches]),
    )


def merge_outputs(batches: Sequence[EmbeddingBatch]) -> EmbeddingBatch:
    """Merges batches of the same texts, each with other outputs, by other models; token counts are the largest."""
    first, *others = batches
    for batch in others:
        first = EmbeddingBatch(
            batch.dense if first.dense is None else first.dense,
            batch.sparse if first.sparse is None else first.sparse,
            batch.colbert if first.colbert is None else first.colbert,
            np.maximum(first.n_tokens, batch.n_tokens),
            np.maximum(first.n_truncated, batch.n_truncated),
        )
    return first
