"""Updates the search indexes of a table after a job has written to it; cheap if nothing is new."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.config import IndexConfig
from pipelines.indexing.session import RaySession
from pipelines.search_indexes.document_ids import update_document_id_index
from pipelines.search_indexes.scalar_indexes import update_scalar_indexes
from pipelines.store.schema import Target
from pipelines.store.table import open_table

TEXT = "text"


def update_search_indexes(target: Target, index: IndexConfig, session: RaySession) -> None:
    """Updates the full-text index, if the config has one, indexes on ids and filters, and document frequencies."""
    update_document_id_index(target.uri, target.table, target.storage_options)
    if index.full_text and not covers_text(target):
        from pipelines.search_indexes.full_text import update_full_text  # here: half of a driver's start

        update_full_text(target)
    update_scalar_indexes(target.uri, (), target.table, target.storage_options)
    session.call(count_document_frequencies, index.uri, index.table, target.storage_options)


def covers_text(target: Target) -> bool:
    """Returns whether the full-text index covers all rows."""
    snapshot = open_table(target.uri, target.table, target.storage_options)
    found = snapshot.indexes().get(TEXT)
    return found is not None and not snapshot.index_statistics(found.name)["num_unindexed_rows"]


def count_document_frequencies(uri: str, table: str, storage_options: Mapping[str, str]) -> None:
    """Counts on a worker, because the tokenizer's files are there."""
    from pipelines.search_indexes.document_frequencies import update_document_frequencies

    update_document_frequencies(uri, table, storage_options)
