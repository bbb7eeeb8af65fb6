"""Plans a job: samples the input, times the model for a few seconds, compares with the index, extrapolates.

Nothing is written and Ray is not started, so a plan takes seconds; its figures are estimates, good to a few percent
where the shards are alike (`pipelines.plan.sample` defines the sample). The time of a whole build rests on two
measurements of now, the model's speed and an import of torch (`pipelines.plan.build_time`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.codecs.table import CODECS
from actors.compute.resolve import resolve_compute
from actors.models.identity import available_outputs, describe
from actors.models.preparation import Preparation, load_preparation
from actors.pool import pool_size
from pipelines.config import BuildConfig, ConfigError, EmbedderConfig, RayConfig, resolve_paths
from pipelines.indexing.sizing import choose_block_rows, choose_fragment_rows, estimate_output_bytes, estimate_row_bytes
from pipelines.monitor.lengths import histogram
from pipelines.plan.build_time import estimate_build_seconds, measure_load, run_at_worker_priority
from pipelines.plan.changes import PlannedChanges, plan_changes
from pipelines.plan.checks import warnings_of
from pipelines.plan.figures import EmbedderPlan, Plan
from pipelines.plan.predict import Card, find_card, predict_embedder
from pipelines.plan.sample import (
    Sample,
    measure_int8_error,
    measure_throughput,
    model_config,
    take_sample,
)
from pipelines.reading.listing import count_by_kind
from pipelines.reading.units import plan_input
from pipelines.store.schema import Identity, identity_of
from pipelines.store.table import with_index_settings

SAMPLE_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Pool:
    """Holds the user's figures for the machines that will run the job."""

    tokens_per_second: float | None = None
    """Of one actor; given, no weights are loaded."""
    price: float | None = None
    """Of the whole pool, an hour."""
    actors: int | None = None
    """In each embedder's pool; None takes `pool.max_size`, or what fits this machine where that is `auto`."""
    card: str | None = None
    """A GPU, one per actor, whose speed is predicted (`pipelines.plan.predict`); no weights are loaded."""


def make_plan(config: BuildConfig, pool: Pool = Pool(), sample_rows: int = SAMPLE_ROWS) -> Plan:
    """Samples the input, times each model on it for a few seconds unless the speed is given, and extrapolates.

    ConfigError for a wrong request: no such file, column or model, lengths that the model has no positions for.
    """
    config = with_index_settings(resolve_paths(config))
    card = None if pool.card is None else find_card(pool.card)
    planned = plan_input(config.input)
    units = planned.units
    prepared = {e.name: _prepare(i, e) for i, e in enumerate(config.embedders)}
    described = {name: {**describe(p), "outputs": available_outputs(p)} for name, p in prepared.items()}
    sample = take_sample(units, config, sample_rows)
    identity = identity_of(config, described)
    changes = plan_changes(config, units, described, sample)
    embedders = tuple(
        _plan_embedder(e, prepared[e.name], identity, sample, pool, config, changes, card) for e in config.embedders
    )
    hours = max((e.hours for e in embedders if e.hours is not None), default=None)
    per_row = estimate_row_bytes(identity, sample.chunks)
    plan = Plan(
        sampled=len(sample.documents),
        units=len(units),
        input_bytes=sum(unit.size for unit in units),
        documents=sample.rows,
        exact=sample.exact,
        chunks=sample.chunks_in_all,
        bad_share=sample.bad_share,
        bad_reasons=sample.reasons(),
        text_bytes=(pc.mean(pc.binary_length(sample.chunks["text"])).as_py() or 0.0) * sample.chunks_in_all,
        histogram=_histogram(sample, config.embedders[0].name),
        block_bytes=per_row * choose_block_rows(config, per_row),
        embedders=embedders,
        hours=hours,
        cost=None if hours is None or pool.price is None else hours * pool.price,
        redo_seconds=_estimate_redo_seconds(config, per_row, sample.chunks_in_all, hours),
        changes=changes,
        seconds=_estimate_seconds(embedders, sample, config, changes),
        skipped=count_by_kind(planned.skipped),
    )
    return replace(plan, warnings=warnings_of(plan, config))


def _estimate_seconds(
    embedders: Sequence[EmbedderPlan], sample: Sample, config: BuildConfig, changes: PlannedChanges | None
) -> float | None:
    """Estimates the seconds of the whole build; None where a speed was given."""
    if any(not e.measured or e.tokens_per_second is None for e in embedders):
        return None
    share = 1.0 if changes is None else changes.embedded_share
    chunks = sample.chunks_in_all * share
    preparing = chunks * sample.preparing / max(1, len(sample.chunks))
    return estimate_build_seconds(embedders, share, chunks, preparing, config.index.full_text, measure_load())


