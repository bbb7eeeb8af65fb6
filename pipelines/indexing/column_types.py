"""Widens guessed types of metadata columns to those that hold all values of the input.

Types are guessed from the first rows of some files. Change detection reads every row, so if later ones do not fit, it
names the type that would hold them: a column that has no value in the index yet gets that type, and the input is
compared once more. The price is a second pass over an input whose guess was wrong. A column with values keeps its type,
and a value that does not fit is null and counted.
"""

from __future__ import annotations

from dataclasses import replace

from pipelines.changes.detect import Changes
from pipelines.indexing.operators import Job
from pipelines.reading.columns import state_type, widest_type
from pipelines.store.evolve import retype_columns
from pipelines.store.lease import Lease


def widen_columns(job: Job, changes: Changes, lease: Lease) -> Job:
    """Returns the job with guessed columns as wide as their values; the same job if nothing can be widened."""
    stated = job.config.input.columns.metadata_types
    picture = None if job.config.input.pictures is None else job.config.input.pictures.column
    types = {
        name: state_type(widest_type(found))
        for name, found in changes.wider.items()
        if name not in stated and name != picture
    }
    if not types:
        return job
    target = retype_columns(job.target, lease, types)
    fields = [f.with_type(target.schema.field(f.name).type) if f.name in types else f for f in job.fields]
    return job if fields == job.fields else replace(job, fields=fields, target=target)
