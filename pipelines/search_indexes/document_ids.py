"""Keeps a BTREE index on `doc_id`, by which upserts, deletes and `tridex show` find a document's rows.

Without it they scan the ids of the whole table: a replacement took 1.7 s at 10,000 fragments. It is built once a table
is large enough for that to matter, brought up to date at the end of a build when a tenth of the rows is missing, and
by `tridex optimize`. Rows that it does not cover are scanned, so what is found is complete at any time.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.store.table import Snapshot, open_table

COLUMN, NAME = "doc_id", "doc_id_idx"
MIN_FRAGMENTS, MIN_ROWS = 32, 100_000
"""A table below both is scanned in milliseconds."""
STALE_SHARE = 0.1


def update_document_id_index(
    uri: str, table: str = "documents", storage_options: Mapping[str, str] | None = None, *, stale: float = STALE_SHARE
) -> bool:
    """Builds the index, or adds missing rows once they are more than the share `stale`; returns whether it did."""
    snapshot = open_table(uri, table, storage_options)
    found = snapshot.indexes().get(COLUMN)
    if found is None:
        if is_worthwhile(snapshot):
            snapshot.dataset.create_scalar_index(COLUMN, "BTREE", name=NAME)
        return is_worthwhile(snapshot)
    missing = snapshot.index_statistics(found.name)["num_unindexed_rows"]
    if missing <= stale * snapshot.dataset.count_rows():
        return False
    snapshot.dataset.optimize.optimize_indices(index_names=[found.name])
    return True


def is_worthwhile(snapshot: Snapshot) -> bool:
    """Returns whether a scan of the ids would take longer than an index costs."""
    dataset = snapshot.dataset
    return len(dataset.get_fragments()) >= MIN_FRAGMENTS or dataset.count_rows() >= MIN_ROWS
