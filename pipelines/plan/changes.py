"""Compares the input with an existing index: what a build would embed, update, leave and remove.

An input that one process reads in seconds is compared whole, by the rule and code of a build. Of a larger one the
sample's documents are looked up in the table and scaled; what is gone from the input is unknown then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lance
import pyarrow as pa

from actors.codecs.parameters import from_metadata
from pipelines.changes.detect import (
    QUICK_LOOK_BYTES,
    SCAN_BATCH_ROWS,
    detect_changes,
    to_input_rows,
    to_table_rows,
)
from pipelines.changes.diff import diff_partition
from pipelines.changes.tasks import InProcess
from pipelines.config import BuildConfig, plain_options
from pipelines.plan.sample import Sample
from pipelines.reading.images import stored_fields
from pipelines.reading.stored_columns import fields_of_job
from pipelines.reading.units import Unit, read_unit
from pipelines.store.datasets import open_dataset
from pipelines.store.documents import COMPARED, find_rows
from pipelines.store.evolve import check_columns
from pipelines.store.schema import Target, documents_schema, identity_of


@dataclass(frozen=True, slots=True)
class PlannedChanges:
    """Counts the input's documents by what a build would do with them."""

    new: int
    changed: int
    metadata_only: int
    same: int
    gone: int | None
    """Documents of the index that are not in the input; None: not counted."""
    exact: bool

    @property
    def embedded_share(self) -> float:
        """Returns the share of the input's documents that would be embedded."""
        return (self.new + self.changed) / max(1, self.new + self.changed + self.metadata_only + self.same)

    def text(self) -> str:
        about = "" if self.exact else "about "
        gone = "" if self.gone is None else f", {self.gone:,} gone from the input"
        return (
            f"{about}{self.new:,} new, {self.changed:,} changed, {self.metadata_only:,} with new metadata only, "
            f"{self.same:,} the same{gone}"
        )


def plan_changes(
    config: BuildConfig, units: Sequence[Unit], described: Mapping[str, Mapping[str, Any]], sample: Sample
) -> PlannedChanges | None:
    """Compares the input with the index; None if there is none, or an older format, which a build upgrades first.

    ConfigError where the build would be refused: other settings, or a metadata column that the job lacks.
    """
    target = _target(config, units, described)
    dataset = open_dataset(target.documents_uri, target.storage_options)
    if dataset is None:
        return None
    check_columns(target, config.job.drop_columns)
    if "metadata_hash" not in dataset.schema.names:
        return None
    small = sum(unit.size for unit in units) <= QUICK_LOOK_BYTES
    return _compare_all(config, units, dataset) if small else _compare_sample(sample, dataset)


def _target(config: BuildConfig, units: Sequence[Unit], described: Mapping[str, Mapping[str, Any]]) -> Target:
    options = plain_options(config.index.storage_options)
    target = Target(config.index.uri, pa.schema([]), config.index.table, options)
    dataset = open_dataset(target.documents_uri, options)
    metadata = None if dataset is None else dataset.schema.metadata
    found = {e.name: from_metadata(metadata, e.name) for e in config.embedders}
    parameters = {name: each for name, each in found.items() if each is not None}
    identity = identity_of(config, described, parameters)
    fields = stored_fields(config.input, fields_of_job(config, units))
    schema = documents_schema(identity, fields, parameters)
    return Target(config.index.uri, schema, config.index.table, options)


def _compare_all(config: BuildConfig, units: Sequence[Unit], dataset: lance.LanceDataset) -> PlannedChanges:
    fields = fields_of_job(config, units)
    read = partial(read_unit, config=config.input, batch_rows=SCAN_BATCH_ROWS, fields=fields)
    found = detect_changes(units, read, lambda: dataset, run=InProcess())
    return PlannedChanges(found.new, found.changed, found.metadata_only, found.same, found.gone, exact=True)


def _compare_sample(sample: Sample, dataset: lance.LanceDataset) -> PlannedChanges:
    rows = to_input_rows(sample.documents, 0, 0)
    ids = sample.documents.column("doc_id").drop_null().to_pylist()
    found = diff_partition(rows, to_table_rows(find_rows(dataset, ids, COMPARED).to_batches()))
    scale = sample.rows / max(1, len(sample.documents))
    new, changed, metadata, same = (
        round(scale * n) for n in (found.new, found.changed, found.metadata_only, len(found.done) - found.metadata_only)
    )
    return PlannedChanges(new, changed, metadata, same, None, exact=False)
