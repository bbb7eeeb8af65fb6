"""Data that a program holds is read as files are: the same columns, the same judgement of rows, nothing left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.config import Columns, ConfigError, IndexConfig, InputConfig
from pipelines.reading import memory
from pipelines.reading.memory import SPOOL, _owner, remove_left_spools, spooled
from pipelines.reading.units import metadata_fields, plan_units, read_unit

ROWS = [{"id": f"d{i}", "body": f"Text {i}", "year": 1990 + i} for i in range(5)]
COLUMNS = Columns(text="body", metadata=("year",))


def _read(data: Any, folder: Path, columns: Columns = COLUMNS) -> list[dict[str, Any]]:
    index = IndexConfig(uri=str(folder / "idx"))
    with spooled(data, InputConfig(paths=("memory",), columns=columns), index) as config:
        units = plan_units(config)
        fields = metadata_fields(config, units)
        rows = [row for unit in units for t in read_unit(unit, config, 100, fields) for row in t.to_pylist()]
    assert list(folder.iterdir()) == []  # the spool is gone
    return rows


def _polars() -> Any:
    return pytest.importorskip("polars").DataFrame(ROWS)


def _lazy() -> Any:
    return _polars().lazy()


def _datasets() -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def _iterable_dataset() -> Any:
    return _datasets().to_iterable_dataset()


KINDS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas-index": lambda: pd.DataFrame(ROWS, index=list("abcde")),
    "table": lambda: pa.Table.from_pylist(ROWS),
    "batch": lambda: pa.RecordBatch.from_pylist(ROWS),
    "reader": lambda: pa.Table.from_pylist(ROWS).to_reader(max_chunksize=2),
    "list": lambda: ROWS,
    "generator": lambda: (row for row in ROWS),
    "polars": _polars,
    "polars-lazy": _lazy,
    "datasets": _datasets,
    "datasets-iterable": _iterable_dataset,
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = _read(KINDS[kind](), tmp_path)
    assert [(r["doc_id"], r["text"], r["year"], r["error"]) for r in rows] == [
        (f"d{i}", f"Text {i}", 1990 + i, None) for i in range(5)
    ]
    assert {r["source"] for r in rows} == {"memory/rows-000000000000.parquet"}
    assert [r["position"] for r in rows] == list(range(5))


def test_the_same_rows_have_the_same_hashes_every_time(tmp_path: Path) -> None:
    first, second = (_read(data, tmp_path) for data in (ROWS, pd.DataFrame(ROWS)))
    assert [r["content_hash"] for r in first] == [r["content_hash"] for r in second]


@pytest.mark.parametrize("frame", [False, True])
def test_bad_rows_are_judged_as_in_files(tmp_path: Path, frame: bool) -> None:
    bad = [None, 5, ["x"], "\ud800", " ", b"\xff", "good"]
    rows: Any = [{"id": i, "body": text} for i, text in enumerate(bad)]
    found = _read(pd.DataFrame(rows) if frame else rows, tmp_path, Columns(text="body"))
    errors = [None if r["error"] is None else r["error"].partition(":")[0] for r in found]
    assert errors[0] == "text is null or missing"
    assert errors[1] == "text is an integer, a string is needed"
    assert errors[2] == "text is a list, a string is needed"
    assert errors[3] == "text is not valid Unicode"
    assert errors[4] == "text is only whitespace"
    assert errors[5] == "text is not valid Unicode"
    assert (errors[6], found[6]["doc_id"]) == (None, "6")


def test_types_that_change_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BATCH_ROWS", 2)
    years = [1, 2, 3.5, 4, None, None, 7]
    found = _read([{"id": str(i), "body": "x", "year": year} for i, year in enumerate(years)], tmp_path)
    assert [r["year"] for r in found] == [1, 2, 3.5, 4, None, None, 7]
    assert len({r["source"] for r in found}) == 4


def test_missing_values_of_pandas(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "body": ["x", np.nan], "year": pd.array([1, pd.NA], dtype="Int64")})
    found = _read(frame, tmp_path)
    assert [(r["year"], r["error"]) for r in found] == [(1, None), (None, "text is null or missing")]


@pytest.mark.parametrize("data", [5, b"x", {"id": "a"}, None])
def test_what_holds_no_rows(tmp_path: Path, data: Any) -> None:
    with pytest.raises(TypeError, match="build_index takes a config, a frame, a table or rows"):
        _read(data, tmp_path)


def test_wrong_rows_and_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 1: is a str, a mapping of columns is needed"):
        _read([ROWS[0], "x"], tmp_path)
    with pytest.raises(ConfigError, match="the data has no rows"):
        _read([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def _spool(folder: Path, process: int) -> Path:
    left = folder / f"idx{SPOOL}{_owner(process)}-0123abcd"
    left.mkdir()
    (left / "rows-000000000000.parquet").touch()
    return left


def test_what_a_killed_process_left_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = subprocess.Popen(["sleep", "60"])
    of_ended, of_ours = _spool(tmp_path, ended.pid), _spool(tmp_path, os.getpid())
    (tmp_path / f"idx{SPOOL}notes").mkdir()
    ended.kill()
    ended.wait()
    remove_left_spools(IndexConfig(uri=str(tmp_path / "idx")))
    assert (of_ended.exists(), of_ours.exists(), (tmp_path / f"idx{SPOOL}notes").exists()) == (False, True, True)
    assert caplog.messages == [f"removed {of_ended}, which a killed run had left"]


def test_what_another_machine_left_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left = tmp_path / f"idx{SPOOL}1-aaaaaaaa-bbbbbbbb-0123abcd"
    left.mkdir()
    remove_left_spools(IndexConfig(uri=str(tmp_path / "idx")))
    assert left.exists()
    assert caplog.messages == [f"{left} is of a run on another machine; if that has ended, remove it"]


def test_an_index_in_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    remove_left_spools(IndexConfig(uri=str(tmp_path / "new" / "idx")))
