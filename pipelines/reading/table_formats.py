"""Recognises the folders of Delta Lake, Iceberg and Hudi tables, whose data files alone are not the table.

Their Parquet files keep deleted and replaced rows, which a plain reader would return. Such a folder is refused, and
the refusal names readers that read the table's log; what they return is input like any other frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class TableFormat(NamedTuple):
    """Declares a table format: a file that all its tables have, below their folder, and how to read one."""

    name: str
    mark: re.Pattern[str]
    readers: str
    """With the table's path for `{0}`."""


TABLE_FORMATS = (
    TableFormat(
        "Delta Lake",
        re.compile(r"(^|/)_delta_log(/|$)"),
        "ray.data.read_delta({0!r}) or deltalake.DeltaTable({0!r}).to_pyarrow_table()",
    ),
    TableFormat(
        "Iceberg",
        re.compile(r"(^|/)metadata/[^/]*\.metadata\.json$"),
        "ray.data.read_iceberg(table_identifier=...) or pyiceberg's Table.scan().to_arrow_batch_reader()",
    ),
    TableFormat("Hudi", re.compile(r"(^|/)\.hoodie(/|$)"), "ray.data.read_hudi({0!r})"),
)


def find_tables(root: str, paths: Iterable[str]) -> dict[str, TableFormat]:
    """Returns the folders of the tables that paths below `root` belong to, with their formats."""
    prefix = f"{root.rstrip('/')}/"
    tables: dict[str, TableFormat] = {}
    for path in paths:
        relative = path.removeprefix(prefix)
        for known in TABLE_FORMATS:
            if (found := known.mark.search(relative)) is not None:
                tables.setdefault(f"{prefix}{relative[: found.start()]}".rstrip("/"), known)
    return tables


def find_table_above(folder: str) -> tuple[str, TableFormat] | None:
    """Returns the table that a local folder, such as one partition of it, lies in."""
    for parent in Path(folder).parents:
        try:
            marks = [mark for mark in (parent / "_delta_log", parent / ".hoodie") if mark.is_dir()]
            marks += (parent / "metadata").glob("*.metadata.json")
        except OSError:  # a folder that this user may not enter
            continue
        if marks:
            return str(parent), find_tables(str(parent), map(str, marks))[str(parent)]
    return None


def refusal_of_table(path: str, format_: TableFormat) -> str:
    """Says why a table's folder is not read, and how the table is."""
    readers = format_.readers.format(path)
    return (
        f"{path!r} is a table of {format_.name}, whose files hold deleted rows too; pass the table itself, "
        f"build_index({readers.partition(' or ')[0]}, index=...){_other(readers)}, or name the files one by one"
    )


def _other(readers: str) -> str:
    other = readers.partition(" or ")[2]
    return f" or what {other} returns" if other else ""
