"""Runs the indexing job: defines its stages and where each of them runs.

Workers write fragments and the driver commits them, so a job that dies at any point leaves a table that is complete up
to its last commit, and the same command goes on from there. What that costs: one cheap pass over the input before the
first document is embedded (`pipelines.changes.detect`), and the work since the last commit is done again.
"""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from pipelines.changes.detect import QUICK_LOOK_BYTES, SCAN_BATCH_ROWS, Changes, detect_changes
from pipelines.changes.selection import RowFilter
from pipelines.cluster.connect import run_on_worker
from pipelines.config import BuildConfig, ConfigError, load_config, plain_options, resolve_paths
from pipelines.indexing.backfill import backfill_outputs, missing_outputs
from pipelines.indexing.codec_training import load_or_train_codecs
from pipelines.indexing.column_types import widen_columns
from pipelines.indexing.driver import JobFailed, commit_records, iterate_records, prune_documents, quarantine_units
from pipelines.indexing.metadata import write_metadata
from pipelines.indexing.operators import IO_STAGE_RESOURCES, Job, add_embedder_pool, count_most_actors
from pipelines.indexing.search_updates import update_search_indexes
from pipelines.indexing.session import RaySession, find_models, uses_running_ray
from pipelines.indexing.sizing import (
    average_chunks_per_document,
    choose_block_rows,
    choose_fragment_rows,
    estimate_row_bytes,
)
from pipelines.indexing.stages import chunk, read_sample, select_documents, tokenise
from pipelines.indexing.warm import WarmModels
from pipelines.monitor.runlog import RunLog
from pipelines.monitor.summary import Summary
from pipelines.reading.documents import dropped_values
from pipelines.reading.images import check_pillow, stored_fields, with_pictures
from pipelines.reading.listing import count_by_kind
from pipelines.reading.memory import LABEL, Rows, remove_left_spools, spooled
from pipelines.reading.stored_columns import fields_of_job
from pipelines.reading.units import Unit, plan_input, read_unit
from pipelines.store.commit import Committer, Totals, create_or_open
from pipelines.store.datasets import check_writable, open_dataset, open_version
from pipelines.store.embedder_choice import channels_metadata, check_defaults, write_channels
from pipelines.store.evolve import check_columns, evolve_table
from pipelines.store.interrupt import interruptible
from pipelines.store.lease import Lease, acquire
from pipelines.store.quarantine import drop_old_quarantine, failed_rows
from pipelines.store.schema import Target, documents_schema, identity_of, table_uri
from pipelines.store.skipped import write_skipped
from pipelines.store.table import with_index_settings
from pipelines.store.writer import write_block

__all__ = ["JobFailed", "build_index"]


