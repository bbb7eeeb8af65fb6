"""The indexing job: which stages there are, what runs where, and what the driver does with the results.

Workers write fragments and the driver commits them, so a job that dies at any point leaves a table that is complete up
to its last commit, and the same command goes on from there. What that costs: one cheap pass over the input before the
first document is embedded (`pipelines.census`), and the work since the last commit is done again.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import lance
import pyarrow as pa
import ray

from actors.pool import EmbedActor, strategy
from pipelines.census import Census, take_census
from pipelines.cluster import describe, running
from pipelines.config import BuildConfig, EmbedderConfig, plain
from pipelines.interrupt import interruptible
from pipelines.progress import Progress
from pipelines.read import Unit, metadata_fields, plan_units, read_unit
from pipelines.sizing import block_rows, fragment_rows, row_bytes
from pipelines.stages import Finish, chunk, sample, select_documents, tokenise
from pipelines.store.commit import Committer, Totals, create_or_open
from pipelines.store.fulltext import update_full_text
from pipelines.store.lease import acquire
from pipelines.store.schema import Target, documents_schema, identity_of, output_field
from pipelines.store.writer import write_block
from pipelines.summary import Summary

LIGHT: dict[str, Any] = {"num_cpus": 0.25, "batch_format": "pyarrow"}
"""Stages that wait for disks and networks more than they compute."""
CENSUS_ROWS = 4096


class JobFailed(RuntimeError):
    """The job stopped before its end; what was committed stays, and the same command goes on from there."""


def build_index(config: BuildConfig) -> Summary:
    """Builds the index that `config` describes, or brings it up to date; returns what was done.

    Raises ConfigError before any work where the request is wrong (no such file or column, another model's index,
    another driver alive), JobFailed where too much went to quarantine, CommitError where the store gave up.
    """
    started = time.monotonic()
    units = plan_units(config.input)
    fields = metadata_fields(config.input, units)
    with running(config.ray):
        target = make_target(config, fields)
        with acquire(target.uri, target.table, config.job.id, **lease_options(config, target)) as lease:
            version = create_or_open(target, lease).version
            read = partial(read_unit, config=config.input, batch_rows=CENSUS_ROWS, fields=fields)
            census = take_census(units, read, partial(open_version, target, version))
            committer = Committer(target, lease, config.index.commit_fragments, config.index.commit_seconds)
            embedding = time.monotonic()
            if census.to_embed or census.bad or census.duplicates:
                commit_all(records(graph(config, target, fields, units, census)), committer, config, census)
            embedded = time.monotonic() - embedding
            pruned = prune(committer, census) if config.job.prune else 0
            if config.index.full_text:
                update_full_text(target)
            rows = create_or_open(target).count_rows()
    seconds = time.monotonic() - started
    return Summary(target.uri, committer.totals, census.same, census.duplicates, pruned, seconds, embedded, rows)


def graph(
    config: BuildConfig, target: Target, fields: list[pa.Field], units: list[Unit], census: Census
) -> ray.data.Dataset:
    """Shards -> documents -> chunks -> tokens -> outputs, one pool for each embedder -> fragments."""
    work = [{"work": pickle.dumps(pair)} for pair in zip(units, census.plans, strict=True) if pair[1].to_do]
    per_row = row_bytes(target.identity, sample(units, config, fields))
    rows = block_rows(config, per_row)
    data = ray.data.from_items(work, override_num_blocks=len(work))
    data = data.map_batches(select_documents, batch_size=1, fn_kwargs={"config": config, "fields": fields}, **LIGHT)
    data = data.map_batches(chunk, batch_size=None, fn_kwargs={"config": config}, **LIGHT)
    data = data.map_batches(tokenise, batch_size=None, fn_kwargs={"embedders": config.embedders}, **LIGHT)
    data = data.repartition(target_num_rows_per_block=rows, strict=True)
    for embedder in config.embedders:
        data = data.map_batches(EmbedActor, batch_size=rows, **pool(config, embedder, target))
    fragment = fragment_rows(config, per_row)
    return data.map_batches(write_block, batch_size=fragment, fn_kwargs={"target": target}, **LIGHT)


def pool(config: BuildConfig, embedder: EmbedderConfig, target: Target) -> dict[str, Any]:
    """How Ray runs one embedder: its actors' arguments, their number and their resources."""
    described = target.identity.embedders[embedder.name]
    outputs = tuple(described["outputs"])
    fields = tuple(output_field(embedder.name, described, output) for output in outputs)
    spec = embedder.pool.spec()
    options: dict[str, Any] = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus or None}
    if spec.accelerator_type is not None:
        options["accelerator_type"] = spec.accelerator_type
    return {
        "fn_constructor_args": (embedder.spec(), embedder.name, outputs, fields, Finish(embedder)),
        "compute": strategy(spec, 1 / len(config.embedders)),
        "batch_format": "pyarrow",
        **options,
    }


def records(fragments: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Rows of `writer.RECORD_SCHEMA`, as the workers finish them."""
    for block in fragments.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()


def commit_all(finished: Iterator[dict[str, Any]], committer: Committer, config: BuildConfig, census: Census) -> None:
    """Drives the graph: takes each record, commits when it is time, and once more at the end or when interrupted."""
    progress = Progress(census.to_embed, enabled=config.ray.progress)
    seen = Totals()
    with interruptible():
        try:
            for record in finished:
                committer.add(record)
                seen = seen.plus([record])
                progress.show(seen)
                if committer.commit_due():
                    committer.commit()
                check_quarantine(seen, config, census)
        finally:
            committer.commit()
            progress.show(seen, now=True)
    if committer.incomplete:
        raise JobFailed(f"chunks of {len(committer.incomplete):,} documents are missing: {committer.incomplete[:5]}")


def check_quarantine(seen: Totals, config: BuildConfig, census: Census) -> None:
    """JobFailed where more than `job.quarantine_limit` of the rows so far have failed."""
    rows = seen.rows + seen.quarantined
    if rows >= min(1000, census.to_embed + census.bad) and seen.quarantined > config.job.quarantine_limit * rows:
        raise JobFailed(
            f"{seen.quarantined:,} of the first {rows:,} rows went to quarantine, more than job.quarantine_limit "
            f"({config.job.quarantine_limit:.0%}); `tridex status {config.index.uri}` shows why"
        )


def prune(committer: Committer, census: Census) -> int:
    """Removes rows whose documents are gone; refuses where a damaged file hides what it holds."""
    if census.unreadable:
        raise JobFailed(f"not pruned: {len(census.unreadable)} files could not be read: {census.unreadable[:5]}")
    return committer.prune(census.prune.tolist())


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


def open_version(target: Target, version: int) -> lance.LanceDataset:
    """The table as the census compares the input with it, on whichever worker."""
    return lance.dataset(target.documents_uri, version=version, storage_options=dict(target.storage_options))


def lease_options(config: BuildConfig, target: Target) -> dict[str, Any]:
    return {"lease_seconds": config.job.lease_seconds, "storage_options": target.storage_options}
