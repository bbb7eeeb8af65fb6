"""Defines the stages between reading and writing: plain functions over pyarrow tables, independent of Ray.

A row that has failed keeps its place with `error` set and nulls elsewhere, so every stage handles the good rows and
leaves the others as they are; that costs a gather and a scatter for blocks that hold a failed row, nothing for others.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.arrow.blocks import TOKENIZER_CALL_BYTES, scatter_rows, set_row_errors, split_by_size
from actors.arrow.isolate import isolate_failures
from actors.codecs.codec import CodecParameters
from actors.codecs.device_codec import DeviceCodec
from actors.codecs.encode_batch import ColbertIds, encode_batch
from actors.codecs.pooling import sequential_group_size
from actors.codecs.table import get_codec
from actors.models.preparation import Preparation, load_preparation
from actors.outputs import EmbeddingBatch, IntArray, TokenBatch, concat_tokens
from actors.spec import EmbedderSpec
from pipelines.changes.selection import RowFilter, select_rows
from pipelines.config import BuildConfig, EmbedderConfig
from pipelines.reading.chunk import chunk_table
from pipelines.reading.units import Unit, read_schema, read_unit
from pipelines.store.skipped import MISFITS

BLOCK_ROWS = 1024
SAMPLE_ROWS = 256


def find_good_rows(table: pa.Table) -> IntArray:
    """Returns the positions of the rows without an error: int64."""
    return np.flatnonzero(pc.is_null(table.column("error")).to_numpy(zero_copy_only=False)).astype(np.int64)


@lru_cache(maxsize=16)
def _load_preparation_cached(spec: EmbedderSpec) -> Preparation:
    """Loads a Preparation once per worker process and embedder."""
    return load_preparation(spec)


def tokenise(table: pa.Table, embedders: tuple[EmbedderConfig, ...]) -> pa.Table:
    """Adds `NAME_ids` and `NAME_truncated` of each embedder, and `n_tokens`, `n_truncated`: the largest of them."""
    counts, cuts = np.zeros(len(table), np.int32), np.zeros(len(table), np.int32)
    for embedder in embedders:
        table, tokens, rows = _tokenise(table, embedder)
        counts[rows] = np.maximum(counts[rows], tokens.lengths)
        cuts[rows] = np.maximum(cuts[rows], tokens.n_truncated)
    return table.append_column("n_tokens", pa.array(counts)).append_column("n_truncated", pa.array(cuts))


def _tokenise(table: pa.Table, embedder: EmbedderConfig) -> tuple[pa.Table, TokenBatch, IntArray]:
    preparation = _load_preparation_cached(embedder.spec())
    rows = find_good_rows(table)
    texts = table.column("text").take(pa.array(rows))
    parts, kept = [preparation.tokenise([])], [rows[:0]]
    failures: dict[int, str] = {}
    for piece in split_by_size(pc.binary_length(texts).to_numpy(zero_copy_only=False), TOKENIZER_CALL_BYTES):
        found = isolate_failures(lambda part: preparation.tokenise(texts.take(pa.array(part)).to_pylist()), piece)
        parts += [tokens for _, tokens in found.parts]
        kept.append(rows[found.rows])
        failures |= {int(rows[failure.row]): str(failure) for failure in found.failures}
    tokens, where = concat_tokens(parts), np.concatenate(kept)
    ids = pa.ListArray.from_arrays(pa.array(tokens.offsets.astype(np.int32)), pa.array(tokens.ids))
    table = set_row_errors(table, failures).append_column(f"{embedder.name}_ids", scatter_rows(ids, where, len(table)))
    cuts = scatter_rows(pa.array(tokens.n_truncated), where, len(table))
    return table.append_column(f"{embedder.name}_truncated", cuts), tokens, where


def select_documents(
    work: pa.Table, config: BuildConfig, fields: Sequence[pa.Field], only: RowFilter | None = None
) -> Iterator[pa.Table]:
    """Reads units of input and keeps the pending documents. `work` holds pickled (Unit, UnitPlan)."""
    read = partial(read_unit, config=config.input, batch_rows=BLOCK_ROWS, fields=fields)
    for pair in work.column("work").to_pylist():
        unit, plan = pickle.loads(pair)  # noqa: S301  # made by the driver of this job
        for rows in select_rows(unit, plan, read, only, read_schema(fields)):
            yield rows.drop_columns([MISFITS])


def chunk(table: pa.Table, config: BuildConfig) -> pa.Table:
    """Splits documents into chunks, by the tokens of the first embedder."""
    preparation = _load_preparation_cached(config.embedders[0].spec())
    return chunk_table(table, preparation.tokenizer, config.chunking.window(preparation.room))


def read_sample(units: Sequence[Unit], config: BuildConfig, fields: Sequence[pa.Field]) -> pa.Table:
    """Reads the first rows of the input, chunked and tokenised, to estimate the rest."""
    for unit in units:
        for table in read_unit(unit, config.input, SAMPLE_ROWS, fields):
            good = table.take(pa.array(find_good_rows(table)))
            if len(good):
                return tokenise(chunk(good, config), config.embedders)
    return tokenise(chunk(read_schema(fields).empty_table(), config), config.embedders)


@dataclass(frozen=True, slots=True)
class EncodeOutputs:
    """Converts an embedder's outputs to the columns that its index keeps: dtype, codecs and pooling."""

    embedder: EmbedderConfig
    parameters: CodecParameters | None = None
    """Of a trained codec."""

    def __call__(self, batch: EmbeddingBatch, tokens: TokenBatch, colbert_ids: ColbertIds) -> dict[str, pa.Array]:
        embedder, codec = self.embedder, self.embedder.codec
        colbert = get_codec(embedder.colbert_codec, self.parameters)
        stored = encode_batch(
            batch, tokens, colbert_ids, codec.dense, embedder.sparse_codec, colbert, codec.colbert_pooling
        )
        return stored.to_arrow(self.embedder.name)

    @property
    def on_device(self) -> DeviceCodec | None:
        """Returns the encoding that an actor's GPU can do before data leaves it; None if only the host can."""
        codec, pooling = self.embedder.colbert_codec, self.embedder.codec.colbert_pooling
        if pooling == "distinct" or not get_codec(codec).encodes_on_device:
            return None
        return DeviceCodec(codec, sequential_group_size(pooling))
