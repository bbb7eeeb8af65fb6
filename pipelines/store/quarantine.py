"""Reads the quarantine: the table of input rows that failed, each with its reason; a complete run renews it.

Rows are appended while a job runs and those of earlier runs are dropped when it has ended well, so a job that is killed
leaves both. Nothing is looked up to replace a row in place: that would be a join for rows that are rare by design.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from pipelines.store.datasets import open_dataset
from pipelines.store.schema import QUARANTINE, Target, table_uri
from pipelines.store.table import sql_literal


def failed_rows(uri: str, storage_options: Mapping[str, str] | None = None) -> dict[str, frozenset[int]]:
    """Maps each source to the positions of its rows in quarantine, for `selection.select(..., only=)`.

    Position -1 stands for a file that could not be read to its end: all of its rows are wanted.
    """
    dataset = open_dataset(table_uri(uri, QUARANTINE), storage_options or {})
    if dataset is None:
        return {}
    rows = dataset.to_table(columns=["source", "position"], filter="position IS NOT NULL")
    grouped = rows.group_by("source").aggregate([("position", "distinct")]).to_pylist()
    return {row["source"]: frozenset(row["position_distinct"]) for row in grouped if row["source"] is not None}


def count_reasons(uri: str, storage_options: Mapping[str, str] | None = None, limit: int = 10) -> list[dict[str, Any]]:
    """Counts errors: `{error, rows, source, position}` with one row as an example, most frequent first.

    Duplicates count as one error, whatever they are duplicates of.
    """
    dataset = open_dataset(table_uri(uri, QUARANTINE), storage_options or {})
    if dataset is None:
        return []
    rows = dataset.to_table(columns=["error", "source", "position"])
    kind = pc.replace_substring_regex(rows.column("error"), "^(duplicate id), first seen in .*", r"\1")
    counted = rows.set_column(0, "error", kind).group_by("error", use_threads=False)
    found = counted.aggregate([("error", "count"), ("source", "first"), ("position", "first")]).to_pylist()
    found.sort(key=lambda row: -int(row["error_count"]))
    return [
        {"error": r["error"], "rows": r["error_count"], "source": r["source_first"], "position": r["position_first"]}
        for r in found[:limit]
    ]


def drop_old_quarantine(target: Target) -> None:
    """Drops the rows of earlier runs after a complete run, which tried them again or no longer met them."""
    dataset = open_dataset(target.quarantine_uri, target.storage_options)
    if dataset is not None:
        dataset.delete(f"run IS NULL OR run <> {sql_literal(target.run)}")
