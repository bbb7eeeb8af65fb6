"""Loads the codec parameters of a job's index, or trains them on a sample of the input.

Training looks at texts drawn from all over the input, on a worker, before anything is written: the first texts of a
corpus are often about one thing. It costs the reading of some hundred thousand rows. Two jobs that start the same index
at once may train twice; the table that is made first decides, and the other job is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from actors.codecs.codec import CodecParameters
from actors.codecs.parameters import from_metadata
from actors.codecs.table import TRAINED
from pipelines.cluster.connect import as_config_error, run_on_worker
from pipelines.config import BuildConfig, EmbedderConfig, plain_options
from pipelines.indexing.stages import chunk, find_good_rows, tokenise
from pipelines.reading.units import Unit, metadata_fields, pick_evenly, read_schema, read_unit
from pipelines.store.datasets import open_dataset
from pipelines.store.schema import table_uri

BATCH_ROWS = 1024
SAMPLE_UNITS, UNIT_ROWS = 16, 16_384
SAMPLE_TEXTS, SAMPLE_TOKENS = 2048, 131_072
SAMPLE_VECTORS = 65_536
"""256 for each centroid."""


def load_or_train_codecs(
    config: BuildConfig, units: Sequence[Unit], connect: Callable[[], None] = lambda: None
) -> dict[str, CodecParameters]:
    """Returns the parameters of each embedder whose ColBERT codec is trained, by its name.

    connect: starts Ray; called before one is trained.
    """
    wanted = {i: e.name for i, e in enumerate(config.embedders) if e.colbert_codec in TRAINED}
    if not wanted:
        return {}
    dataset = open_dataset(table_uri(config.index.uri, config.index.table), plain_options(config.index.storage_options))
    metadata = None if dataset is None else dataset.schema.metadata
    parameters: dict[str, CodecParameters] = {}
    for i, name in wanted.items():
        there = from_metadata(metadata, name)
        if there is None:
            connect()
        parameters[name] = _train_on_worker(config, units, i) if there is None else there
    return parameters


def _train_on_worker(config: BuildConfig, units: Sequence[Unit], i: int) -> CodecParameters:
    with as_config_error(f"embedders.{i}.codec.colbert", ValueError):
        return run_on_worker(train_codec, config, units, i)


def train_codec(config: BuildConfig, units: Sequence[Unit], i: int) -> CodecParameters:
    """Trains the codec, on a worker, on ColBERT vectors of a sample of the input, pooled as stored.

    ValueError if the sample holds no text, or the model gives no ColBERT vectors.
    """
    from actors.arrow.blocks import tokens_from_table
    from actors.codecs.pooling import pool_vectors
    from actors.embedders.registry import load_embedder

    embedder = config.embedders[i]
    tokens, _ = tokens_from_table(draw_sample(config, units, embedder), embedder.name)
    tokens = tokens.take(np.flatnonzero(tokens.lengths.cumsum() <= max(SAMPLE_TOKENS, tokens.lengths[:1].sum())))
    model = load_embedder(embedder.spec())
    found = model.embed_tokens(tokens, ["colbert"]).colbert
    assert found is not None
    vectors = pool_vectors(found, embedder.codec.colbert_pooling, model.colbert_ids(tokens)).vectors
    chosen = np.random.default_rng(0).permutation(len(vectors))[:SAMPLE_VECTORS]
    return TRAINED[embedder.colbert_codec].train(vectors[np.sort(chosen)])


def draw_sample(config: BuildConfig, units: Sequence[Unit], embedder: EmbedderConfig) -> pa.Table:
    """Draws up to SAMPLE_TEXTS documents in random order, chunked and tokenised: an equal share per unit."""
    fields = metadata_fields(config.input, units)
    chosen_units = pick_evenly(units, SAMPLE_UNITS)
    rng = np.random.default_rng(0)
    tables = [read_schema(fields).empty_table()]
    for unit in chosen_units:
        rows = _read_good_rows(unit, config, fields)
        chosen = rng.permutation(len(rows))[: -(-SAMPLE_TEXTS // len(chosen_units))]
        tables.append(rows.take(pa.array(np.sort(chosen))))
    documents = pa.concat_tables(tables)
    return tokenise(chunk(documents.take(pa.array(rng.permutation(len(documents)))), config), (embedder,))


def _read_good_rows(unit: Unit, config: BuildConfig, fields: Sequence[pa.Field]) -> pa.Table:
    """Reads the valid rows among the first UNIT_ROWS of a unit."""
    tables, seen = [read_schema(fields).empty_table()], 0
    for block in read_unit(unit, config.input, BATCH_ROWS, fields):
        tables.append(block.take(pa.array(find_good_rows(block))))
        seen += len(block)
        if seen >= UNIT_ROWS:
            break
    return pa.concat_tables(tables)
