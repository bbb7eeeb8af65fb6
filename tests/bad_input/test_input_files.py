"""Shards and rows that are not as they should be: each is reported with its place and reason, nothing else is lost."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines.config import Columns, ConfigError, InputConfig
from pipelines.reading.units import metadata_fields, plan_units, read_unit
from pipelines.store.skipped import MISFITS, misfit_entry


def _input(*paths: Path | str, **rest: Any) -> InputConfig:
    return InputConfig(paths=tuple(map(str, paths)), **rest)


def _read(config: InputConfig) -> pa.Table:
    units = plan_units(config)
    fields = metadata_fields(config, units)
    return pa.concat_tables([table for unit in units for table in read_unit(unit, config, 1000, fields)])


def _lines(folder: Path, *lines: str | bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def _good(table: pa.Table) -> list[str]:
    return [row["doc_id"] for row in table.to_pylist() if row["error"] is None]


def _errors(table: pa.Table) -> list[str]:
    return [error for error in table["error"].to_pylist() if error is not None]


# Requests that are wrong: refused before any work.


@pytest.mark.parametrize("path", ["missing.jsonl", "*.parquet", "nowhere/*.jsonl", "empty"])
def test_no_file_matches(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    good = _lines(tmp_path, '{"text": "x"}')
    with pytest.raises(ConfigError, match=r"input\.paths\.1: no file matches '.*" + path.replace("*", r"\*")):
        plan_units(_input(good, tmp_path / path))


@pytest.mark.parametrize("key", ["id", "text", "title"])
def test_a_column_that_does_not_exist(tmp_path: Path, key: str) -> None:
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(
        ConfigError, match=rf"input\.columns\.{key}: .*a\.parquet has no column 'body'; it has id, text"
    ):
        plan_units(_input(tmp_path / "a.parquet", columns=Columns(**{key: "body"})))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.lance"])
def test_a_metadata_column_that_does_not_exist(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": ["1"], "text": ["x"]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    elif name == "a.lance":
        lance.write_dataset(table, tmp_path / name)
    else:
        (tmp_path / name).write_text('{"id": "1", "text": "x"}\n' if name == "a.jsonl" else "id,text\n1,x\n")
    with pytest.raises(ConfigError, match=r"input\.columns\.metadata: .* has no column 'year'; it has id, text"):
        plan_units(_input(tmp_path / name, columns=Columns(metadata=("year",))))


def test_one_shard_of_several_lacks_a_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["2"], "txt": ["y"]}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet has no column 'text'; it has id, txt"):
        plan_units(_input(tmp_path))


def test_a_metadata_column_may_not_take_a_reserved_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input\.columns\.metadata: \['source'\] are names of columns that tridex"):
        plan_units(_input(_lines(tmp_path, '{"text": "x", "source": "y"}'), columns=Columns(metadata=("source",))))


def test_shards_that_disagree_on_a_type(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", "one")):
        pq.write_table(pa.table({"text": ["x"], "year": [value]}), tmp_path / f"{name}.parquet")
    config = _input(tmp_path, columns=Columns(metadata=("year",)))
    message = r"shards disagree: 'year' is int64 in .*a\.parquet, string in .*b\.parquet"
    with pytest.raises(ConfigError, match=message):
        metadata_fields(config, plan_units(config))


@pytest.mark.parametrize("names", [["a.dat"], ["a.jsonl", "a.csv"]])
def test_a_format_that_cannot_be_told(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("text\nx\n")
    with pytest.raises(ConfigError, match=r"input\.paths\.0: .*; set input\.format to one of parquet, jsonl, csv"):
        plan_units(_input(tmp_path))
    assert plan_units(_input(tmp_path, format="csv"))


@pytest.mark.parametrize("template", ["{title}", "{text} {body}", "{text", "{} {text}"])
def test_a_template_that_cannot_be_filled(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match=r"input\.template: "):
        plan_units(_input(_lines(tmp_path, '{"text": "x"}'), template=template))


def test_a_scheme_without_a_client() -> None:
    with pytest.raises(ConfigError, match=r"nosuch://: no client for this scheme"):
        plan_units(_input("nosuch://bucket/a.jsonl"))


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="must not carry credentials") as caught:
        plan_units(_input("s3://AKIA:sesame@bucket/a.jsonl"))
    assert "sesame" not in str(caught.value)


# Rows that are wrong: each stays, with its reason.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "text": null}', "text is null or missing"),
        ('{"id": "b"}', "text is null or missing"),
        ('{"id": "b", "text": ""}', "text is empty"),
        ('{"id": "b", "text": " \\n\\t\\u3000"}', "text is only whitespace"),
        ('{"id": "b", "text": 7}', "text is an integer, a string is needed: 7"),
        ('{"id": "b", "text": ["x"]}', "text is a list, a string is needed: ['x']"),
        ('{"id": "b", "text": "\\ud800"}', "text is not valid Unicode: lone surrogate at character 0"),
        (b'{"id": "b", "text": "\xff"}', "line is not valid UTF-8: byte 21 of the line"),
        ('{"id": "b", "text": "x"', "line is not JSON: Expecting ',' delimiter"),
        ("[1]", "line is a JSON list, an object is needed"),
        ("[" * 100_000, "line is not JSON"),
        ('{"id": ' + "9" * 5000 + ', "text": "x"}', "line is not JSON"),
        ('{"id": 1.5, "text": "x"}', "id is a float, a string or an integer is needed: 1.5"),
        ('{"id": true, "text": "x"}', "id is a boolean, a string or an integer is needed: True"),
        ('{"id": {"a": 1}, "text": "x"}', "id is an object, a string or an integer is needed"),
        ('{"id": null, "text": "x"}', "id is null, missing or empty"),
        ('{"text": "x"}', "id is null, missing or empty"),
        ('{"id": " ", "text": "x"}', "id is null, missing or empty"),
        ('{"id": "b", "text": "' + "x" * 101 + '"}', "text has more than max_text_bytes (100)"),
    ],
)
def test_a_bad_json_row(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = _lines(tmp_path, '{"id": "a", "text": "x"}', line, '{"id": "c", "text": "y"}')
    table = _read(_input(path, max_text_bytes=100))
    assert _good(table) == ["a", "c"]
    bad = table.slice(1, 1).to_pylist()[0]
    assert message in bad["error"]
    assert (bad["text"], bad["position"], bad["source"], bad["content_hash"]) == (None, 1, str(path), None)


def test_mixed_ids_are_allowed_where_they_are_strings_and_integers(tmp_path: Path) -> None:
    path = _lines(tmp_path, '{"id": "a", "text": "x"}', '{"id": -3, "text": "y"}', '{"id": 1.0, "text": "z"}')
    table = _read(_input(path))
    assert _good(table) == ["a", "-3"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.5, 2.5]), "id is a float"),
        (pa.array([True, False]), "id is a boolean"),
        (pa.array([[1], [2]]), "id is a list"),
        (pa.array([{"a": 1}, {"a": 2}]), "id is an object"),
        (pa.nulls(2), "id is null, missing or empty"),
    ],
)
def test_parquet_ids_of_a_wrong_type(tmp_path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"id": column, "text": ["x", "y"]}), tmp_path / "a.parquet")
    table = _read(_input(tmp_path / "a.parquet"))
    assert [message in error for error in _errors(table)] == [True, True]


def test_parquet_text_that_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "text": [1, None]}), tmp_path / "a.parquet")
    errors = _errors(_read(_input(tmp_path / "a.parquet")))
    assert errors == ["text is an integer, a string is needed: 1", "text is null or missing"]


def _invalid_utf8(values: list[bytes], type_: pa.DataType) -> pa.Array:
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(type_, len(values), binary.buffers())


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    text = _invalid_utf8([b"good", b"bad \xff", "größer".encode()], pa.string())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": text}), tmp_path / "a.parquet")
    table = _read(_input(tmp_path / "a.parquet"))
    assert _good(table) == ["a", "c"]
    assert _errors(table) == ["text is not valid UTF-8: byte 4: invalid start byte"]


def test_metadata_that_does_not_fit_its_column(tmp_path: Path) -> None:
    years = [1990, 1991, "soon", 2.5, None]
    rows = [json.dumps({"id": str(i), "text": "x", "year": year}) for i, year in enumerate(years)]
    path = _lines(tmp_path, *rows)
    _lines(tmp_path, '{"id": "z", "text": "x", "year": 1}', name="b.jsonl")
    config = _input(path, columns=Columns(metadata=("year",)))
    (unit,) = plan_units(config)
    table = pa.concat_tables(read_unit(unit, config, 1000, [pa.field("year", pa.int64())]))
    assert _good(table) == ["0", "1", "2", "3", "4"]  # the value is lost, the document is not
    assert table["year"].to_pylist() == [1990, 1991, None, None, None]
    assert table[MISFITS].to_pylist() == [None, None, [misfit_entry("year", "string")], ["year"], None]
    assert not _errors(table)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b", "row has 1 fields, the header has 2"),
        ("b,x,y", "row has 3 fields, the header has 2"),
        ('b,"x"y', "row is not CSV"),
        ("b,", "text is null or missing"),
        (",x", "id is null, missing or empty"),
        (b"b,\xff", "row is not valid UTF-8"),
    ],
)
def test_a_bad_csv_row(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = _lines(tmp_path, "id,text", "a,x", line, 'c,"y\nz"', name="a.csv")
    table = _read(_input(path))
    assert _good(table) == ["a", "c"]
    assert message in _errors(table)[0]
    assert table["position"].to_pylist() == [1, 2, 3]  # lines, from 0


def test_a_csv_with_an_open_quote(tmp_path: Path) -> None:
    path = _lines(tmp_path, "id,text", "a,x", 'b,"never closed', "c,y", name="a.csv")
    table = _read(_input(path))
    assert _good(table) == ["a"]
    assert "row is not CSV: unexpected end of data" in _errors(table)[0]
    table = _read(_input(path, max_text_bytes=3))
    assert _good(table) == ["a"]
    assert "a value without end" in _errors(table)[0]


def test_text_files_that_are_no_text(tmp_path: Path) -> None:
    for name, content in {"a": b"fine", "b": b"", "c": b"\xff\xfe\x00", "d": b"x" * 101}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    table = _read(_input(tmp_path, max_text_bytes=100))
    assert len(_good(table)) == 1
    assert [error.partition(":")[0] for error in _errors(table)] == [
        "text is empty",
        "text is not valid UTF-8",
        "text has more than max_text_bytes (100)",
    ]


# Files that are damaged: what can be read comes through, then one row says what happened.


def _parquet(path: Path, n: int = 100) -> bytes:
    table = pa.table({"id": [str(i) for i in range(n)], "text": [f"text {i} {hash(i)}" for i in range(n)]})
    pq.write_table(table, path, row_group_size=25, compression="none", use_dictionary=False)
    return path.read_bytes()


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -20])
def test_a_half_written_parquet_file(tmp_path: Path, cut: int) -> None:
    good, bad = tmp_path / "a.parquet", tmp_path / "b.parquet"
    data = _parquet(good)
    bad.write_bytes(data[:cut] if cut else b"")
    table = _read(_input(tmp_path))
    assert len(_good(table)) == 100
    (row,) = [row for row in table.to_pylist() if row["error"]]
    assert row["error"].startswith("cannot be read: ArrowInvalid: ")
    assert (row["doc_id"], row["source"], row["position"]) == (None, str(bad), -1)


def test_a_damaged_row_group_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = bytearray(_parquet(path))
    offset = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))
    table = _read(_input(path))
    assert _good(table) == [str(i) for i in range(100) if not 25 <= i < 50]
    (error,) = _errors(table)
    assert error.startswith("row group 1 is damaged, its rows 25 to 49 are lost: ")
    (position,) = [row["position"] for row in table.to_pylist() if row["error"]]
    assert position == -1


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", _zstd)])
def test_a_compressed_file_that_breaks_off(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    rows = [json.dumps({"id": str(i), "text": f"text {i * 7919 % 10007} {i * 104729 % 1299709}"}) for i in range(20000)]
    packed = pack("\n".join(rows).encode())
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    table = _read(_input(path))
    good = _good(table)
    assert good == [str(i) for i in range(len(good))]
    assert 20000 * 0.5 < len(good) < 20000 * 0.8
    assert _errors(table) == ["cannot be read: OSError: Truncated compressed stream"]


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(b"this is neither" * 10)
        table = _read(_input(tmp_path / name))
        assert len(table) == 1
        assert _errors(table)[0].startswith("cannot be read: ")


def test_a_file_that_vanished_after_planning(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        _lines(tmp_path, json.dumps({"id": name, "text": "x"}), name=name)
    config = _input(tmp_path)
    (unit,) = plan_units(config)
    (tmp_path / "b.jsonl").unlink()
    table = pa.concat_tables(read_unit(unit, config, 10))
    assert _good(table) == ["a.jsonl", "c.jsonl"]
    assert "No such file" in _errors(table)[0] or "Failed to open" in _errors(table)[0]


def test_a_damaged_lance_fragment(tmp_path: Path) -> None:
    path = tmp_path / "a.lance"
    table = pa.table({"id": [str(i) for i in range(20)], "text": ["x"] * 20})
    lance.write_dataset(table, path, max_rows_per_file=10)
    victim = lance.dataset(path).get_fragments()[1].data_files()[0].path
    (path / "data" / victim).write_bytes(b"gone")
    found = _read(_input(path))
    assert _good(found) == [str(i) for i in range(10)]
    assert _errors(found)[0].startswith("cannot be read: OSError: ")


def test_a_line_too_long_to_hold_is_skipped(tmp_path: Path) -> None:
    long = json.dumps({"id": "b", "text": "x" * 3 * 2**20})
    path = _lines(tmp_path, '{"id": "a", "text": "x"}', long, '{"id": "c", "text": "y"}')
    table = _read(_input(path, max_text_bytes=1000))
    assert _good(table) == ["a", "c"]
    assert "line has 3,1" in _errors(table)[0]
    assert table["position"].to_pylist() == [0, 1, 2]


def test_a_50_mb_document(tmp_path: Path) -> None:
    text = "lorem ipsum dolor " * (50 * 2**20 // 18)
    begin = time.monotonic()
    table = _read(_input(_lines(tmp_path, json.dumps({"id": "a", "text": text}), '{"id": "b", "text": "y"}')))
    assert _good(table) == ["a", "b"]
    assert table["text"][0].as_py() == text
    assert time.monotonic() - begin < 30
