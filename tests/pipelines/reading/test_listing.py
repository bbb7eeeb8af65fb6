"""Which files an input path names, and that every other one there is named as skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.config import ConfigError, InputConfig
from pipelines.reading import listing
from pipelines.reading.layouts import BEIR, BESIDE_DATA, NO_READER, OTHER_FORMAT, SAVED
from pipelines.reading.listing import count_by_kind, is_hidden, list_files
from pipelines.reading.units import NO_ROWS, InputPlan, plan_input


def _write(folder: Path, *names: str, text: str = '{"id": "%s", "text": "x"}\n') -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text % name if "%s" in text else text)


def _plan(*paths: Path, **options: object) -> InputPlan:
    return plan_input(InputConfig(paths=tuple(map(str, paths)), **options))  # type: ignore[arg-type]


def _read(plan: InputPlan, folder: Path) -> list[str]:
    return sorted(path.removeprefix(f"{folder}/") for unit in plan.units for path in unit.paths)


def _skipped(plan: InputPlan, folder: Path) -> dict[str, str]:
    return {s.uri.removeprefix(f"{folder}/"): s.reason for s in plan.skipped}


@pytest.mark.parametrize(
    "name",
    [".part.crc", "_SUCCESS", "_metadata", "_common_metadata", "_temporary/0/x.jsonl", "_delta_log/0.json",
     "a/.ipynb_checkpoints/x.md", "_committed_12", "_started_12", "x_$folder$"],
)  # fmt: skip
def test_markers_are_hidden(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize("name", ["_index.md", "_posts/2020-01-01-a.md", "a_b.jsonl", "_data/x.csv", "__init__.md"])
def test_an_underscore_alone_hides_nothing(name: str) -> None:
    assert not is_hidden(name)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "a.jsonl", "sub/b.jsonl", "README.md", "notes.zip", "x.pdf", "LICENSE", ".hidden", "c.tar.gz")
    plan = _plan(tmp_path)
    assert _read(plan, tmp_path) == ["a.jsonl", "sub/b.jsonl"]
    assert _skipped(plan, tmp_path) == {
        "README.md": BESIDE_DATA,
        "x.pdf": BESIDE_DATA,
        "notes.zip": NO_READER,
        "c.tar.gz": NO_READER,
        "LICENSE": NO_READER,
        ".hidden": listing.HIDDEN,
    }
    kinds = {(kind.kind, kind.count) for kind in count_by_kind(plan.skipped)}
    assert kinds == {(".md", 1), (".pdf", 1), (".zip", 1), (".tar.gz", 1), ("LICENSE", 1), ("hidden", 1)}


def test_a_stated_format_names_the_rest(tmp_path: Path) -> None:
    _write(tmp_path, "a.jsonl", "b.csv")
    plan = _plan(tmp_path, format="jsonl")
    assert (_read(plan, tmp_path), _skipped(plan, tmp_path)) == (["a.jsonl"], {"b.csv": OTHER_FORMAT})


def test_a_stated_format_is_not_that_of_files_which_say_another(tmp_path: Path) -> None:
    _write(tmp_path, "lines.txt", "lines", "x.parquet", "x.arrow")
    plan = _plan(tmp_path, format="jsonl")
    assert _read(plan, tmp_path) == ["lines", "lines.txt"]
    assert _skipped(plan, tmp_path) == {"x.parquet": OTHER_FORMAT, "x.arrow": OTHER_FORMAT}
    assert _read(_plan(tmp_path / "x.parquet", format="jsonl"), tmp_path) == ["x.parquet"]


def test_an_empty_folder_says_what_lies_there(tmp_path: Path) -> None:
    _write(tmp_path, "_SUCCESS", ".a.crc")
    with pytest.raises(ConfigError, match=r"no file matches .*; left out: 2 hidden"):
        _plan(tmp_path)


def test_a_glob_does_not_name_what_it_does_not_match(tmp_path: Path) -> None:
    _write(tmp_path, "a.jsonl", "b.pdf", "c.bin", "c.jsonl")
    plan = _plan(tmp_path / "[ac]*")
    assert (_read(plan, tmp_path), _skipped(plan, tmp_path)) == (["a.jsonl", "c.jsonl"], {"c.bin": NO_READER})


def test_a_file_that_two_paths_name_is_read_once(tmp_path: Path) -> None:
    _write(tmp_path, "a.jsonl", "b.jsonl")
    assert _read(_plan(tmp_path / "a.jsonl", tmp_path, tmp_path / "*.jsonl"), tmp_path) == ["a.jsonl", "b.jsonl"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder, away = tmp_path / "in", tmp_path / "away"
    _write(folder, "real/a.jsonl")
    _write(away, "b.jsonl")
    (folder / "real" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "real")
    (folder / "away").symlink_to(away)
    (folder / "away2").symlink_to(away)
    (folder / "same.jsonl").symlink_to(folder / "real" / "a.jsonl")
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jsonl")
    plan = _plan(folder)
    assert _read(plan, folder) == ["away/b.jsonl", "real/a.jsonl"]
    assert _skipped(plan, folder) == {
        "again": listing.LEADS_BACK,
        "away2": listing.LEADS_BACK,
        "real/up": listing.LEADS_BACK,
        "same.jsonl": listing.SAME_FILE,
        "gone.jsonl": listing.BROKEN_LINK,
        "pipe.jsonl": listing.NO_FILE,
    }


def test_a_link_to_a_blob_without_a_suffix_is_read(tmp_path: Path) -> None:
    """The hub's cache: `snapshots/REVISION/data.jsonl` links to `blobs/HASH`."""
    _write(tmp_path, "blobs/abc")
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "data.jsonl").symlink_to(tmp_path / "blobs" / "abc")
    assert _read(_plan(tmp_path), tmp_path) == ["snapshots/data.jsonl"]