def _estimate_redo_seconds(config: BuildConfig, per_row: float, chunks: int, hours: float | None) -> float | None:
    if hours is None or not chunks:
        return None
    rows = min(chunks, choose_fragment_rows(config, per_row, choose_block_rows(config, per_row)))
    return rows / chunks * hours * 3600 + config.index.commit_seconds


def _prepare(index: int, embedder: EmbedderConfig) -> Preparation:
    try:
        return load_preparation(embedder.spec())
    except ValueError as error:
        raise ConfigError(f"embedders.{index} ({embedder.model}): {error}") from error


def _histogram(sample: Sample, name: str) -> dict[str, int]:
    counts = histogram([pa.array(sum(sample.tokens(name)))])
    scale = sample.chunks_in_all / max(1, len(sample.chunks))
    return {label: round(n * scale) for label, n in counts.items()}


def _plan_embedder(
    embedder: EmbedderConfig,
    prepared: Preparation,
    identity: Identity,
    sample: Sample,
    pool: Pool,
    config: BuildConfig,
    changes: PlannedChanges | None,
    card: Card | None,
) -> EmbedderPlan:
    described = identity.embedders[embedder.name]
    kept, lost = sample.tokens(embedder.name)
    mean = float(kept.mean()) if len(kept) else 0.0
    tokens = round(mean * sample.chunks_in_all)
    local = _local_resources(config.ray) if card is None else {"GPU": 1.0}
    actors = pool.actors or pool_size(embedder.pool.spec(), local, 1 / len(config.embedders))
    prediction = None if card is None else predict_embedder(card, model_config(prepared), described, kept)
    share = 1.0 if changes is None else changes.embedded_share
    predicted = None if prediction is None or not tokens else prediction.tokens_per_second
    stated = pool.tokens_per_second or predicted
    here = None if stated else run_at_worker_priority(measure_throughput, embedder, sample.chunks)
    speed = here.tokens_per_second if here else stated
    measured = pool.tokens_per_second is None and prediction is None
    chunks = round(share * sample.chunks_in_all)
    block = choose_block_rows(config, estimate_row_bytes(identity, sample.chunks), chunks, actors)
    stored = {output: n * sample.chunks_in_all for output, n in estimate_output_bytes(described, mean).items()}
    return EmbedderPlan(
        name=embedder.name,
        model=embedder.model,
        actors=actors,
        tokens=tokens,
        rows_truncated=float((lost > 0).mean()) if len(lost) else 0.0,
        tokens_truncated=float(lost.sum() / max(1, (kept + lost).sum())),
        bytes=stored,
        codec=embedder.colbert_codec,
        colbert_bytes={
            codec: estimate_output_bytes({**described, "colbert": codec}, mean)["colbert"] * sample.chunks_in_all
            for codec in (CODECS if "colbert" in stored else ())
        },
        tokens_per_second=speed,
        measured=measured,
        loading_seconds=here.loading_seconds if here else None,
        working_actors=_count_working_actors(actors, chunks, block),
        hours=None if speed is None else share * tokens / (speed * actors) / 3600,
        why=() if prediction else _explain_compute(embedder, prepared, sample.chunks if measured else None),
        prediction=prediction,
    )


def _count_working_actors(actors: int, chunks: int, block: int) -> float:
    """Returns how many actors are at work on average, until the last of them has done its last block."""
    blocks = max(1, -(-chunks // block))
    return blocks / -(-blocks // max(1, actors))


def _explain_compute(embedder: EmbedderConfig, prepared: Preparation, chunks: pa.Table | None) -> tuple[str, ...]:
    """Returns a line for each choice of the compute settings; for int8 also its error on chunks, if there are any."""
    compute = resolve_compute(embedder.spec().compute, model_config(prepared), allows_int8=True)
    return (*compute.why, measure_int8_error(embedder, chunks)) if compute.int8 and chunks is not None else compute.why


def _local_resources(config: RayConfig) -> dict[str, float]:
    """Returns the resources of a local Ray, as `pipelines.cluster.connect` starts it."""
    return {"CPU": float(config.num_cpus or (os.cpu_count() or 1) + 1), "GPU": float(torch.cuda.device_count())}
