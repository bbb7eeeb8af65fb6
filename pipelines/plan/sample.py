"""Samples the input and measures the model's outputs and speed on this machine, for a plan.

The sample is up to 16 units spread over the input, so a corpus whose shards differ wildly is seen only in part. Rows
are counted exactly where the format counts them (Parquet, Lance); elsewhere the sampled units are read to their end and
bytes stand for rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoConfig

from actors.arrow.blocks import tokens_from_table
from actors.codecs.encode_batch import ColbertIds
from actors.codecs.table import TRAINED
from actors.embedders.registry import load_embedder
from actors.models.preparation import Preparation, chain_hidden_size
from actors.outputs import EmbeddingBatch, IntArray, TokenBatch
from actors.spec import DType, Output
from pipelines.config import BuildConfig, EmbedderConfig
from pipelines.indexing.stages import EncodeOutputs, chunk, find_good_rows, tokenise
from pipelines.reading.units import Unit, metadata_fields, pick_evenly, read_schema, read_unit

SAMPLE_UNITS = 16
CALIBRATION_SECONDS = 8.0
CHECKED_TEXTS = 64
"""Texts on which int8 is compared with fp32."""
LEAST_COSINE = 0.99
"""Below this for any of them, a plan advises to compare search quality."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds rows sampled from all over the input."""

    documents: pa.Table
    """As read, bad rows among them."""
    chunks: pa.Table
    """The good ones, chunked and tokenised."""
    rows: int
    """Documents in the whole input, bad rows included."""
    exact: bool
    """`rows` was counted, not estimated."""
    preparing: float = 0.0
    """CPU seconds that chunking and tokenising the sample took, warm."""

    @property
    def bad_share(self) -> float:
        return 1 - len(find_good_rows(self.documents)) / max(1, len(self.documents))

    @property
    def chunks_in_all(self) -> int:
        """Estimates the number of chunks of the whole input."""
        return round(self.rows * len(self.chunks) / max(1, len(self.documents)))

    def reasons(self) -> dict[str, int]:
        """Returns the five most frequent errors, without the parts that vary by row."""
        errors = [error.partition(":")[0] for error in self.documents["error"].drop_null().to_pylist()]
        return {reason: errors.count(reason) for reason in sorted(set(errors), key=lambda r: -errors.count(r))[:5]}

    def tokens(self, name: str) -> tuple[IntArray, IntArray]:
        """Returns the (kept, dropped) token counts of each chunk for one embedder."""
        tokens, _ = tokens_from_table(self.chunks, name)
        return tokens.lengths.astype(np.int64), tokens.n_truncated.astype(np.int64)