def test_a_beir_folder(tmp_path: Path) -> None:
    _write(tmp_path, "scifact/corpus.jsonl", "scifact/queries.jsonl", "scifact/qrels/test.tsv", "lonely/queries.jsonl")
    plan = _plan(tmp_path)
    assert _read(plan, tmp_path) == ["lonely/queries.jsonl", "scifact/corpus.jsonl"]
    assert _skipped(plan, tmp_path) == {"scifact/queries.jsonl": BEIR, "scifact/qrels/test.tsv": BEIR}


def test_our_own_index_in_the_input_folder_is_not_input(tmp_path: Path) -> None:
    _write(tmp_path, "a.jsonl", "idx/leases.lance/_versions/1.manifest", "idx/reports/r.html")
    plan = _plan(tmp_path)
    assert _read(plan, tmp_path) == ["a.jsonl"]
    assert _skipped(plan, tmp_path) == {"idx": listing.OWN_INDEX}


@pytest.mark.parametrize("name", ["idx", "idx/documents.lance"])
def test_our_own_index_is_refused_as_input(tmp_path: Path, name: str) -> None:
    _write(tmp_path, "idx/leases.lance/_versions/1.manifest", "idx/documents.lance/_versions/1.manifest")
    with pytest.raises(ConfigError, match=r"input.paths.0: no file matches .*: an index of tridex, which is no input"):
        _plan(tmp_path / name)


TABLES = [
    ("_delta_log/00000000000000000000.json", "Delta Lake", "ray.data.read_delta('{0}') or what deltalake"),
    ("metadata/00000-6f0.metadata.json", "Iceberg", "ray.data.read_iceberg"),
    (".hoodie/hoodie.properties", "Hudi", "ray.data.read_hudi('{0}')"),
]


@pytest.mark.parametrize("given", ["", "events", "events/data", "events/data/*.jsonl", "**/*.jsonl"])
@pytest.mark.parametrize(("mark", "name", "way"), TABLES)
def test_tables_with_a_log_are_refused_with_their_readers(
    tmp_path: Path, mark: str, name: str, way: str, given: str
) -> None:
    _write(tmp_path, f"events/{mark}", "events/data/part-0.jsonl")
    table = tmp_path / "events"
    with pytest.raises(ConfigError) as refused:
        _plan(tmp_path / given)
    assert str(refused.value).startswith(
        f"input.paths.0: '{table}' is a table of {name}, whose files hold deleted rows"
    )
    assert way.partition(" or ")[0].format(table) in str(refused.value)


@pytest.mark.parametrize(("mark", "name", "way"), TABLES)
def test_files_beside_a_table_and_files_that_are_named_are_read(tmp_path: Path, mark: str, name: str, way: str) -> None:
    _write(tmp_path, f"events/{mark}", "events/data/part-0.jsonl", "others/a.jsonl")
    assert _read(_plan(tmp_path / "others"), tmp_path) == ["others/a.jsonl"]
    assert _read(_plan(tmp_path / "others/*.jsonl"), tmp_path) == ["others/a.jsonl"]
    assert _read(_plan(tmp_path / "events/data/part-0.jsonl"), tmp_path) == ["events/data/part-0.jsonl"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv.gz"])
def test_files_without_a_byte_are_named(tmp_path: Path, name: str) -> None:
    _write(tmp_path, "b.jsonl")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    _write(tmp_path, name, text="")
    assert _skipped(plan_input(InputConfig(paths=(str(tmp_path / name),))), tmp_path) == {name: NO_ROWS}


def test_a_folder_without_any_known_name_says_what_it_holds(tmp_path: Path) -> None:
    _write(tmp_path, "a.zip", "b.zip", "LICENSE")
    with pytest.raises(ConfigError, match=r"no name in it tells the format \(2 .zip: no reader for such files"):
        _plan(tmp_path)


def test_the_card_of_a_repository_of_datasets_is_no_data(tmp_path: Path) -> None:
    _write(tmp_path, "data/a.jsonl", "dataset_infos.json")
    plan = _plan(tmp_path)
    assert (_read(plan, tmp_path), _skipped(plan, tmp_path)) == (["data/a.jsonl"], {"dataset_infos.json": SAVED})


def test_state_files_of_datasets(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"id": ["a"], "text": ["x"]})
    with (
        pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as w,
    ):
        w.write_table(table)
    _write(tmp_path, "state.json", "dataset_info.json")
    plan = _plan(tmp_path)
    assert _read(plan, tmp_path) == ["data-00000-of-00001.arrow"]
    assert set(_skipped(plan, tmp_path).values()) == {SAVED}


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    _write(tmp_path, "a.jsonl")
    odd = os.fsencode(tmp_path) + b"/m\xf6wen.jsonl"
    with open(odd, "w") as file:  # noqa: PTH123
        file.write('{"id": "odd", "text": "x"}\n')
    with open(odd + b".zip", "w") as file:  # noqa: PTH123
        file.write("")
    plan = _plan(tmp_path)
    assert _read(plan, tmp_path) == ["a.jsonl", f"file://{tmp_path}/m%F6wen.jsonl"]
    assert _skipped(plan, tmp_path) == {f"file://{tmp_path}/m%F6wen.jsonl.zip": NO_READER}


def test_a_name_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    _write(tmp_path, "a[1].jsonl", "b c#d?.jsonl")
    assert len(list_files(str(tmp_path / "a[1].jsonl"), {}).files) == 1
    assert len(list_files((tmp_path / "b c#d?.jsonl").as_uri(), {}).files) == 1
