"""Defines the actor that Ray runs, one model in one process, and the size of a pool of them.

The actor does not depend on storage: it takes a block with token ids, gives back the same block with output columns.
A row that the model cannot take is found by halving the batch and marked in the block's `error` column; it costs
log2(rows) extra forward passes, once, and no other row is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from actors.arrow.blocks import all_rows, scatter_rows, set_row_errors, tokens_from_table
from actors.arrow.isolate import Isolated, isolate_failures
from actors.codecs.device_codec import DeviceCodec
from actors.codecs.encode_batch import ColbertIds
from actors.outputs import EmbeddingBatch, IntArray, TokenBatch, concat
from actors.spec import EmbedderSpec, Output, PoolSpec

if TYPE_CHECKING:
    from actors.embedders.base import Embedder

Finish = Callable[[EmbeddingBatch, TokenBatch, ColbertIds], dict[str, pa.Array]]
"""Takes the outputs of a block's good rows, their tokens, and what returns the token id of each ColBERT vector."""

CPU_HEADROOM = 1.0
"""CPUs left to reading, tokenising and writing. Ray Data's own repartition asks for a whole one; without it a job waits
for ever."""


def pool_size(pool: PoolSpec, cluster: dict[str, float], share: float = 1.0) -> int:
    """Computes how many actors fit into the resources; `share` is this pool's part where several pools divide the
    cluster."""
    if pool.max_size is not None:
        return pool.max_size
    fits = [1e9]
    if pool.num_cpus > 0:
        fits.append((cluster.get("CPU", 0.0) - CPU_HEADROOM) * share / pool.num_cpus)
    if pool.num_gpus > 0:
        fits.append(cluster.get("GPU", 0.0) * share / pool.num_gpus)
    return max(pool.min_size, int(min(fits)))


class EmbedActor:
    """Embeds blocks with one model: takes `NAME_ids` and `NAME_truncated`, returns the block with output columns.

    `finish` turns an EmbeddingBatch into columns (codecs live with the store, not here); `fields` are their types, so
    that a block without a single good row has the same schema as every other. `device_codec` is used on GPUs only.
    """

    def __init__(
        self,
        spec: EmbedderSpec,
        name: str,
        outputs: tuple[Output, ...],
        fields: tuple[pa.Field, ...],
        finish: Finish,
        device_codec: DeviceCodec | None = None,
    ) -> None:
        from actors.embedders.registry import load_embedder  # here: a driver that only names this class needs no torch

        self.embedder: Embedder = load_embedder(spec)
        self.name, self.outputs, self.fields, self.finish = name, outputs, fields, finish
        self.device_codec = None if self.embedder.compute.device.type == "cpu" else device_codec

    def __call__(self, table: pa.Table) -> pa.Table:
        tokens, rows = tokens_from_table(table, self.name)
        embed = self.embedder.embed_rows
        found = isolate_failures(
            lambda part: embed(tokens.take(part), table, rows[part], self.outputs, self.device_codec),
            all_rows(len(rows)),
        )
        columns = self._columns(tokens, rows, found, len(table))
        table = table.drop_columns([f"{self.name}_ids", f"{self.name}_truncated"])
        table = set_row_errors(table, {int(rows[failure.row]): str(failure) for failure in found.failures})
        for field, column in zip(self.fields, columns, strict=True):
            table = table.append_column(field, column)
        return table

    def _columns(
        self, tokens: TokenBatch, rows: IntArray, found: Isolated[EmbeddingBatch], size: int
    ) -> list[pa.Array]:
        if not found.parts:
            return [pa.nulls(size, field.type) for field in self.fields]
        batch = concat([batch for _, batch in found.parts])
        columns = self.finish(batch, tokens.take(found.rows), self.embedder.colbert_ids)
        return [scatter_rows(columns[field.name], rows[found.rows], size) for field in self.fields]