def take_sample(units: Sequence[Unit], config: BuildConfig, n_rows: int) -> Sample:
    """Samples about `n_rows` rows from up to 16 evenly spaced units; also returns the row count of all units."""
    fields = metadata_fields(config.input, units)
    chosen = pick_evenly(units, SAMPLE_UNITS)
    share = -(-n_rows // max(1, len(chosen)))
    tables: list[pa.Table] = [read_schema(fields).empty_table()]
    counted: list[tuple[int, int]] = []
    for unit in chosen:
        seen = 0
        for block in read_unit(unit, config.input, share, fields):
            tables.append(block.slice(0, max(0, share - seen)))
            seen += len(block)
            if seen >= share and unit.rows is not None:
                break
        if unit.rows is None:
            counted.append((unit.size, seen))
    documents = pa.concat_tables(tables)
    rows, exact = count_rows(units, counted)
    good = documents.take(pa.array(find_good_rows(documents)))
    tokenise(chunk(good.slice(0, 1), config), config.embedders)  # loads the tokenizers
    began = time.process_time()
    chunks = tokenise(chunk(good, config), config.embedders)
    return Sample(documents, chunks, rows, exact, time.process_time() - began)


def count_rows(units: Sequence[Unit], counted: Sequence[tuple[int, int]]) -> tuple[int, bool]:
    """Counts the rows of all units and whether that is exact; estimates from `counted` (bytes, rows) if unknown."""
    known = sum(unit.rows for unit in units if unit.rows is not None)
    unknown = [unit for unit in units if unit.rows is None]
    if len(unknown) == len(counted):
        return known + sum(rows for _, rows in counted), True
    per_byte = sum(rows for _, rows in counted) / max(1, sum(size for size, _ in counted))
    return known + round(per_byte * sum(unit.size for unit in unknown)), False


def model_config(preparation: Preparation) -> Any:
    """Returns transformers' configuration of a prepared model; of a static embedding its width alone."""
    if preparation.chain is not None and preparation.chain.is_static:
        return SimpleNamespace(hidden_size=chain_hidden_size(preparation.chain))
    return AutoConfig.from_pretrained(preparation.folder, trust_remote_code=preparation.spec.trust_remote_code)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Holds what one actor was measured to do on this machine."""

    tokens_per_second: float
    """Warm, encoding for the table included."""
    loading_seconds: float
    """Of its weights and its first pass."""


def measure_throughput(embedder: EmbedderConfig, chunks: pa.Table) -> Throughput | None:
    """Measures one actor on sampled chunks for CALIBRATION_SECONDS at most; None where the sample is empty."""
    tokens, _ = tokens_from_table(chunks, embedder.name)
    if not len(tokens):
        return None
    started = time.monotonic()
    model = load_embedder(embedder.spec())
    rows = max(1, round(model.compute.budget / max(1.0, float(tokens.lengths.mean()))))
    parts = [tokens.take(part) for part in np.split(np.arange(len(tokens)), range(rows, len(tokens), rows))]
    threads = torch.get_num_threads()
    if model.compute.device.type == "cpu":
        torch.set_num_threads(max(1, int(embedder.pool.num_cpus)))
    try:
        encode = _stored_columns(embedder)
        encode(model.embed_tokens(parts[0], embedder.outputs), parts[0], model.colbert_ids)
        loading = time.monotonic() - started
        done, began = 0, time.monotonic()
        for part in parts:
            encode(model.embed_tokens(part, embedder.outputs), part, model.colbert_ids)
            done += int(part.lengths.sum())
            if time.monotonic() - began > CALIBRATION_SECONDS:
                break
        return Throughput(done / (time.monotonic() - began), loading)
    finally:
        torch.set_num_threads(threads)


def measure_int8_error(embedder: EmbedderConfig, chunks: pa.Table) -> str:
    """Says how near int8 is to fp32 on texts of the sample: cosines of their dense vectors, one line for people.

    Loads the model twice and embeds CHECKED_TEXTS texts with each, some seconds.
    """
    tokens, _ = tokens_from_table(chunks, embedder.name)
    filled = np.flatnonzero(tokens.lengths)
    if not len(filled):
        return "accuracy: int8 was not compared with fp32, the sample holds no text"
    part = tokens.take(filled[np.linspace(0, len(filled) - 1, min(CHECKED_TEXTS, len(filled))).astype(int)])
    spec = embedder.spec()
    vectors, dtypes = [], cast(tuple[DType, ...], ("int8", "fp32"))
    output: Output = "dense"
    for dtype in dtypes:
        model = load_embedder(replace(spec, compute=replace(spec.compute, dtype=dtype)))
        output = "dense" if "dense" in model.outputs else "colbert"
        batch = model.embed_tokens(part, (output,))
        vectors.append(batch.dense if batch.colbert is None else batch.colbert.vectors)
    a, b = (np.asarray(x, np.float64) for x in vectors)
    cosines = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    advice = "" if cosines.min() >= LEAST_COSINE else "; that is much: compare `tridex evaluate` of both"
    return (
        f"accuracy: int8 against fp32 on {len(part.lengths)} sampled texts, {output} cosine mean "
        f"{cosines.mean():.4f}, worst {cosines.min():.4f}{advice}"
    )


def _stored_columns(embedder: EmbedderConfig) -> Callable[[EmbeddingBatch, TokenBatch, ColbertIds], object]:
    """Returns an actor's function that encodes for the table; for codecs that need training, one that does nothing."""
    return (lambda batch, tokens, ids: None) if embedder.colbert_codec in TRAINED else EncodeOutputs(embedder)
