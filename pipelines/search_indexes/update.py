"""Updates every search index in one call: all that makes searches fast or sharp and can be rebuilt from the table.

A search is complete and exact in its scores without any of this. Compaction moves rows, so run it after
`pipelines.store.maintain.optimize`, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.search_indexes.document_frequencies import update_document_frequencies
from pipelines.search_indexes.document_ids import update_document_id_index
from pipelines.search_indexes.drop import remove_dropped_tables
from pipelines.search_indexes.postings import PostingsUpdate, update_postings
from pipelines.search_indexes.scalar_indexes import update_scalar_indexes
from pipelines.search_indexes.vectors import CreateIndex, Kind, create_here, update_vector_indexes
from pipelines.store.table import open_table


@dataclass(frozen=True, slots=True)
class IndexesUpdate:
    """Reports, by embedder, vector index kind, postings and rows with counted tokens; and filter columns indexed."""

    vectors: Mapping[str, str | None]
    postings: Mapping[str, PostingsUpdate]
    counted_rows: Mapping[str, int]
    filter_columns: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """Returns one line for each index that exists."""
        lines = [f"{name}: vector index {kind or 'none, the table is scanned'}" for name, kind in self.vectors.items()]
        lines += [f"{name}: {p.postings:,} postings in {p.segments} segments" for name, p in self.postings.items()]
        lines += [f"{name}: tokens counted in {rows:,} rows" for name, rows in self.counted_rows.items()]
        return "\n".join([*lines, *(f"{column}: filter index built" for column in self.filter_columns)])


def update_indexes(
    uri: str,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    *,
    vectors: Kind = "auto",
    partitions: int | None = None,
    filter_columns: Sequence[str] = (),
    create: CreateIndex = create_here,
) -> IndexesUpdate:
    """Updates vector indexes, sparse postings, token counts, and scalar indexes on filter columns.

    create: who builds a vector index; `pipelines.indexing.distributed_vectors.create_on_ray` has a cluster do it.
    """
    update_document_id_index(uri, table, storage_options, stale=0)
    remove_dropped_tables(open_table(uri, table, storage_options))
    return IndexesUpdate(
        update_vector_indexes(uri, table, storage_options, kind=vectors, partitions=partitions, create=create),
        update_postings(uri, table, storage_options),
        update_document_frequencies(uri, table, storage_options),
        update_scalar_indexes(uri, filter_columns, table, storage_options),
    )
