"""Chooses how many rows form a model's block and a fragment.

Blocks are counted in rows but meant in bytes: a row is 2 kB with dense vectors alone, and 370 kB with 180 float16
ColBERT vectors of 1024 dimensions. The first rows of the input show which; a factor of two is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.codecs.table import width
from pipelines.config import BuildConfig
from pipelines.reading.images import PICTURE_ROWS
from pipelines.store.schema import Identity

POOLED = {"none": 1, "sequential2": 2, "sequential3": 3, "distinct": 1}
BLOCKS_PER_ACTOR, MIN_BLOCK_ROWS = 16, 128
"""Blocks below the second number are not worth their way: texts of one length become rare in them."""
SPARSE_BYTES = 8
"""A token id and a float32 weight."""


def estimate_output_bytes(embedder: Mapping[str, Any], tokens: float) -> dict[str, float]:
    """Estimates bytes of each stored output of a text with this many tokens; `embedder`: its identity."""
    per_vector = width(embedder["colbert"], embedder["colbert_dim"] or 0)
    sizes = {
        "dense": embedder["dim"] * (2 if embedder["dense"] == "float16" else 4),
        "sparse": tokens * SPARSE_BYTES,
        "colbert": tokens / POOLED[embedder["colbert_pooling"]] * per_vector,
    }
    return {output: float(sizes[output]) for output in embedder["outputs"]}


def estimate_row_bytes(identity: Identity, sample: pa.Table) -> float:
    """Estimates the bytes of an average row of the index; `sample` has been tokenised."""
    tokens = pc.mean(sample.column("n_tokens")).as_py() or 1.0
    text = pc.mean(pc.binary_length(sample.column("text"))).as_py() or 0.0
    return text + sum(sum(estimate_output_bytes(e, tokens).values()) for e in identity.embedders.values())


def average_chunks_per_document(sample: pa.Table) -> float:
    """Returns the chunks of an average document of the sample."""
    return len(sample) / max(1, pc.sum(pc.equal(sample.column("chunk_index"), 0)).as_py() or 0) or 1.0


def choose_block_rows(config: BuildConfig, bytes_per_row: float, rows: int | None = None, actors: int = 1) -> int:
    """Chooses the rows per model call: the smallest pool's `batch_rows`, fewer if they exceed a fragment.

    `rows` of the whole job, where known, are cut into some blocks for each of `actors`, so that none waits long for
    another's last block: it matters where a job takes minutes.
    """
    fits = max(1, int(config.index.fragment_bytes / max(1.0, bytes_per_row)))
    pictures = [] if config.input.pictures is None else [PICTURE_ROWS]
    even = [] if rows is None else [max(MIN_BLOCK_ROWS, -(-rows // (actors * BLOCKS_PER_ACTOR)))]
    return min(fits, *(e.pool.batch_rows for e in config.embedders), *pictures, *even)


def choose_fragment_rows(config: BuildConfig, bytes_per_row: float, block: int) -> int:
    """Chooses a fragment's rows: as many whole blocks of `block` rows as `index.fragment_bytes` holds."""
    return block * max(1, int(config.index.fragment_bytes / max(1.0, bytes_per_row) / block))
