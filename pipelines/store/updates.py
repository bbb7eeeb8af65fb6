"""Updates some columns of rows in place: only these columns are written, no row moves and no vector is read.

A fragment gets one new data file with the whole of the rewritten columns, so the cost is that of these columns in every
fragment with a changed row; row addresses stay, and with them postings and full text. Which files a fragment has after
that is decided by a commit under the lease (`commit_updates`), so a worker that dies leaves a file and no change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata

from pipelines.store.commit import CommitError, commit_once
from pipelines.store.datasets import open_version
from pipelines.store.lease import Lease
from pipelines.store.schema import Target
from pipelines.store.writer import conform_to_schema

ADDRESS = "_rowaddr"


@dataclass(frozen=True, slots=True)
class FragmentUpdate:
    """Holds a fragment before and after the update, as JSON, and the ids of the fields that differ."""

    fragment: int
    before: str
    after: str
    fields: tuple[int, ...]
    rows: int


def split_by_fragment(rows: pa.Table) -> dict[int, pa.Table]:
    """Groups rows with a column `_rowaddr` by the fragment that they belong to."""
    rows = rows.sort_by(ADDRESS)
    owners = (rows.column(ADDRESS).to_numpy() >> np.uint64(32)).astype(np.int64)
    ids, starts, counts = np.unique(owners, return_index=True, return_counts=True)
    return {i: rows.slice(a, n) for i, a, n in zip(ids.tolist(), starts.tolist(), counts.tolist(), strict=True)}


def update_metadata(target: Target, version: int, fragment: int, rows: pa.Table) -> FragmentUpdate | None:
    """Writes new metadata of some rows of a fragment; None if no row still is the document it was read for.

    rows: `_rowaddr`, `doc_id`, `content_hash`, `metadata_hash` and the metadata columns, as the input gives them. A row
    whose id or content differs from the table's is left out: its file was rewritten after the changes were detected.
    """
    dataset = open_version(target, version)
    stored = dataset.scanner(
        columns=["doc_id", "content_hash"], fragments=[dataset.get_fragment(fragment)], with_row_address=True
    ).to_table()
    found = stored.take(pc.index_in(rows.column(ADDRESS), value_set=stored.column(ADDRESS).combine_chunks()))
    same = [pc.equal(rows.column(name), found.column(name)) for name in ("doc_id", "content_hash")]
    rows = rows.filter(pc.fill_null(pc.and_(*same), False))
    names = [f for f in target.schema if f.name in rows.column_names and f.name in (*target.metadata, "metadata_hash")]
    addresses = rows.column(ADDRESS)
    values = conform_to_schema(rows, pa.schema(names)).append_column(ADDRESS, addresses)
    return rewrite_columns(dataset, fragment, values) if rows.num_rows else None


def rewrite_columns(dataset: lance.LanceDataset, fragment: int, values: pa.Table) -> FragmentUpdate:
    """Writes the columns of `values` for the rows at its `_rowaddr`; the other rows keep their values."""
    before = dataset.get_fragment(fragment)
    after, fields = before.update_columns(values, left_on=ADDRESS, right_on=ADDRESS)
    return FragmentUpdate(fragment, as_json(before.metadata), as_json(after), tuple(fields), values.num_rows)


def as_json(metadata: FragmentMetadata) -> str:
    """Returns a fragment's metadata as JSON, equal for equal fragments."""
    return json.dumps(metadata.to_json())


def commit_updates(target: Target, lease: Lease, updates: Sequence[FragmentUpdate], name: str) -> int:
    """Commits updates of distinct fragments together; returns the table's version. `name` is unique within the run.

    CommitError if a fragment is not what it was when its update was written.
    """

    def operation(dataset: lance.LanceDataset) -> Any:
        for update in updates:
            fragment = dataset.get_fragment(update.fragment)
            if fragment is None or as_json(fragment.metadata) != update.before:
                raise CommitError(
                    f"{dataset.uri}: fragment {update.fragment} has changed: the table was compacted or edited by "
                    "another program while the job ran; start the job again"
                )
        return lance.LanceOperation.Update(
            updated_fragments=[FragmentMetadata.from_json(update.after) for update in updates],
            fields_modified=sorted({field for update in updates for field in update.fields}),
            update_mode="rewrite_columns",
        )

    properties = {"job": target.job, "run": target.run, "seq": name}
    committed = commit_once(target.documents_uri, target.storage_options, operation, properties, lease.check)
    return int(committed.version)
