"""Keeps the table of input that is left out besides the quarantine: files without a reader, values of another type.

Counts by kind with an example each, replaced by every complete scan of the input, so it describes the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import lance
import pyarrow as pa

from pipelines.store.datasets import open_dataset
from pipelines.store.schema import SKIPPED, Target, table_uri

SKIPPED_SCHEMA = pa.schema(
    [
        ("what", pa.string()),
        ("kind", pa.string()),
        ("reason", pa.string()),
        ("count", pa.int64()),
        ("example", pa.string()),
    ]
)


MISFITS = "_misfits"
"""Column of a block of documents: names of the metadata columns whose value did not fit the column's type."""
MISFIT_NAMES = pa.list_(pa.string())
_WIDER = "\0"
"""Stands between a name and the type that would hold the values of its block, in the first entry of a block."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Counts files of one suffix, or values of one metadata column, that are not in the index."""

    what: Literal["files", "values"]
    kind: str
    """A suffix, or the name of a column."""
    reason: str
    count: int
    example: str = ""

    def __str__(self) -> str:
        name = f"{self.count:,} {self.kind}" if self.what == "files" else f"{self.count:,} values of {self.kind!r}"
        return f"{name}: {self.reason}{f' ({self.example})' if self.example else ''}"


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Formats one line for each, under a heading as the summaries have them."""
    return [f"{'skipped' if i == 0 else '':<11} {entry}" for i, entry in enumerate(skipped)]


def write_skipped(target: Target, skipped: Sequence[Skipped]) -> None:
    """Replaces the index's record of what it leaves out."""
    uri, options = table_uri(target.uri, SKIPPED), dict(target.storage_options)
    if not skipped and open_dataset(uri, options) is None:
        return
    rows: list[dict[str, Any]] = [asdict(entry) for entry in skipped]
    lance.write_dataset(
        pa.Table.from_pylist(rows, schema=SKIPPED_SCHEMA), uri, mode="overwrite", storage_options=options
    )


def read_skipped(uri: str, storage_options: Mapping[str, str] | None = None) -> tuple[Skipped, ...]:
    """Reads what the index leaves out, the most frequent kind first."""
    dataset = open_dataset(table_uri(uri, SKIPPED), storage_options or {})
    return () if dataset is None else tuple(Skipped(**row) for row in dataset.to_table().to_pylist())


def misfit_names(table: pa.Table) -> list[str]:
    """Returns the metadata column of each value in a block of documents that did not fit its type."""
    if MISFITS not in table.column_names or table[MISFITS].null_count == len(table):
        return []
    return [entry.partition(_WIDER)[0] for entry in _misfit_entries(table)]


def misfit_types(table: pa.Table) -> dict[str, str]:
    """Returns, for each metadata column with misfits, the name of a type that would hold all values of the block."""
    if MISFITS not in table.column_names or table[MISFITS].null_count == len(table):
        return {}
    pairs = (entry.partition(_WIDER) for entry in _misfit_entries(table))
    return {name: type_ for name, mark, type_ in pairs if mark}


def _misfit_entries(table: pa.Table) -> list[str]:
    entries: list[str] = table[MISFITS].combine_chunks().flatten().to_pylist()
    return entries


def misfit_entry(name: str, type_: str) -> str:
    """Returns the entry of a misfit that names the type, too."""
    return f"{name}{_WIDER}{type_}"
