"""The driver's half of a job: it takes what the workers have written, commits it in time, and knows when to stop.

It is the only process that commits, and it never holds a document: a record says where a fragment is and what is in it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import ray

from pipelines.changes.detect import Changes
from pipelines.config import BuildConfig, WorkFailed
from pipelines.monitor.progress import Progress
from pipelines.monitor.runlog import RunLog
from pipelines.store.commit import Committer, Totals
from pipelines.store.interrupt import interruptible

MIN_ROWS_FOR_LIMIT = 1000
"""Before so many rows a share of bad ones says little."""


class JobFailed(WorkFailed):
    """The job stopped before its end; what was committed stays, and the same command goes on from there."""


def records(fragments: ray.data.Dataset) -> Generator[dict[str, Any]]:
    """Rows of `writer.RECORD_SCHEMA`, as the workers finish them.

    Close it before Ray ends: what Ray Data has left to do is lost then, and it says so in a traceback.
    """
    for block in fragments.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()


def commit_records(finished: Generator[dict[str, Any]], committer: Committer, changes: Changes, log: RunLog) -> None:
    """Takes each record, commits when it is time, and once more at the end, also when interrupted."""
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
    """JobFailed where more than `job.quarantine_limit` of the rows so far have failed; unchanged rows count as read.

    Otherwise a second run over a corpus with one bad row, which has nothing else to do, would always stop.
    """
    rows = seen.rows + seen.quarantined
    settled = rows >= min(MIN_ROWS_FOR_LIMIT, changes.to_embed + changes.bad)
    rows += changes.same
    if settled and seen.quarantined > config.job.quarantine_limit * rows:
        raise JobFailed(
            f"{seen.quarantined:,} of the first {rows:,} rows went to quarantine, more than job.quarantine_limit "
            f"({config.job.quarantine_limit:.0%}); `tridex status {config.index.uri}` shows why"
        )


def prune(committer: Committer, changes: Changes) -> int:
    """Removes rows whose documents are gone; refuses where a damaged file or row hides which document it is."""
    if changes.unreadable:
        raise JobFailed(
            f"not pruned: {len(changes.unreadable)} files hold rows whose id cannot be read: {changes.unreadable[:5]}"
        )
    return committer.prune(changes.prune.tolist())
