"""Hashes of documents: the columnwise ones equal the definition, row by row."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from pipelines.store.hashes import HASH, digest, hash_content, hash_metadata
from tests.fuzz.values import ARROW_COLUMNS

COLUMNS = {str(type_): pa.array([*values, None, *values], type_) for type_, values in ARROW_COLUMNS}
COLUMNS |= {
    'a "name" ü': pa.array(["plain", None, ""]),
    "escaped": pa.array(["ü", 'a "quote"', "back\\slash\n\x7f"]),
    "odd numbers": pa.array([float("nan"), float("-inf"), -0.0]),
    "long numbers": pa.array([1e22, 1e-7, 0.1]),
    "short floats": pa.array([0.1, 1.0, None], pa.float32()),
}


def _by_row(columns: dict[str, pa.Array], rows: int) -> pa.Array:
    values = pa.table(columns).to_pylist() if columns else [{}] * rows
    present = [{name: value for name, value in row.items() if value is not None} for row in values]
    return pa.array([digest(json.dumps(row, default=str, sort_keys=True).encode()) for row in present], HASH)


@pytest.mark.parametrize("name", COLUMNS)
def test_metadata_of_each_type_is_hashed_as_json_of_the_row(name: str) -> None:
    column = COLUMNS[name]
    assert hash_metadata({name: column}, len(column)) == _by_row({name: column}, len(column))


@pytest.mark.parametrize("start", [0, 1])
def test_metadata_of_many_columns(start: int) -> None:
    columns = {name: column.slice(start, 2) for name, column in COLUMNS.items() if len(column) >= 3}
    expected = _by_row(columns, 2)
    assert hash_metadata(columns, 2) == expected
    assert hash_metadata(dict(reversed(columns.items())), 2) == expected
    chunked = {name: pa.chunked_array([c.slice(0, 1), c.slice(1)]) for name, c in columns.items()}
    assert hash_metadata(chunked, 2) == expected


def test_no_columns_and_no_rows() -> None:
    assert hash_metadata({}, 2) == _by_row({}, 2)
    assert len(hash_metadata({}, 0)) == len(hash_metadata({"a": pa.array([], pa.string())}, 0)) == 0


def test_content() -> None:
    assert hash_content(pa.array(["a", None, ""])) == pa.array([digest(b"a"), None, digest(b"")], HASH)
