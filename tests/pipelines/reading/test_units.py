"""Units and documents of every format, from files that are well."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines.config import Columns, InputConfig
from pipelines.reading.units import Unit, metadata_fields, plan_units, read_schema, read_unit

ROWS = [{"id": f"d{i}", "text": f"text number {i}", "year": 2000 + i} for i in range(10)]


def _input(*paths: Path | str, **rest: Any) -> InputConfig:
    return InputConfig(paths=tuple(map(str, paths)), **rest)


def _read(config: InputConfig, batch_rows: int = 4) -> pa.Table:
    units = plan_units(config)
    fields = metadata_fields(config, units)
    tables = [table for unit in units for table in read_unit(unit, config, batch_rows, fields)]
    return pa.concat_tables(tables) if tables else read_schema(fields).empty_table()


def _jsonl(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return "\n".join(lines).encode()


def _write(folder: Path, name: str) -> Path:
    path = folder / name
    table = pa.Table.from_pylist(ROWS)
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=3)
    elif name.endswith(".lance"):
        lance.write_dataset(table, path, max_rows_per_file=4)
    else:
        data = _csv(ROWS) if ".csv" in name else _jsonl(ROWS)
        packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
        path.write_bytes(packed(data))
    return path


NAMES = ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.gz", "a.lance"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, name)
    table = _read(_input(path, columns=Columns(metadata=("year",))))
    assert table["error"].null_count == 10
    assert table["doc_id"].to_pylist() == [row["id"] for row in ROWS]
    assert table["text"].to_pylist() == [row["text"] for row in ROWS]
    assert table["year"].to_pylist() == [row["year"] for row in ROWS]
    assert table.schema.field("year").type == pa.int64()
    header = ".csv" in name  # positions are lines
    assert table["position"].to_pylist() == list(range(header, 10 + header))
    assert set(table["source"].to_pylist()) == {str(path)}


@pytest.mark.parametrize("name", NAMES)
def test_content_hashes_do_not_depend_on_the_format(tmp_path: Path, name: str) -> None:
    columns = Columns(metadata=("year",))
    expected = _read(_input(_write(tmp_path, "b.parquet"), columns=columns))["content_hash"].to_pylist()
    assert _read(_input(_write(tmp_path, name), columns=columns))["content_hash"].to_pylist() == expected


def test_batches_are_bounded_and_carry_the_read_schema(tmp_path: Path) -> None:
    config = _input(_write(tmp_path, "a.jsonl"))
    (unit,) = plan_units(config)
    tables = list(read_unit(unit, config, 4))
    assert [len(t) for t in tables] == [4, 4, 2]
    assert all(t.schema == read_schema([]) for t in tables)


def test_large_values_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.reading.formats.base.BATCH_BYTES", 1000)
    monkeypatch.setattr("pipelines.reading.formats.parquet.BATCH_BYTES", 1000)
    rows = [{"id": str(i), "text": f"{i} " + "x" * 900} for i in range(6)]
    (tmp_path / "a.jsonl").write_bytes(_jsonl(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", use_dictionary=False, compression="none")
    for name in ("a.jsonl", "a.parquet"):
        config = _input(tmp_path / name)
        assert max(len(t) for unit in plan_units(config) for t in read_unit(unit, config, 1000)) <= 2


def _units(monkeypatch: pytest.MonkeyPatch, size: int, config: InputConfig) -> list[Unit]:
    monkeypatch.setattr("pipelines.reading.units.UNIT_BYTES", size)
    monkeypatch.setattr("pipelines.reading.units.MIN_BYTES", 1)
    monkeypatch.setattr("pipelines.reading.formats.jsonl.MIN_PART_BYTES", 1)
    return plan_units(config)


def test_a_parquet_file_is_cut_at_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = _units(monkeypatch, 1, _input(_write(tmp_path, "a.parquet")))
    assert [(u.part.start, u.part.stop, u.part.first_row, u.rows) for u in units] == [
        (0, 1, 0, 3),
        (1, 2, 3, 3),
        (2, 3, 6, 3),
        (3, 4, 9, 1),
    ]


@pytest.mark.parametrize("size", [7, 20, 64, 100])
def test_a_jsonl_file_is_cut_at_line_ends_and_nothing_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    rows = [{"id": str(i), "text": "é" * (i % 13) + " x"} for i in range(50)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl(rows)[:-1])
    config = _input(path)
    units = _units(monkeypatch, size, config)
    assert len(units) > 5
    tables = [pa.concat_tables(read_unit(unit, config, 100)) for unit in units]
    table = pa.concat_tables(tables)
    assert table["doc_id"].to_pylist() == [row["id"] for row in rows]
    pairs = set(zip(table["source"].to_pylist(), table["position"].to_pylist(), strict=True))
    assert len(pairs) == 50
    assert all(s == str(path) or s.startswith(f"{path}@") for s, _ in pairs)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_small_files_share_a_unit_and_keep_their_own_positions(tmp_path: Path, suffix: str) -> None:
    for i in range(5):
        rows = [{"id": f"{i}-{k}", "text": "x"} for k in range(2)]
        path = tmp_path / f"{i}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_bytes(_jsonl(rows) if suffix == "jsonl" else _csv(rows))
    config = _input(tmp_path)
    units = plan_units(config)
    assert len(units) == 1
    (unit,) = units
    assert len(unit.paths) == 5
    table = pa.concat_tables(read_unit(unit, config, 100))
    assert table["position"].to_pylist() == ([1, 2] if suffix == "csv" else [0, 1]) * 5
    assert len(set(table["source"].to_pylist())) == 5


def test_units_are_the_same_each_time_and_change_with_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.parquet")
    config = _input(path)
    first = plan_units(config)
    assert plan_units(config) == first
    pq.write_table(pa.Table.from_pylist(ROWS[:5]), path)
    assert plan_units(config)[0].versions != first[0].versions


def test_the_known_id_names_are_found_and_integers_written_in_decimal(tmp_path: Path) -> None:
    for name in ("_id", "doc_id"):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(_jsonl([{name: 7, "text": "x"}, {name: "a", "text": "y"}]))
        assert _read(_input(path))["doc_id"].to_pylist() == ["7", "a"]


def test_missing_ids_depend_on_the_content_alone(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}"} for i in range(4)]
    (tmp_path / "a.jsonl").write_bytes(_jsonl(rows))
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "b.parquet")
    a = _read(_input(tmp_path / "a.jsonl"))["doc_id"].to_pylist()
    assert len(set(a)) == 4
    assert {len(i) for i in a} == {32}
    assert _read(_input(tmp_path / "b.parquet"))["doc_id"].to_pylist() == a[::-1]


def test_title_and_text_are_joined_where_there_is_a_title(tmp_path: Path) -> None:
    rows = [{"id": "1", "title": "T", "text": "x"}, {"id": "2", "title": None, "text": "y"}, {"id": "3", "text": "z"}]
    (tmp_path / "a.jsonl").write_bytes(_jsonl([*rows, {"id": "4", "title": " ", "text": "w"}]))
    assert _read(_input(tmp_path / "a.jsonl"))["text"].to_pylist() == ["T x", "y", "z", "w"]
    marked = _input(tmp_path / "a.jsonl", template="# {title}\n{text}")
    assert _read(marked)["text"].to_pylist()[0] == "# T\nx"


def test_mapped_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": [1, 2], "body": ["a", "b"], "head": ["h", "i"]}), tmp_path / "a.parquet")
    config = _input(tmp_path / "a.parquet", columns=Columns(id="key", text="body", title="head", metadata=("head",)))
    table = _read(config)
    assert table["doc_id"].to_pylist() == ["1", "2"]
    assert table["text"].to_pylist() == ["h a", "i b"]
    assert table["head"].to_pylist() == ["h", "i"]


def test_text_files_are_documents_named_by_their_path(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "guide").mkdir(parents=True)
    (folder / "a.md").write_bytes("\ufeff# Título".encode())
    (folder / "guide" / "b.txt").write_text("two\nlines")
    (folder / ".hidden.txt").write_text("no")
    table = _read(_input(folder))
    assert table["doc_id"].to_pylist() == ["docs/a.md", "docs/guide/b.txt"]
    assert table["text"].to_pylist() == ["# Título", "two\nlines"]


def test_the_readme_beside_the_shards_is_not_a_document(tmp_path: Path) -> None:
    _write(tmp_path, "a.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "_SUCCESS").write_text("")
    assert len(_read(_input(tmp_path))) == 10


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.jsonl", 1), ("**/*.jsonl", 3), ("x/*.jsonl", 1), ("x/**/*.jsonl", 2), ("[ab].jsonl", 1), ("?/a.jsonl", 1)],
)
def test_globs(tmp_path: Path, pattern: str, expected: int) -> None:
    for name in ("a.jsonl", "x/a.jsonl", "x/y/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(_jsonl([{"id": name, "text": "x"}]))
    assert len(_read(_input(tmp_path / pattern))) == expected


def test_any_fsspec_uri_can_be_read() -> None:
    import fsspec

    with fsspec.open("memory://shards/a.jsonl", "wb") as file:
        file.write(_jsonl(ROWS))
    table = _read(_input("memory://shards/*.jsonl"))
    assert len(table) == 10
    assert table["error"].null_count == 10
    assert table["source"][0].as_py().startswith("memory://")


def test_metadata_types_widen_over_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], "n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["b"], "text": ["y"], "n": pa.array([2], pa.int64())}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"id": ["c"], "text": ["z"], "n": pa.nulls(1)}), tmp_path / "c.parquet")
    table = _read(_input(tmp_path, columns=Columns(metadata=("n",))))
    assert table.schema.field("n").type == pa.int64()
    assert table["n"].to_pylist() == [1, 2, None]


def test_lists_stay_lists_and_objects_become_json_text(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "text": "x", "tags": ["a", "b"], "extra": {"k": 1}},
        {"id": "2", "text": "y", "extra": {"z": [2]}},
    ]
    (tmp_path / "a.jsonl").write_bytes(_jsonl(rows))
    table = _read(_input(tmp_path / "a.jsonl", columns=Columns(metadata=("tags", "extra"))))
    assert table["tags"].to_pylist() == [["a", "b"], None]
    assert table["extra"].to_pylist() == ['{"k": 1}', '{"z": [2]}']


def test_dictionary_encoded_columns_are_decoded(tmp_path: Path) -> None:
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": column, "kind": column}), tmp_path / "a.parquet")
    table = _read(_input(tmp_path / "a.parquet", columns=Columns(metadata=("kind",))))
    assert table["text"].to_pylist() == ["a", "b", "a"]
    assert table.schema.field("kind").type == pa.string()


def test_an_empty_shard_is_fine(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.csv").write_bytes(b"id,text\n")
    for name in ("a.parquet", "a.jsonl", "a.csv", "b.csv"):
        assert len(_read(_input(tmp_path / name))) == 0


def test_units_survive_pickling_and_hold_no_secret(tmp_path: Path) -> None:
    import pickle

    config = _input(_write(tmp_path, "a.jsonl"), storage_options={"aws_secret_access_key": "hunter2hunter2"})
    blob = pickle.dumps(plan_units(config))
    assert pickle.loads(blob) == plan_units(config)  # noqa: S301
    assert b"hunter2" not in blob


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv.gz"])
def test_a_file_that_was_rewritten_since_it_was_planned_is_not_read(tmp_path: Path, name: str) -> None:
    """Same size, same number of rows: only the time tells."""
    path = _write(tmp_path, name)
    config = _input(path)
    (unit,) = plan_units(config)
    data, before = path.read_bytes(), path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    (only,) = read_unit(unit, config, 4, [])
    assert only.select(["doc_id", "source", "position", "error"]).to_pylist() == [
        {
            "doc_id": None,
            "source": str(path),
            "position": -1,
            "error": "the file was rewritten while the job ran: nothing of it was read",
        }
    ]
    assert _read(config).num_rows == 10


def test_a_file_that_is_rewritten_while_it_is_read_is_reported_at_its_end(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl")
    config = _input(path)
    (unit,) = plan_units(config)
    tables = read_unit(unit, config, 4, [])
    first = next(tables)
    os.utime(path, ns=(0, 0))
    *_, last = tables
    assert first.num_rows == 4
    assert last["error"].to_pylist() == ["the file was rewritten while the job ran, and while it was read"]


def test_other_files_of_a_unit_are_read_as_they_are(tmp_path: Path) -> None:
    paths = [_write(tmp_path, f"{name}.jsonl") for name in "abc"]
    config = _input(*paths)
    (unit,) = plan_units(config)
    assert len(unit.versions) == 3
    os.utime(paths[1], ns=(0, 0))
    rows = pa.concat_tables(read_unit(unit, config, 100, []))
    assert rows["error"].null_count == 20
    assert rows.filter(rows["error"].is_valid())["source"].to_pylist() == [str(paths[1])]


def test_a_lance_table_is_read_at_the_version_that_was_planned(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.lance")
    config = _input(path)
    units = plan_units(config)
    lance.write_dataset(pa.Table.from_pylist(ROWS[:2]), path, mode="overwrite")
    assert sum(t.num_rows for unit in units for t in read_unit(unit, config, 100, [])) == 10
