"""Runs the driver's loop of a job: collects records from the workers, commits them in time, and stops on failures.

It is the only process that commits, and it never holds a document: a record names a fragment's files and contents.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.changes.detect import Changes
from pipelines.config import BuildConfig, WorkFailed
from pipelines.indexing.operators import Job
from pipelines.indexing.stages import select_documents
from pipelines.monitor.progress import Progress
from pipelines.monitor.runlog import RunLog
from pipelines.store.commit import Committer, Totals
from pipelines.store.interrupt import interruptible
from pipelines.store.writer import quarantine_record

MIN_ROWS_FOR_LIMIT = 1000
"""Rows that must have been handled before `job.quarantine_limit` applies: the share of a small sample is noise."""

MIN_PRUNED = 10
"""Documents that a job may remove whatever their share."""


class JobFailed(WorkFailed):
    """Signals that the job stopped early; commits stay, and the same command continues from there."""


def iterate_records(fragments: ray.data.Dataset) -> Generator[dict[str, Any]]:
    """Yields rows of `writer.RECORD_SCHEMA` as the workers finish them.

    Close it before Ray ends: what Ray Data has left to do is lost then, which Ray reports in a traceback.
    """
    for block in fragments.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()


def quarantine_units(job: Job, work: Sequence[Mapping[str, bytes]]) -> Generator[dict[str, Any]]:
    """Reads pending units without anything to embed, and yields records of their failed rows; without Ray."""
    for pair in work:
        for rows in select_documents(pa.table({"work": [pair["work"]]}), job.config, job.fields, job.only):
            bad = rows.filter(pc.is_valid(rows.column("error")))
            if bad.num_rows:
                yield quarantine_record(bad, job.target, [])


def commit_records(finished: Generator[dict[str, Any]], committer: Committer, changes: Changes, log: RunLog) -> None:
    """Collects records, commits at intervals, and once more at the end, also when interrupted."""
    progress = Progress(changes.to_embed, enabled=log.config.ray.progress)
    with interruptible(), closing(finished):
        try:
            for record in finished:
                committer.add(record)
                log.note(record, progress)
                if committer.commit_due():
                    log.commit(committer)
                check_quarantine(log.seen, log.config, changes)
        finally:
            log.commit(committer)
            progress.show(log.seen, now=True)
    if committer.incomplete:
        raise JobFailed(f"chunks of {len(committer.incomplete):,} documents are missing: {committer.incomplete[:5]}")


def check_quarantine(seen: Totals, config: BuildConfig, changes: Changes) -> None:
    """Raises JobFailed if more than `job.quarantine_limit` of the rows so far failed; names the first of them.

    Duplicates are not bad. Unchanged rows count as read: otherwise a second run over a corpus with one bad row, which
    has nothing else to do, would always stop.
    """
    bad, rows = seen.quarantined - seen.duplicates, seen.rows + seen.quarantined
    settled = rows >= min(MIN_ROWS_FOR_LIMIT, changes.to_embed + changes.bad)
    rows += changes.same + changes.metadata_only
    if settled and bad > config.job.quarantine_limit * rows:
        first = f"; the first: {seen.reason}" if seen.reason else ""
        raise JobFailed(
            f"{bad:,} of the first {rows:,} rows went to quarantine, more than job.quarantine_limit "
            f"({config.job.quarantine_limit:.0%}){first}; `tridex status {config.index.uri}` shows why"
        )


def prune_documents(committer: Committer, changes: Changes, limit: float = 1.0) -> int:
    """Deletes rows whose documents are gone.

    Refuses (JobFailed) if a damaged file or row hides which document it is, and to remove more than the share `limit`
    of the documents, MIN_PRUNED aside: more often than not half an input that is missing is a mistake.
    """
    if changes.unreadable:
        raise JobFailed(
            f"not pruned: {len(changes.unreadable)} files hold rows whose id cannot be read: {changes.unreadable[:5]}"
        )
    documents = changes.same + changes.changed + changes.metadata_only + changes.gone
    if changes.gone > max(MIN_PRUNED, limit * documents):
        raise JobFailed(
            f"not pruned: {changes.gone:,} of {documents:,} documents are gone from the input, more than "
            f"job.prune_limit ({limit:.0%}); set it to 1 if they shall go"
        )
    return committer.prune(changes.prune.tolist())
