"""Back-fills outputs of an existing index: a second embedder, or an output that was left out before.

The texts come from the index itself, so the input files are not needed and what is embedded is what is indexed; only
the new columns are computed and written. It runs before the rows are brought up to date, under the same lease.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

import lance
import pyarrow as pa
import ray

from actors.spec import Output
from pipelines.cluster.connect import run_on_worker
from pipelines.config import BuildConfig, ConfigError
from pipelines.indexing.driver import JobFailed, iterate_records
from pipelines.indexing.operators import IO_STAGE_RESOURCES, Job, add_embedder_pool
from pipelines.indexing.sizing import choose_block_rows, estimate_row_bytes
from pipelines.indexing.stages import tokenise
from pipelines.monitor.progress import Progress
from pipelines.store.columns import (
    ColumnCommitter,
    add_null_columns,
    read_fragments,
    record_identity,
    unfilled_fragments,
    write_columns,
)
from pipelines.store.commit import Totals
from pipelines.store.datasets import open_dataset, open_version
from pipelines.store.interrupt import interruptible
from pipelines.store.lease import Lease
from pipelines.store.schema import Identity, Target


def missing_outputs(target: Target) -> dict[str, tuple[Output, ...]]:
    """Returns outputs by embedder that the job has and the index lacks, if nothing else differs; else empty."""
    dataset = open_dataset(target.documents_uri, target.storage_options)
    have = None if dataset is None else Identity.from_metadata(dataset.schema.metadata)
    return {} if have is None else have.additions(target.identity)  # type: ignore[return-value]


def backfill_outputs(job: Job, lease: Lease, connect: Callable[[], None]) -> Totals:
    """Adds the missing outputs, and returns the rows that got them. Resumes an interrupted back-fill.

    connect: starts Ray; called where there is something to add.
    """
    missing = missing_outputs(job.target)
    if not missing:
        return Totals()
    refuse_picture_backfill(job.config, missing)
    connect()
    dataset, fields = add_null_columns(job.target)
    committer = ColumnCommitter(job.target, lease, dataset, fields)
    left = unfilled_fragments(lance.dataset(dataset.uri, storage_options=dict(job.target.storage_options)), fields)
    if left:
        rows = sum(dataset.get_fragment(i).count_rows() for i in left)
        commit_columns(iterate_records(graph(job, dataset, left, missing, fields)), committer, job.config, rows)
    record_identity(job.target, fields)
    return committer.totals


def refuse_picture_backfill(config: BuildConfig, missing: Mapping[str, tuple[Output, ...]]) -> None:
    """Raises ConfigError for an embedder of pictures: the index keeps thumbnails only, the input has the rest."""
    blind = [e.name for e in config.embedders if e.name in missing and e.picture_weights is not None]
    if config.input.pictures is not None and blind:
        raise ConfigError(
            f"embedders: {blind[0]} sees pictures, which the index at {config.index.uri} does not keep; "
            "build a new index with it"
        )


def commit_columns(
    finished: Generator[Mapping[str, Any]], committer: ColumnCommitter, config: BuildConfig, rows: int | None = None
) -> None:
    progress = Progress(rows, enabled=config.ray.progress)
    with interruptible(), closing(finished):
        try:
            for record in finished:
                committer.add(record)
                progress.show(committer.totals)
                if committer.pending >= config.index.commit_fragments:
                    committer.commit()
        finally:
            committer.commit()
            progress.show(committer.totals, now=True)
    if committer.incomplete:
        raise JobFailed(f"rows of {len(committer.incomplete)} fragments are missing: {committer.incomplete[:5]}")


def graph(
    job: Job,
    dataset: lance.LanceDataset,
    fragments: list[int],
    missing: Mapping[str, tuple[Output, ...]],
    fields: list[pa.Field],
) -> ray.data.Dataset:
    """Builds the back-fill's dataset: stored texts -> tokens -> the missing outputs -> files with new columns."""
    embedders = tuple(e for e in job.config.embedders if e.name in missing)
    sample = run_on_worker(tokenise, next(read_fragments(dataset, fragments, 256)), embedders)
    rows = choose_block_rows(job.config, estimate_row_bytes(job.target.identity, sample))
    data = ray.data.from_items([{"fragment": i} for i in fragments], override_num_blocks=len(fragments))
    source = {"target": job.target, "version": dataset.version}
    data = data.map_batches(read_stored_texts, batch_size=1, fn_kwargs=source, **IO_STAGE_RESOURCES)
    data = data.map_batches(tokenise, batch_size=None, fn_kwargs={"embedders": embedders}, **IO_STAGE_RESOURCES)
    data = data.repartition(target_num_rows_per_block=rows, strict=True)
    for embedder in embedders:
        data = add_embedder_pool(data, job, embedder, rows, dataset.count_rows(), missing[embedder.name])
    return data.map_batches(
        write_columns, batch_size=None, fn_kwargs={"target": job.target, "fields": fields}, **IO_STAGE_RESOURCES
    )


def read_stored_texts(work: pa.Table, target: Target, version: int) -> Iterator[pa.Table]:
    """Reads the rows of fragments that have to be filled."""
    dataset = open_version(target, version)
    yield from read_fragments(dataset, work.column("fragment").to_pylist(), 1024)