def build_index(
    source: BuildConfig | Rows | str | os.PathLike[str],
    only: RowFilter | None = None,
    *,
    index: str | os.PathLike[str] | None = None,
    columns: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Summary:
    """Builds the index that a config describes, or updates it; returns a report.

    `build_index(frame, index="./idx", columns={"text": "body", "metadata": ["lang"]})` takes data instead of a config:
    a pandas or polars frame, a pyarrow table or reader, rows as mappings (a list or any iterable), a Hugging Face or
    Ray dataset; or the path of files. `columns` is a config's `input.columns`, and `sections` are its other sections
    (`embedders=[...]`, `job={...}`).

    `only` limits the work to those rows (None: all); see `retry`.

    Raises ConfigError before any work where the request is wrong (no such file or column, another model's index, a
    metadata column that the index has and the job lacks, another driver alive), JobFailed if too much went to
    quarantine, CommitError if the store gave up.
    """
    if isinstance(source, BuildConfig):
        if index is not None or columns or sections:
            raise TypeError("build_index: a config is complete; give data, or change the config")
        return build_resolved(resolve_paths(source), only)
    is_path = isinstance(source, (str, os.PathLike))
    config = resolve_paths(config_for_data(source if is_path else None, index, columns, sections))
    if is_path:
        return build_resolved(config, only)
    with spooled(source, config.input, config.index) as spool:
        return build_resolved(config.model_copy(update={"input": spool}), only)


def config_for_data(
    path: Any, index: str | os.PathLike[str] | None, columns: Mapping[str, Any] | None, sections: Mapping[str, Any]
) -> BuildConfig:
    """Returns the config of a build whose data is passed in, or named by a path."""
    if index is None:
        raise ConfigError("build_index: index is needed beside the data, the folder or URI of the index")
    given = dict(sections)
    paths = LABEL if path is None else os.fspath(path)
    reading = {"paths": [paths], **({"columns": dict(columns)} if columns else {}), **given.pop("input", {})}
    return load_config(input=reading, index={"uri": os.fspath(index), **given.pop("index", {})}, **given)


def build_resolved(config: BuildConfig, only: RowFilter | None = None, warm: WarmModels | None = None) -> Summary:
    """Builds as `build_index`, for a config with absolute paths. warm: models that stay loaded after the build."""
    check_writable(config.index.uri)
    remove_left_spools(config.index)
    config = with_index_settings(config)
    log = RunLog(config)
    with closing(log.status), interruptible():
        with log.phase("listing files"):
            check_pillow(config.input)
            planned = plan_input(config.input)
            units, skipped = planned.units, count_by_kind(planned.skipped)
            fields = fields_of_job(config, units)
        if not uses_running_ray(config.ray):
            with log.phase("finding the models"):
                find_models(config.embedders)
        keep, quick = (None, False) if warm is None else (warm.stack, is_small(units))
        with RaySession(config.ray, log, start=not (quick or quick_look_pays(config, units)), keep=keep) as session:
            with log.phase("reading the models' settings"):
                job = Job(config, units, fields, make_target(config, units, fields, session), only, skipped)
                check_columns(job.target, config.job.drop_columns)
            with acquire_lease(job.target, config) as lease, log.reported(job.target):
                summary = run(job, lease, log, session, warm)
    return replace(summary, report=log.report)


def retry(config: BuildConfig) -> Summary | None:
    """Retries the rows in quarantine on the current files; None if the quarantine is empty.

    Change detection still looks at the whole input: only that distinguishes a document from its duplicate.
    """
    failed = failed_rows(config.index.uri, plain_options(config.index.storage_options))
    return build_index(config, failed) if failed else None


def run(job: Job, lease: Lease, log: RunLog, session: RaySession, warm: WarmModels | None = None) -> Summary:
    """Runs the steps: columns, change detection, metadata updates, embedding, deletion, search indexes."""
    config = job.config
    with log.phase("checking the table"):
        job = replace(job, target=evolve_table(job.target, lease, config.job.drop_columns))
    backfilled = Totals()
    if missing_outputs(job.target):
        with log.phase("adding new outputs"):
            backfilled = backfill_outputs(job, lease, session.connect)
    write_channels(job.target, lease)
    job, version, changes = compare_with_table(job, lease, log, session)
    committer = Committer(job.target, lease, config.index.commit_fragments, config.index.commit_seconds)
    job = replace(job, skipped=(*job.skipped, *dropped_values(changes.misfits, job.fields)))
    write_skipped(job.target, job.skipped)
    updated = 0
    if changes.metadata_only and job.only is None:
        with log.phase("writing metadata"):
            updated = write_metadata(job, changes, session.tasks, lease, version)
    if work := pending_units(job, changes):
        with log.phase("embedding"):
            commit_records(handle_units(job, work, changes, session, warm), committer, changes, log)
    lease.check()  # a driver that was frozen must not drop the quarantine of the one that replaced it
    drop_old_quarantine(job.target)
    with log.phase("updating search indexes"):
        update_search_indexes(job.target, config.index, session)
    pruned = prune_documents(committer, changes, config.job.prune_limit) if config.job.prune else 0
    return log.finish(summarise(job, log, changes, committer.totals, backfilled, updated, pruned))


def compare_with_table(job: Job, lease: Lease, log: RunLog, session: RaySession) -> tuple[Job, int, Changes]:
    """Compares the input with the table's newest version; compares again where a guessed column type had to be widened.

    Returns the job (with the wider types), the version compared with, and the changes.
    """
    with log.phase("comparing the input with the index"):
        version = create_or_open(job.target, lease).version
        changes = detect(job, version, session)
        wider = widen_columns(job, changes, lease)
        if wider is job:
            return job, version, changes
        version = create_or_open(wider.target, lease).version
        return wider, version, detect(wider, version, session)


def summarise(
    job: Job, log: RunLog, changes: Changes, embedded: Totals, backfilled: Totals, metadata_rows: int, pruned: int
) -> Summary:
    """Returns what a build did, in figures."""
    return Summary(
        index=job.config.index.uri,
        embedded=embedded,
        new=changes.new,
        changed=changes.changed,
        metadata_only=changes.metadata_only,
        unchanged=changes.same,
        gone=changes.gone,
        duplicates=changes.duplicates,
        pruned=pruned,
        metadata_rows=metadata_rows,
        backfilled=backfilled.rows,
        backfilled_tokens=backfilled.n_tokens,
        seconds=log.seconds,
        embed_seconds=log.phases.get("embedding", 0.0),
        rows_in_index=create_or_open(job.target).count_rows(),
        skipped=job.skipped,
    )


def quick_look_pays(config: BuildConfig, units: Sequence[Unit]) -> bool:
    """Returns whether to detect changes before Ray is started: there is an index, and the input is small."""
    options = plain_options(config.index.storage_options)
    there = open_dataset(table_uri(config.index.uri, config.index.table), options) is not None
    return there and is_small(units)


def is_small(units: Sequence[Unit]) -> bool:
    """Returns whether one process reads the input in the time that Ray takes to start."""
    return sum(unit.size for unit in units) <= QUICK_LOOK_BYTES


def detect(job: Job, version: int, session: RaySession) -> Changes:
    """Compares the input with the table at `version`."""
    read = partial(read_unit, config=job.config.input, batch_rows=SCAN_BATCH_ROWS, fields=job.fields)
    return detect_changes(job.units, read, partial(open_version, job.target, version), run=session.tasks)


def handle_units(
    job: Job, work: list[dict[str, bytes]], changes: Changes, session: RaySession, warm: WarmModels | None = None
) -> Generator[dict[str, Any]]:
    """Yields a record of each fragment that the pending units produce; failed rows alone need no Ray."""
    if warm is not None and changes.to_embed and warm.takes(job.config, changes.to_embed):
        return warm.embed(job, work)
    if changes.to_embed or session.is_connected:
        session.connect()
        return iterate_records(graph(job, work, changes.to_embed))
    return quarantine_units(job, work)


def pending_units(job: Job, changes: Changes) -> list[dict[str, bytes]]:
    """Returns one item per unit with work to do: the unit and the plan for its rows, for one read task."""
    pairs = zip(job.units, changes.plans, strict=True)
    return [{"work": pickle.dumps((unit, plan))} for unit, plan in pairs if plan.pending_rows and job.wants(unit)]


def graph(job: Job, work: list[dict[str, bytes]], documents: int) -> ray.data.Dataset:
    """Builds the job's dataset: shards -> documents -> chunks -> tokens -> outputs (pool per embedder) -> fragments."""
    config, fields = job.config, job.fields
    first = run_on_worker(read_sample, job.units, config, fields)
    per_row, expected = (
        estimate_row_bytes(job.target.identity, first),
        round(documents * average_chunks_per_document(first)),
    )
    rows = choose_block_rows(config, per_row, expected, count_most_actors(job))
    reading = {"config": config, "fields": fields, "only": job.only}
    data = ray.data.from_items(work, override_num_blocks=len(work))
    data = data.map_batches(select_documents, batch_size=1, fn_kwargs=reading, **IO_STAGE_RESOURCES)
    data = with_pictures(data, config.input, job.target.identity)
    data = data.map_batches(chunk, batch_size=None, fn_kwargs={"config": config}, **IO_STAGE_RESOURCES)
    data = data.map_batches(tokenise, batch_size=None, fn_kwargs={"embedders": config.embedders}, **IO_STAGE_RESOURCES)
    data = data.repartition(target_num_rows_per_block=rows, strict=True)
    for embedder in config.embedders:
        data = add_embedder_pool(data, job, embedder, rows, expected)
    fragment = choose_fragment_rows(config, per_row, rows)
    return data.map_batches(write_block, batch_size=fragment, fn_kwargs={"target": job.target}, **IO_STAGE_RESOURCES)


def make_target(config: BuildConfig, units: list[Unit], fields: list[pa.Field], session: RaySession) -> Target:
    """Returns the job's write target, with the schema and identity that its embedders give."""
    described, parameters = session.describe(config.embedders), load_or_train_codecs(config, units, session.connect)
    options = plain_options(config.index.storage_options)
    identity, channels = identity_of(config, described, parameters), config.search.channels
    is_new = open_dataset(table_uri(config.index.uri, config.index.table), options) is None
    check_defaults(identity, channels, is_new)
    schema = documents_schema(identity, stored_fields(config.input, fields), parameters)
    return Target(
        config.index.uri,
        schema.with_metadata({**(schema.metadata or {}), **channels_metadata(channels)}),
        config.index.table,
        options,
        config.job.id,
        uuid.uuid4().hex,
    )


def acquire_lease(target: Target, config: BuildConfig) -> Lease:
    seconds = config.job.lease_seconds
    return acquire(target.uri, target.table, target.job, lease_seconds=seconds, storage_options=target.storage_options)
