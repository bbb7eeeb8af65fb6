"""The indexing job: which stages there are, and what runs where.

Workers write fragments and the driver commits them, so a job that dies at any point leaves a table that is complete up
to its last commit, and the same command goes on from there. What that costs: one cheap pass over the input before the
first document is embedded (`pipelines.changes.detect`), and the work since the last commit is done again.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Mapping
from functools import partial

import pyarrow as pa
import ray

from pipelines.changes.detect import Changes, detect_changes
from pipelines.changes.selection import RowFilter
from pipelines.cluster.connect import describe_embedders, run_on_worker, running
from pipelines.config import BuildConfig, IndexConfig, plain_options
from pipelines.indexing.backfill import backfill_outputs
from pipelines.indexing.codec_training import load_or_train_codecs
from pipelines.indexing.driver import JobFailed, commit_records, prune, records
from pipelines.indexing.operators import IO_STAGE_RESOURCES, Job, add_embedder_pool, max_actors
from pipelines.indexing.sizing import block_rows, fragment_rows, row_bytes, rows_per_document
from pipelines.indexing.stages import chunk, sample, select_documents, tokenise
from pipelines.monitor.runlog import RunLog
from pipelines.monitor.summary import Summary
from pipelines.reading.images import stored_fields, with_pictures
from pipelines.reading.units import Unit, metadata_fields, plan_units, read_unit
from pipelines.store.commit import Committer, create_or_open
from pipelines.store.datasets import open_version
from pipelines.store.interrupt import interruptible
from pipelines.store.lease import Lease, acquire
from pipelines.store.quarantine import drop_old_quarantine, failed_rows
from pipelines.store.schema import Target, documents_schema, identity_of
from pipelines.store.writer import write_block

__all__ = ["JobFailed", "build_index"]

SCAN_BATCH_ROWS = 4096


def build_index(config: BuildConfig, only: RowFilter | None = None) -> Summary:
    """Builds the index that `config` describes, or brings it up to date; returns what was done.

    `only` limits the work to those rows (None: all); see `retry`.

    Raises ConfigError before any work where the request is wrong (no such file or column, another model's index,
    another driver alive), JobFailed where too much went to quarantine, CommitError where the store gave up.
    """
    log = RunLog(config)
    units = plan_units(config.input)
    fields = metadata_fields(config.input, units)
    with running(config.ray), interruptible():
        with log.phase("models"):
            job = Job(config, units, fields, make_target(config, units, fields), only)
        with take_lease(job.target, config) as lease, log.reported(job.target):
            return run(job, lease, log)


def retry(config: BuildConfig) -> Summary | None:
    """Tries the rows in quarantine again, as their files are now; None where the quarantine is empty.

    The census still looks at the whole input: only so can it tell a document from its duplicate.
    """
    failed = failed_rows(config.index.uri, plain_options(config.index.storage_options))
    return build_index(config, failed) if failed else None


def run(job: Job, lease: Lease, log: RunLog) -> Summary:
    """New columns first; what is there to do; do it; remove what is gone; index the words, count the tokens."""
    index = job.config.index
    with log.phase("new columns"):
        backfilled = backfill_outputs(job, lease)
    version = create_or_open(job.target, lease).version
    committer = Committer(job.target, lease, index.commit_fragments, index.commit_seconds)
    with log.phase("census"):
        changes = count(job, version)
    with log.phase("embedding"):
        if work := pending(job, changes):
            commit_records(records(graph(job, work, changes.to_embed)), committer, changes, log)
        lease.check()  # a driver that was frozen must not settle the quarantine of the one that replaced it
        drop_old_quarantine(job.target)
    pruned = prune(committer, changes) if job.config.job.prune else 0
    with log.phase("search indexes"):
        update_search_indexes(job.target, index)
    summary = Summary(
        index=index.uri,
        embedded=committer.totals,
        unchanged=changes.same,
        duplicates=changes.duplicates,
        pruned=pruned,
        backfilled=backfilled.rows,
        backfilled_tokens=backfilled.n_tokens,
        seconds=log.seconds,
        embed_seconds=log.phases["embedding"],
        rows_in_index=create_or_open(job.target).count_rows(),
    )
    return log.finish(summary)


def update_search_indexes(target: Target, index: IndexConfig) -> None:
    """Words, where the config wants them, and token counts."""
    if index.full_text:
        from pipelines.search_indexes.full_text import update_full_text  # here: half of a driver's start

        update_full_text(target)
    run_on_worker(count_tokens, index.uri, index.table, target.storage_options)


def count_tokens(uri: str, table: str, storage_options: Mapping[str, str]) -> None:
    from pipelines.search_indexes.document_frequencies import update_document_frequencies

    update_document_frequencies(uri, table, storage_options)


def pending(job: Job, changes: Changes) -> list[dict[str, bytes]]:
    """One item for each unit that has something to do: the unit and what to do with its rows, for one read task."""
    pairs = zip(job.units, changes.plans, strict=True)
    return [{"work": pickle.dumps((unit, plan))} for unit, plan in pairs if plan.pending_rows and job.wants(unit)]


def graph(job: Job, work: list[dict[str, bytes]], documents: int) -> ray.data.Dataset:
    """Shards -> documents -> chunks -> tokens -> outputs, one pool for each embedder -> fragments."""
    config, fields = job.config, job.fields
    first = run_on_worker(sample, job.units, config, fields)
    per_row, expected = row_bytes(job.target.identity, first), round(documents * rows_per_document(first))
    rows = block_rows(config, per_row, expected, max_actors(job))
    reading = {"config": config, "fields": fields, "only": job.only}
    data = ray.data.from_items(work, override_num_blocks=len(work))
    data = data.map_batches(select_documents, batch_size=1, fn_kwargs=reading, **IO_STAGE_RESOURCES)
    data = with_pictures(data, config.input, job.target.identity)
    data = data.map_batches(chunk, batch_size=None, fn_kwargs={"config": config}, **IO_STAGE_RESOURCES)
    data = data.map_batches(tokenise, batch_size=None, fn_kwargs={"embedders": config.embedders}, **IO_STAGE_RESOURCES)
    data = data.repartition(target_num_rows_per_block=rows, strict=True)
    for embedder in config.embedders:
        data = add_embedder_pool(data, job, embedder, rows, expected)
    fragment = fragment_rows(config, per_row, rows)
    return data.map_batches(write_block, batch_size=fragment, fn_kwargs={"target": job.target}, **IO_STAGE_RESOURCES)


def count(job: Job, version: int) -> Changes:
    """Compares the input with the table as it was at `version`."""
    read = partial(read_unit, config=job.config.input, batch_rows=SCAN_BATCH_ROWS, fields=job.fields)
    return detect_changes(job.units, read, partial(open_version, job.target, version))


def make_target(config: BuildConfig, units: list[Unit], fields: list[pa.Field]) -> Target:
    """Where the job writes, with the schema and identity that its embedders give."""
    described, parameters = describe_embedders(config.embedders), load_or_train_codecs(config, units)
    identity = identity_of(config, described, parameters)
    return Target(
        config.index.uri,
        documents_schema(identity, stored_fields(config.input, fields), parameters),
        config.index.table,
        plain_options(config.index.storage_options),
        config.job.id,
        uuid.uuid4().hex,
    )


def take_lease(target: Target, config: BuildConfig) -> Lease:
    seconds = config.job.lease_seconds
    return acquire(target.uri, target.table, target.job, lease_seconds=seconds, storage_options=target.storage_options)
