"""Updates metadata of documents that changed in nothing else: embeds no text and moves no vector.

It also fills metadata columns that are new (`store.evolve` makes them, all null). The input is read once more, for the
units with such rows only. Commits are of whole fragments, so a job that dies leaves rows with their old values or their
new ones, and the next run finds what is left.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa

from pipelines.changes.detect import Changes
from pipelines.changes.selection import select_updates
from pipelines.changes.tasks import Tasks
from pipelines.config import InputConfig
from pipelines.indexing.operators import Job
from pipelines.reading.columns import is_filled_by_chunks
from pipelines.reading.units import read_unit
from pipelines.store.lease import Lease
from pipelines.store.updates import commit_updates, split_by_fragment, update_metadata

UNITS_AT_ONCE = 16
READ_ROWS = 4096
COMMIT_BYTES = 64 * 2**20
"""Of values that are collected before they are written: a fragment that is met again later is written again."""


def write_metadata(job: Job, changes: Changes, tasks: Tasks, lease: Lease, version: int) -> int:
    """Writes the new values of all metadata-only documents; returns the number of updated rows."""
    written = 0
    for number, rows in enumerate(_batches(job, changes, tasks)):
        parts = split_by_fragment(rows).items()
        pending = [tasks.submit(update_metadata, 1, job.target, version, i, part)[0] for i, part in parts]
        updates = [update for handle in pending if (update := tasks.get(handle)) is not None]
        if updates:
            version = commit_updates(job.target, lease, updates, f"metadata-{number}")
        written += sum(update.rows for update in updates)
    return written


def _batches(job: Job, changes: Changes, tasks: Tasks) -> Iterator[pa.Table]:
    """Yields rows with their addresses, some tens of MB together."""
    work = [
        pickle.dumps((unit, plan)) for unit, plan in zip(job.units, changes.plans, strict=True) if len(plan.updates)
    ]
    held: list[pa.Table] = []
    for first in range(0, len(work), UNITS_AT_ONCE):
        some = work[first : first + UNITS_AT_ONCE]
        pending = [tasks.submit(read_updates, 1, pair, job.config.input, job.fields)[0] for pair in some]
        held += [table for handle in pending if (table := tasks.get(handle)) is not None]
        if sum(table.nbytes for table in held) >= COMMIT_BYTES:
            yield pa.concat_tables(held)
            held.clear()
    if held:
        yield pa.concat_tables(held)


def read_updates(pair: bytes, config: InputConfig, fields: Sequence[pa.Field]) -> pa.Table | None:
    """Reads the metadata-only rows of a pickled (Unit, UnitPlan), without their texts; None if there are none."""
    unit, plan = pickle.loads(pair)  # noqa: S301  # made by the driver of this job
    read = partial(read_unit, config=config, batch_rows=READ_ROWS, fields=fields)
    left = ["text", *(field.name for field in fields if is_filled_by_chunks(field))]
    tables = [table.drop_columns(left) for table in select_updates(unit, plan, read)]
    return pa.concat_tables(tables) if tables else None
