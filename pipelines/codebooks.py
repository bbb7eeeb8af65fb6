"""The codebooks of a job's `pq` columns: those of the index, or trained on the first texts where there is none yet.

Training looks at a sample that is spread over the input, on a worker, before anything is written. Two jobs that start
the same index at once may train twice; the table that is made first decides, and the other job is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ray

from pipelines.cluster import on_worker
from pipelines.config import BuildConfig, ConfigError, plain
from pipelines.reading.units import Unit
from pipelines.store import pq
from pipelines.store.datasets import open_dataset
from pipelines.store.schema import table_uri

SAMPLE_TEXTS = 512
SAMPLE_VECTORS = 32_768
"""128 for each of 256 centroids."""


def codebooks(config: BuildConfig, units: Sequence[Unit]) -> dict[str, pq.Book]:
    """The codebook of each embedder that stores `pq` codes, by its name."""
    dataset = open_dataset(table_uri(config.index.uri, config.index.table), plain(config.index.storage_options))
    metadata = None if dataset is None else dataset.schema.metadata
    books: dict[str, pq.Book] = {}
    for i, embedder in enumerate(config.embedders):
        if embedder.colbert_codec == "pq":
            there = pq.from_metadata(metadata, embedder.name)
            books[embedder.name] = _trained(config, units, i) if there is None else there
    return books


def _trained(config: BuildConfig, units: Sequence[Unit], i: int) -> pq.Book:
    try:
        return on_worker(train_codebook, config, units, i)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise ConfigError(f"embedders.{i}.codec.colbert: {error.cause}") from error
        raise


def train_codebook(config: BuildConfig, units: Sequence[Unit], i: int) -> pq.Book:
    """Runs on a worker: embeds a sample of the input and learns the centroids of its ColBERT vectors, pooled as stored.

    ValueError where the sample holds no text, or the model gives no ColBERT vectors.
    """
    from actors.blocks import tokens_of
    from actors.registry import load_embedder
    from pipelines.plan.sample import take_sample
    from pipelines.store.codecs import pool

    embedder = config.embedders[i]
    tokens, _ = tokens_of(take_sample(units, config, SAMPLE_TEXTS).chunks, embedder.name)
    tokens = tokens.take(np.arange(min(len(tokens), SAMPLE_TEXTS)))
    found = load_embedder(embedder.spec()).embed_tokens(tokens, ["colbert"]).colbert
    assert found is not None
    ids = np.delete(tokens.ids, tokens.offsets[:-1])
    vectors = pool(found, embedder.codec.colbert_pooling, ids).vectors
    chosen = np.random.default_rng(0).permutation(len(vectors))[:SAMPLE_VECTORS]
    return pq.train(vectors[np.sort(chosen)])
