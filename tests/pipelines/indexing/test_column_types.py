"""Guessed types of metadata columns widen to what holds all values; a column with values keeps its type."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from pipelines.config import Columns
from pipelines.indexing.build import build_index
from pipelines.monitor.summary import Summary
from pipelines.reading.columns import widest_type, with_types_of_index

EARLY = {"price": 3, "code": 123, "flag": True, "sizes": [1], "stated": 1}
LATE = {"price": 3.5, "code": "K1A", "flag": "maybe", "sizes": [1.5], "stated": 1.5}
TYPES = {"price": "double", "code": "string", "flag": "string", "sizes": "list<item: double>", "stated": "int64"}
ROWS = [{"id": f"d{i}", "text": f"Text {i}.", **(EARLY if i < 2 else LATE)} for i in range(4)]


def _build(folder: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Summary:
    """Writes the last two rows behind the rows that types are guessed from: a thousand repetitions of the first."""
    repeated = [*rows[:2], *[rows[0]] * 1000, *rows[2:]]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in repeated))
    return build_index(
        str(folder / "a.jsonl"),
        index=str(folder / "idx"),
        columns={"metadata": {name: "int64" if name == "stated" else None for name in names}},
        embedders=[{"outputs": ["dense"]}],
        ray={"progress": False},
    )


def _table(folder: Path) -> pa.Table:
    return lance.dataset(str(folder / "idx" / "documents.lance")).to_table()


@pytest.mark.ray
def test_types_widen_in_a_new_index_and_in_new_columns(ray_session: None, tmp_path: Path) -> None:
    assert _build(tmp_path, ROWS, ["price"]).skipped == ()
    assert str(_table(tmp_path).schema.field("price").type) == "double"
    added = _build(tmp_path, ROWS, list(EARLY))
    assert (added.new, added.changed, added.metadata_only) == (0, 0, 4)
    assert [(entry.kind, entry.count) for entry in added.skipped] == [("stated", 2)]
    table = _table(tmp_path)
    assert {name: str(table.schema.field(name).type) for name in EARLY} == TYPES
    rows = {row["doc_id"]: [row[name] for name in EARLY] for row in table.to_pylist()}
    assert rows["d0"] == [3.0, "123", "true", [1.0], 1]
    assert rows["d3"] == [3.5, "K1A", "maybe", [1.5], None]
    again = _build(tmp_path, ROWS, list(EARLY))
    assert (again.unchanged, again.metadata_only, again.new) == (4, 0, 0)


@pytest.mark.ray
def test_a_column_with_values_keeps_its_type_and_the_lost_value_is_counted(ray_session: None, tmp_path: Path) -> None:
    _build(tmp_path, ROWS[:2], ["price"])
    later = _build(tmp_path, ROWS, ["price"])
    (lost,) = later.skipped
    assert (lost.kind, lost.count, later.new) == ("price", 2, 2)
    assert lost.reason.startswith("not int64, stored as null")
    assert _table(tmp_path)["price"].to_pylist() == [3, 3, None, None]


TABLE = pa.schema([("a", pa.float64()), ("b", pa.string()), ("c", pa.int64()), ("d", pa.list_(pa.float64()))])


@pytest.mark.parametrize(
    ("name", "guess", "expected"),
    [
        ("a", pa.int64(), pa.float64()),
        ("b", pa.int64(), pa.string()),
        ("b", pa.list_(pa.int64()), pa.string()),
        ("c", pa.int32(), pa.int64()),
        ("c", pa.float64(), pa.float64()),
        ("c", pa.string(), pa.string()),
        ("new", pa.int64(), pa.int64()),
    ],
)
def test_the_type_of_the_index_is_taken_if_it_holds_the_guess(
    name: str, guess: pa.DataType, expected: pa.DataType
) -> None:
    field = pa.field(name, guess)
    assert with_types_of_index([field], Columns(metadata=(name,)), TABLE) == [pa.field(name, expected)]
    assert with_types_of_index([field], Columns(metadata=(name,)), None) == [field]


def test_a_stated_type_is_not_replaced_by_that_of_the_index() -> None:
    columns = Columns.model_validate({"metadata": {"a": "int64"}})
    field = pa.field("a", pa.int64())
    assert with_types_of_index([field], columns, TABLE) == [field]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["double"], "double"),
        (["double", "string"], "string"),
        (["list<double>", "list<string>"], "list<string>"),
        (["list<string>", "double"], "string"),
    ],
)
def test_the_widest_of_several_types(names: list[str], expected: str) -> None:
    assert widest_type(names) == expected
