"""Builds and updates Lance's full-text index over the text column, for the bm25 channel.

English stemming and stop words are on, because the lexical channel exists to match words, not word forms. Positions are
off: they double the index and only phrase queries need them. Rows that the index does not cover yet are scanned by
Lance, so results are complete at any time; indexing them is a matter of speed.
"""

from __future__ import annotations

from typing import Any

import lancedb
from lancedb.index import FTS

from pipelines.store.schema import Target

COLUMN = "text"
NAME = "text_idx"
MEMORY = 2048
"""MiB of postings that a build may hold, whatever the machine: Lance's own default is 2 GiB for each core."""


def full_text_config() -> FTS:
    limit: dict[str, Any] = {"memory_limit": MEMORY} if "memory_limit" in FTS.__dataclass_fields__ else {}
    return FTS(
        stem=True, remove_stop_words=True, with_position=False, base_tokenizer="simple", language="English", **limit
    )


def update_full_text(target: Target) -> None:
    """Builds the index if there is none, and adds the rows that it does not cover yet."""
    table = lancedb.connect(target.uri, storage_options=dict(target.storage_options)).open_table(target.table)
    if table.count_rows() == 0:
        return
    if NAME not in {index.name for index in table.list_indices()}:
        table.create_index(COLUMN, config=full_text_config(), name=NAME)
    else:
        stats = table.index_stats(NAME)
        if stats is not None and stats.num_unindexed_rows:
            table.to_lance().optimize.optimize_indices(index_names=[NAME])
