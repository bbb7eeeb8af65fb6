"""The indexing job: which stages there are, and what runs where.

Workers write fragments and the driver commits them, so a job that dies at any point leaves a table that is complete up
to its last commit, and the same command goes on from there. What that costs: one cheap pass over the input before the
first document is embedded (`pipelines.census`), and the work since the last commit is done again.
"""

from __future__ import annotations

import pickle
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import lance
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from actors.pool import pool_size
from pipelines.census import Census, take_census
from pipelines.cluster import describe, running
from pipelines.config import BuildConfig, EmbedderConfig, plain
from pipelines.driver import JobFailed, commit_all, prune, records
from pipelines.metrics import named_actor
from pipelines.read import Unit, metadata_fields, plan_units, read_unit
from pipelines.runlog import RunLog
from pipelines.sizing import block_rows, fragment_rows, row_bytes
from pipelines.stages import Finish, chunk, sample, select_documents, tokenise
from pipelines.store.commit import Committer, create_or_open
from pipelines.store.fulltext import update_full_text
from pipelines.store.lease import Lease, acquire
from pipelines.store.schema import Target, documents_schema, identity_of, output_field
from pipelines.store.writer import write_block
from pipelines.summary import Summary

__all__ = ["JobFailed", "build_index"]

LIGHT: dict[str, Any] = {"num_cpus": 0.25, "batch_format": "pyarrow"}
"""Stages that wait for disks and networks more than they compute."""
CENSUS_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """What the driver knows before it looks at a single document."""

    config: BuildConfig
    units: list[Unit]
    fields: list[pa.Field]
    """Metadata columns that are kept."""
    target: Target


def build_index(config: BuildConfig) -> Summary:
    """Builds the index that `config` describes, or brings it up to date; returns what was done.

    Raises ConfigError before any work where the request is wrong (no such file or column, another model's index,
    another driver alive), JobFailed where too much went to quarantine, CommitError where the store gave up.
    """
    log = RunLog(config)
    units = plan_units(config.input)
    fields = metadata_fields(config.input, units)
    with running(config.ray):
        with log.phase("models"):
            job = Job(config, units, fields, make_target(config, fields))
        with take_lease(job.target, config) as lease, log.reported(job.target):
            return run(job, lease, log)


def run(job: Job, lease: Lease, log: RunLog) -> Summary:
    """What is there to do; do it; remove what is gone; index the words."""
    index = job.config.index
    version = create_or_open(job.target, lease).version
    committer = Committer(job.target, lease, index.commit_fragments, index.commit_seconds)
    with log.phase("census"):
        census = count(job, version)
    with log.phase("embedding"):
        if census.to_embed or census.bad or census.duplicates:
            commit_all(records(graph(job, census)), committer, census, log)
    pruned = prune(committer, census) if job.config.job.prune else 0
    with log.phase("full-text index"):
        if index.full_text:
            update_full_text(job.target)
    summary = Summary(
        index=index.uri,
        embedded=committer.totals,
        unchanged=census.same,
        duplicates=census.duplicates,
        pruned=pruned,
        seconds=log.seconds,
        embed_seconds=log.phases["embedding"],
        rows_in_index=create_or_open(job.target).count_rows(),
    )
    return log.finish(summary)


def graph(job: Job, census: Census) -> ray.data.Dataset:
    """Shards -> documents -> chunks -> tokens -> outputs, one pool for each embedder -> fragments."""
    config, fields = job.config, job.fields
    per_row = row_bytes(job.target.identity, sample(job.units, config, fields))
    rows = block_rows(config, per_row)
    work = [{"work": pickle.dumps(pair)} for pair in zip(job.units, census.plans, strict=True) if pair[1].to_do]
    data = ray.data.from_items(work, override_num_blocks=len(work))
    data = data.map_batches(select_documents, batch_size=1, fn_kwargs={"config": config, "fields": fields}, **LIGHT)
    data = data.map_batches(chunk, batch_size=None, fn_kwargs={"config": config}, **LIGHT)
    data = data.map_batches(tokenise, batch_size=None, fn_kwargs={"embedders": config.embedders}, **LIGHT)
    data = data.repartition(target_num_rows_per_block=rows, strict=True)
    for embedder in config.embedders:
        size = actors(job, embedder, census, rows)
        data = data.map_batches(named_actor(embedder.name), batch_size=rows, **pool(job, embedder, size))
    fragment = fragment_rows(config, per_row)
    return data.map_batches(write_block, batch_size=fragment, fn_kwargs={"target": job.target}, **LIGHT)


def actors(job: Job, embedder: EmbedderConfig, census: Census, rows: int) -> int:
    """As many as the configuration and the cluster allow, but none that would find no block to work on."""
    config = job.config
    size = pool_size(embedder.pool.spec(), ray.cluster_resources(), 1 / len(config.embedders))
    blocks = -(-census.to_embed // rows) if config.chunk.mode == "whole" else size
    return max(1, min(size, blocks))


def pool(job: Job, embedder: EmbedderConfig, size: int) -> dict[str, Any]:
    """How Ray runs one embedder: its actors' arguments, their number and their resources.

    The number is fixed: Ray starts a pool that may grow with its minimum, and was seen never to add the second actor
    to a job of 16 seconds.
    """
    described = job.target.identity.embedders[embedder.name]
    outputs = tuple(described["outputs"])
    fields = tuple(output_field(embedder.name, described, output) for output in outputs)
    spec = embedder.pool.spec()
    typed = {} if spec.accelerator_type is None else {"accelerator_type": spec.accelerator_type}
    return {
        "fn_constructor_args": (job.config.job.id, embedder.spec(), embedder.name, outputs, fields, Finish(embedder)),
        "compute": ActorPoolStrategy(size=size),
        "batch_format": "pyarrow",
        "num_cpus": spec.num_cpus,
        "num_gpus": spec.num_gpus or None,
        **typed,
    }


def count(job: Job, version: int) -> Census:
    """Compares the input with the table as it was at `version`."""
    read = partial(read_unit, config=job.config.input, batch_rows=CENSUS_ROWS, fields=job.fields)
    return take_census(job.units, read, partial(open_version, job.target, version))


def open_version(target: Target, version: int) -> lance.LanceDataset:
    return lance.dataset(target.documents_uri, version=version, storage_options=dict(target.storage_options))


def make_target(config: BuildConfig, fields: list[pa.Field]) -> Target:
    """Where the job writes, with the schema and identity that its embedders give."""
    identity = identity_of(config, {e.name: describe(e.spec()) for e in config.embedders})
    return Target(
        config.index.uri,
        documents_schema(identity, fields),
        config.index.table,
        plain(config.index.storage_options),
        config.job.id,
        uuid.uuid4().hex,
    )


def take_lease(target: Target, config: BuildConfig) -> Lease:
    seconds = config.job.lease_seconds
    return acquire(target.uri, target.table, target.job, lease_seconds=seconds, storage_options=target.storage_options)
