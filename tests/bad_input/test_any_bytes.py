"""Whatever bytes a shard holds, reading it gives rows or error rows, never an exception."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.config import Columns, ConfigError, InputConfig
from pipelines.reading.units import metadata_fields, plan_units, read_schema, read_unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
ROWS = st.lists(st.fixed_dictionaries({"id": JSON, "text": JSON}, optional={"title": JSON, "extra": JSON}), max_size=8)


def _read(name: str, content: bytes, metadata: tuple[str, ...] = ()) -> list[dict[str, Any]] | None:
    """All rows; None where the request itself is refused."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        config = InputConfig(paths=(folder,), columns=Columns(metadata=metadata), max_text_bytes=1000)
        try:
            units = plan_units(config)
            fields = metadata_fields(config, units)
        except ConfigError:
            return None
        tables = [table for unit in units for table in read_unit(unit, config, 3, fields)]
        assert all(table.schema == read_schema(fields) for table in tables)
        return [row for table in tables for row in table.to_pylist()]


def _assert_sound(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["error"] is None:
            assert row["doc_id"].strip()
            assert row["text"].strip()
            assert len(row["content_hash"]) == 16
        else:
            assert row["text"] is None
            assert row["content_hash"] is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz", "a.csv.gz", "a.jsonl.zst", "a.parquet"])
@FUZZ
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes(name: str, content: bytes) -> None:
    _assert_sound(_read(name, content) or [])


@FUZZ
@given(text=st.text(alphabet='ab,"\n\r\t\0é', max_size=200))
def test_arbitrary_csv(text: str) -> None:
    _assert_sound(_read("a.csv", b"id,text\n" + text.encode()) or [])


@FUZZ
@given(rows=ROWS)
def test_every_json_row_comes_out_once(rows: list[dict[str, Any]]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = _read("a.jsonl", content, ("extra",))
    if found is None:
        assert not any("extra" in row for row in rows)
        return
    assert [row["position"] for row in found] == list(range(len(rows)))
    _assert_sound(found)


@FUZZ
@given(rows=ROWS, data=st.data())
def test_a_cut_gzip_gives_a_prefix_and_says_so(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    cut = data.draw(st.integers(1, len(content) - 1))
    found = _read("a.jsonl.gz", content[:cut]) or []
    _assert_sound(found)
    assert found
    assert found[-1]["error"].startswith("cannot be read: ")


@FUZZ
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_parquet_file_with_wrong_bytes(flips: list[tuple[float, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        table = pa.table({"id": [str(i) for i in range(40)], "text": [f"text {i}" for i in range(40)]})
        pq.write_table(table, path, row_group_size=10)
        content = bytearray(path.read_bytes())
    for place, value in flips:
        content[int(place * len(content))] = value
    _assert_sound(_read("a.parquet", bytes(content)) or [])
