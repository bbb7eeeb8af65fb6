"""The Ray side of the actors: a shell that holds one model in one process, and the size of a pool of them.

The shell knows nothing of storage: it takes a block with token ids, gives back the same block with output columns.
A row that the model cannot take is found by halving the batch and marked in the block's `error` column; it costs
log2(rows) extra forward passes, once, and no other row is lost. This is the only module here that imports Ray.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from actors.embedders.base import Embedder
from actors.outputs import EmbeddingBatch, IntArray, TokenBatch, concat
from actors.registry import load_embedder
from actors.spec import EmbedderSpec, Output

Finish = Callable[[EmbeddingBatch, TokenBatch], dict[str, pa.Array]]

CPU_HEADROOM = 0.5
"""CPUs left to reading, tokenising and writing, which are light: without it a pool can take every CPU and starve them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Size and resources of one pool. max_size None: as many actors as the cluster holds when the job starts."""

    num_cpus: float = 1
    num_gpus: float = 0
    min_size: int = 1
    max_size: int | None = None
    accelerator_type: str | None = None
    batch_rows: int = 1000


def pool_size(pool: PoolSpec, cluster: dict[str, float], share: float = 1.0) -> int:
    """Actors that fit into the resources; `share` is this pool's part where several pools divide the cluster."""
    if pool.max_size is not None:
        return pool.max_size
    fits = [1e9]
    if pool.num_cpus > 0:
        fits.append((cluster.get("CPU", 0.0) - CPU_HEADROOM) * share / pool.num_cpus)
    if pool.num_gpus > 0:
        fits.append(cluster.get("GPU", 0.0) * share / pool.num_gpus)
    return max(pool.min_size, int(min(fits)))


def strategy(pool: PoolSpec, share: float = 1.0) -> ActorPoolStrategy:
    """A pool of fixed size: Ray starts an autoscaling one with its minimum and was seen never to add the second actor
    to a 16-second job."""
    return ActorPoolStrategy(size=pool_size(pool, ray.cluster_resources(), share))


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that could not be embedded, with what the model said."""

    row: int
    error: str


def _is_lost_device(error: BaseException) -> bool:
    """A CUDA context that has failed once answers every later call with an error: no row is to blame for it."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)


def embed_rows(
    embed: Callable[[TokenBatch], EmbeddingBatch], tokens: TokenBatch, rows: IntArray
) -> Iterator[tuple[IntArray, EmbeddingBatch] | Failure]:
    """Embeds the rows; where that fails, each half of them, down to the single rows that are at fault."""
    if len(rows) == 0:
        return
    try:
        yield rows, embed(tokens.take(rows))
    except Exception as error:
        if _is_lost_device(error):
            os._exit(1)  # Ray starts the actor again, with a new context, and repeats the block.
        if len(rows) == 1:
            yield Failure(int(rows[0]), f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            return
        middle = len(rows) // 2
        yield from embed_rows(embed, tokens, rows[:middle])
        yield from embed_rows(embed, tokens, rows[middle:])


def tokens_of(table: pa.Table, name: str) -> tuple[TokenBatch, IntArray]:
    """The token columns of one embedder as a TokenBatch, and the table's rows that have any (the others have failed)."""
    ids = table.column(f"{name}_ids").combine_chunks()
    rows = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64)
    good = ids.drop_null()
    lengths = good.value_lengths().to_numpy(zero_copy_only=False)
    truncated = table.column(f"{name}_truncated").combine_chunks().drop_null()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenBatch(good.flatten().to_numpy(), offsets, truncated.to_numpy()), rows


def _place(column: pa.Array, positions: IntArray, size: int) -> pa.Array:
    """A column of `size` rows with `column[i]` at `positions[i]` and null elsewhere."""
    if len(positions) == size:
        return column
    source = np.zeros(size, dtype=np.int64)
    source[positions] = np.arange(len(positions))
    missing = np.ones(size, dtype=bool)
    missing[positions] = False
    return column.take(pa.array(source, mask=missing))


def _mark(table: pa.Table, failures: list[tuple[int, str]]) -> pa.Table:
    if not failures:
        return table
    errors = table.column("error").to_pylist()
    for row, error in failures:
        errors[row] = error
    return table.set_column(table.column_names.index("error"), "error", pa.array(errors, pa.string()))


class EmbedActor:
    """One model in one process: a block with `NAME_ids` and `NAME_truncated` in, the same with the output columns out.

    `finish` turns an EmbeddingBatch into columns (codecs live with the store, not here); `fields` are their types, so
    that a block without a single good row has the same schema as every other.
    """

    def __init__(
        self, spec: EmbedderSpec, name: str, outputs: tuple[Output, ...], fields: tuple[pa.Field, ...], finish: Finish
    ) -> None:
        self.embedder: Embedder = load_embedder(spec)
        self.name, self.outputs, self.fields, self.finish = name, outputs, fields, finish

    def _embed(self, tokens: TokenBatch) -> EmbeddingBatch:
        return self.embedder.embed_tokens(tokens, self.outputs)

    def __call__(self, table: pa.Table) -> pa.Table:
        tokens, rows = tokens_of(table, self.name)
        done: list[tuple[IntArray, EmbeddingBatch]] = []
        failures: list[tuple[int, str]] = []
        for result in embed_rows(self._embed, tokens, np.arange(len(rows), dtype=np.int64)):
            if isinstance(result, Failure):
                failures.append((int(rows[result.row]), result.error))
            else:
                done.append(result)
        table = _mark(table.drop_columns([f"{self.name}_ids", f"{self.name}_truncated"]), failures)
        for field, column in zip(self.fields, self._columns(tokens, rows, done, len(table)), strict=True):
            table = table.append_column(field, column)
        return table

    def _columns(
        self, tokens: TokenBatch, rows: IntArray, done: list[tuple[IntArray, EmbeddingBatch]], size: int
    ) -> list[pa.Array]:
        if not done:
            return [pa.nulls(size, field.type) for field in self.fields]
        kept = np.concatenate([part for part, _ in done])
        columns = self.finish(concat([batch for _, batch in done]), tokens.take(kept))
        return [_place(columns[field.name], rows[kept], size) for field in self.fields]
