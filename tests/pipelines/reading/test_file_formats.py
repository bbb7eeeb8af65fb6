"""Formats, encodings and compressions: what a file holds comes out, whatever it is wrapped in."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import feather, orc

from pipelines.config import Columns, ConfigError, CsvConfig, InputConfig
from pipelines.reading.units import metadata_fields, plan_units, read_unit
from pipelines.store.skipped import MISFITS, misfit_entry
from pipelines.store.writer import describe_place

ROWS = [{"id": f"d{i}", "text": f"Text {i} of möwen."} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _read(path: Path, **options: Any) -> pa.Table:
    config = InputConfig(paths=(str(path),), **options)
    units = plan_units(config)
    fields = metadata_fields(config, units)
    return pa.concat_tables([table for unit in units for table in read_unit(unit, config, 2, fields)])


def _documents(table: pa.Table) -> dict[str, str]:
    good = table.filter(table["error"].is_null())
    return dict(zip(good["doc_id"].to_pylist(), good["text"].to_pylist(), strict=True))


EXPECTED = {row["id"]: row["text"] for row in ROWS}

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zst": zstandard.ZstdCompressor().compress,
    "lz4": lambda data: pa.Codec("lz4").compress(data, asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_of_several_members(tmp_path: Path, suffix: str) -> None:
    pack = PACKERS[suffix]
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    packed = pack(LINES) if suffix == "lzma" else pack(LINES[:half]) + pack(LINES[half:])
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(packed)
    assert _documents(_read(tmp_path)) == EXPECTED


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "lz4"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_first_member_of_one_byte_hides_nothing(tmp_path: Path, suffix: str, encoding: str) -> None:
    pretty = "\n".join(json.dumps(json.loads(line), indent=1) for line in LINES.splitlines()).encode(encoding)
    packed = PACKERS[suffix](pretty[:1]) + PACKERS[suffix](pretty[1:])
    (tmp_path / f"a.json.{suffix}").write_bytes(packed)
    assert _documents(_read(tmp_path)) == EXPECTED


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_that_break_off(tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[suffix](LINES)
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(packed[: len(packed) - 12])
    (tmp_path / "b.jsonl").write_bytes(LINES.replace(b'"d', b'"e'))
    table = _read(tmp_path)
    assert set(_documents(table)) >= {f"e{i}" for i in range(5)}
    assert [e for e in table["error"].to_pylist() if e is not None]


def test_rows_before_gzip_padding_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + bytes(512))
    assert _documents(_read(tmp_path)) == EXPECTED
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + b"garbage")
    table = _read(tmp_path)
    assert _documents(table) == EXPECTED
    assert [e for e in table["error"].to_pylist() if e] == ["cannot be read: BadGzipFile: Not a gzipped file (b'ga')"]


def test_zstd_with_a_long_window(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packed.compress(LINES) + packed.flush())
    assert _documents(_read(tmp_path)) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.txt"])
def test_encodings_are_told_from_the_first_bytes(tmp_path: Path, name: str, encoding: str) -> None:
    texts = {
        "a.jsonl": LINES.decode("ascii"),
        "a.json": json.dumps(ROWS, ensure_ascii=False),
        "a.csv": "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in ROWS),
        "a.txt": "Möwen.",
    }
    (tmp_path / name).write_bytes(texts[name].encode(encoding))
    found = _documents(_read(tmp_path))
    assert list(found.values()) == ["Möwen."] if name == "a.txt" else found == EXPECTED


def test_a_stated_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,text\na,Möwen\n".encode("cp1252"))
    assert _documents(_read(tmp_path)) == {}
    assert _documents(_read(tmp_path, encoding="cp1252")) == {"a": "Möwen"}
    with pytest.raises(ValueError, match="no encoding is called 'klingon'"):
        InputConfig(paths=("a",), encoding="klingon")


def test_damaged_utf16_costs_the_rest_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF16_LE + (LINES.decode()).encode("utf-16-le") + b"\x00\xd8\x00")
    table = _read(tmp_path)
    assert _documents(table).keys() <= EXPECTED.keys()
    assert any("UnicodeDecodeError" in (e or "") for e in table["error"].to_pylist())


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "".join(json.dumps(row, indent=2) + "\n" for row in ROWS),
        "\n\n" + "".join(json.dumps(row, indent=2) for row in ROWS),
        "".join(f"[{json.dumps(row)}]\n" for row in ROWS),
        "\ufeff" + json.dumps(ROWS),
        "".join('{{"id": "{}",\n "text": "{}"}}\n'.format(row["id"], row["text"]) for row in ROWS),
    ],
)
def test_json_arrays_and_objects_over_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert _documents(_read(tmp_path)) == EXPECTED


def test_a_large_json_array_is_read_piece_by_piece(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": "x" * 5000 + str(i)} for i in range(400)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert _documents(_read(tmp_path)) == {row["id"]: row["text"] for row in rows}


@pytest.mark.parametrize(
    ("text", "good", "error"),
    [
        ('[{"id": "a", "text": "x"}, {"id": ', ["a"], "cannot be read: OSError: not JSON"),
        ('[\n{"id": "a", "text": "x"},\n', ["a"], "cannot be read: OSError: the JSON array has no end"),
        ('[{"id": "a", "text": "x"}, {"id": "b", "text": "y"} }', ["a", "b"], "cannot be read: OSError: not JSON"),
        ('[{"id": "a", "text": "x"}, [1], null]', ["a"], "value is a JSON list, an object is needed"),
        ('{"id": "a", "text": "x"}\n{"id": "b", "te\n{"id": "c", "text": "z"}\n', ["a", "c"], "line is not JSON"),
        ('{"id": "a", "te\n{"id": "c", "text": "z"}\n', ["c"], "line is not JSON"),
    ],
)
def test_damaged_json(tmp_path: Path, text: str, good: list[str], error: str) -> None:
    (tmp_path / "a.json").write_text(text)
    table = _read(tmp_path)
    assert list(_documents(table)) == good
    assert next(e for e in table["error"].to_pylist() if e).startswith(error)


@pytest.mark.parametrize(
    ("name", "text", "csv"),
    [
        ("a.csv", "id;text\na;Some text, and more\n", CsvConfig()),
        ("a.csv", "id|text\na|Some text, and more\n", CsvConfig()),
        ("a.csv", "a,\"Some text, and more\"\n", CsvConfig(names=("id", "text"))),
        ("a.csv", "a~Some text, and more\n", CsvConfig(names=("id", "text"), delimiter="~")),
        ("a.tsv", "id\ttext\na\tSome text, and more\n", CsvConfig()),
        ("a.tab", "a\tSome text, and more\n", CsvConfig(names=("id", "text"))),
        ("a.tsv", "id;text\na;Some text, and more\n", CsvConfig(delimiter=";")),
    ],
)  # fmt: skip
def test_delimiters_and_names(tmp_path: Path, name: str, text: str, csv: CsvConfig) -> None:
    (tmp_path / name).write_text(text)
    assert _documents(_read(tmp_path, csv=csv)) == {"a": "Some text, and more"}


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.csv", 'id,text\na,"two\nlines"\n\nb,one\n', [2, 5]),
        ("a.csv", "\n\nid,text\r\na,one\r\nb,two\r\n", [4, 5]),
        ("a.csv", "sep=;\nid;text\na;one\nb;two\n", [3, 4]),
        ("a.tsv", "id\ttext\n\na\tone\nb\ttwo\n", [3, 4]),
        ("a.csv", "id,text\rb,one\rc,two\r", [2, 3]),
    ],
)
def test_positions_of_csv_are_lines(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    (tmp_path / name).write_bytes(text.encode())
    table = _read(tmp_path / name)
    assert table["error"].null_count == 2
    assert [position + 1 for position in table["position"].to_pylist()] == lines
    assert describe_place("a.csv", lines[0] - 1) == f"a.csv line {lines[0]}"


def test_an_integer_that_python_does_not_read_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "x", "n": 1' + "0" * 5000 + '}\n{"id": "b", "text": "y"}\n')
    good, bad = _read(tmp_path).sort_by([("error", "descending")]).to_pylist()[::-1]
    assert (good["doc_id"], bad["position"]) == ("b", 0)
    assert bad["error"].startswith("line is not JSON: Exceeds the limit")


def test_quotes_in_tsv(tmp_path: Path) -> None:
    text = 'id\ttext\n1\t"A ""prophet""."\n2\tA 5" pipe.\n3\t"Five" feet.\n4\t"An open quote.\n5\tLast.\n'
    (tmp_path / "a.tsv").write_text(text)
    found = _documents(_read(tmp_path))
    assert found == {"1": 'A "prophet".', "2": 'A 5" pipe.', "3": '"Five" feet.', "4": '"An open quote.', "5": "Last."}
    assert _documents(_read(tmp_path, csv=CsvConfig(quote=None)))["1"] == '"A ""prophet""."'


def test_line_ends_within_quotes_of_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\na\t"Two\nlines"\nb\tOne\n')
    assert _documents(_read(tmp_path)) == {"a": "Two\nlines", "b": "One"}


def test_arrow_files_streams_feather_and_orc(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    for name, writer in (("a.arrow", pa.ipc.new_file), ("b.arrows", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as file, writer(file, table.schema) as out:
            out.write_table(table, max_chunksize=2)
    feather.write_feather(table, str(tmp_path / "c.feather"))
    orc.write_table(table, str(tmp_path / "d.orc"))
    for name in ("a.arrow", "b.arrows", "c.feather", "d.orc"):
        found = _read(tmp_path / name)
        assert _documents(found) == EXPECTED
        assert found["position"].to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.arrow", "a.orc", "a.feather", "a.parquet", "a.avro"])
@pytest.mark.parametrize("content", [b"ARROW1 this is none of these", b""])
def test_a_damaged_file_is_one_bad_row(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (error,) = _read(tmp_path / name)["error"].to_pylist()
    assert error.startswith("cannot be read: ")


def test_avro(tmp_path: Path) -> None:
    fastavro = pytest.importorskip("fastavro")
    fields = [{"name": "id", "type": "string"}, {"name": "text", "type": ["null", "string"]}]
    with (tmp_path / "a.avro").open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "r", "fields": fields}, ROWS)
    assert _documents(_read(tmp_path)) == EXPECTED


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one.select([0, 1]), "test": one.select([2])}).save_to_disk(str(tmp_path / "many"))
    assert _documents(_read(tmp_path / "one")) == EXPECTED
    assert set(_documents(_read(tmp_path / "many"))) == {"d0", "d1", "d2"}


NESTED = [{"key": {"id": f"n{i}"}, "content": {"text": f"Deep {i}", "meta": {"lang": "en", "n": i}}} for i in range(3)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_paths_into_nested_columns(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_pylist(NESTED)
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    elif name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        feather.write_feather(table, str(tmp_path / name))
    metadata = {"lang": {"column": "content.meta.lang"}, "n": {"column": "content.meta.n", "type": "float"}}
    columns = Columns.model_validate({"id": "key.id", "text": "content.text", "metadata": metadata})
    found = _read(tmp_path, columns=columns)
    assert _documents(found) == {"n0": "Deep 0", "n1": "Deep 1", "n2": "Deep 2"}
    assert (found["lang"].to_pylist(), found["n"].to_pylist()) == (["en"] * 3, [0.0, 1.0, 2.0])
    with pytest.raises(ConfigError, match=r"has no column 'content\.body'"):
        _read(tmp_path, columns=Columns(text="content.body"))


def test_hive_partitions_are_typed_columns(tmp_path: Path) -> None:
    for year in (2020, 2021):
        for lang in ("en", "a%20b", "__HIVE_DEFAULT_PARTITION__"):
            folder = tmp_path / f"year={year}" / f"lang={lang}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"id": [f"{year}{lang}"], "text": ["x"]}), folder / "part-0.parquet")
    found = _read(tmp_path, columns=Columns(metadata=("year", "lang")))
    assert (found.schema.field("year").type, found.schema.field("lang").type) == (pa.int64(), pa.string())
    rows = {row["doc_id"]: (row["year"], row["lang"]) for row in found.to_pylist()}
    assert rows["2021en"] == (2021, "en")
    assert rows["2020a%20b"] == (2020, "a b")
    assert rows["2020__HIVE_DEFAULT_PARTITION__"] == (2020, None)


def test_a_files_own_column_comes_before_the_folders(tmp_path: Path) -> None:
    folder = tmp_path / "year=2020"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"id": "a", "text": "x", "year": 1999}\n')
    assert _read(tmp_path, columns=Columns(metadata=("year",)))["year"].to_pylist() == [1999]


@pytest.mark.parametrize(
    ("name", "why"),
    [("a.b", "a dot or a backtick"), ("a`b", "a dot or a backtick"), ("", "an empty name"), ("_rowid", "Lance keeps"),
     ("_score", "searches give"), ("_distance", "searches give")],
)  # fmt: skip
def test_names_that_no_index_can_hold_are_refused_with_a_way_out(tmp_path: Path, name: str, why: str) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], name: [7]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=why) as caught:
        _read(tmp_path, columns=Columns(metadata=(name,)))
    assert repr(name) in str(caught.value)
    if name:
        columns = Columns.model_validate({"metadata": {"kept": {"column": name}}})
        assert _read(tmp_path, columns=columns)["kept"].to_pylist() == [7]


def test_maps_are_kept_as_json(tmp_path: Path) -> None:
    maps = pa.array([[("colour", "red")], [], None], pa.map_(pa.string(), pa.string()))
    pq.write_table(
        pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"], "attributes": maps}), tmp_path / "a.parquet"
    )
    found = _read(tmp_path, columns=Columns(metadata=("attributes",)))
    assert found["attributes"].to_pylist() == ['{"colour": "red"}', "{}", None]


def test_a_value_of_another_type_costs_the_value(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": "x", "price": 3, "tags": [], "stars": None} for i in range(1001)]
    rows += [{"id": "late", "text": "x", "price": 3.5, "tags": ["x", "y"], "stars": 4}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guessed = _read(tmp_path, columns=Columns(metadata=("price", "tags", "stars"))).to_pylist()[-1]
    assert (guessed["price"], guessed["tags"], guessed["stars"]) == (None, ["x", "y"], "4")
    assert (guessed["error"], guessed[MISFITS]) == (None, [misfit_entry("price", "double")])
    columns = Columns.model_validate({"metadata": {"price": "float64", "stars": "int"}})
    stated = _read(tmp_path, columns=columns).to_pylist()[-1]
    assert (stated["price"], stated["stars"], stated[MISFITS]) == (3.5, 4, None)


def test_codes_with_leading_zeros_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,zip,share,n\na,x,01234,0.5,0\nb,y,10115,-0.5,7\n")
    found = _read(tmp_path, columns=Columns(metadata=("zip", "share", "n")))
    assert found["zip"].to_pylist() == ["01234", "10115"]
    assert (found["share"].to_pylist(), found["n"].to_pylist()) == ([0.5, -0.5], [0, 7])


@pytest.mark.parametrize(("given", "type_"), [("float", pa.float64()), ("list<string>", pa.list_(pa.string())),
                                              ("date", pa.date32()), ("bool", pa.bool_())])  # fmt: skip
def test_stated_types(tmp_path: Path, given: str, type_: pa.DataType) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "x", "m": null}\n')
    columns = Columns.model_validate({"metadata": {"m": given}})
    assert _read(tmp_path, columns=columns).schema.field("m").type == type_


def test_titles_that_are_numbers_become_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": "n", "title": 1984, "text": "x"}\n{"id": "f", "title": 2.5, "text": "x"}\n'
    )
    assert _documents(_read(tmp_path)) == {"n": "1984 x", "f": "2.5 x"}
    pq.write_table(pa.table({"id": ["n"], "title": [1984], "text": ["x"]}), tmp_path / "b.parquet")
    assert _documents(_read(tmp_path / "b.parquet")) == {"n": "1984 x"}
    (tmp_path / "c.jsonl").write_text('{"id": "l", "title": ["a"], "text": "x"}\n')
    assert _read(tmp_path / "c.jsonl")["error"].to_pylist() == ["title is a list, a string is needed: ['a']"]


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,text\na,x,y\n")
    (tmp_path / "b.csv").write_text("id,text,x,x\na,x,1,2\n")
    with pytest.raises(ConfigError, match="has 2 columns 'text'"):
        _read(tmp_path / "a.csv")
    assert _documents(_read(tmp_path / "b.csv")) == {"a": "x"}
