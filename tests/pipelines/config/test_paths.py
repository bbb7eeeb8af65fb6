"""One spelling of a path for the driver, workers, Lance and reports."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.config import ConfigError, absolute_model, absolute_uri, load_config, printable_uri, resolve_paths
from pipelines.store.datasets import check_writable
from pipelines.store.schema import table_uri


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("file:///a%20b", "/a b"),
        ("file:/a%20b", "/a b"),
        ("file://localhost/a%20b/c", "/a b/c"),
        ("/a%20b", "/a%20b"),
        ("/a//b/./c/", "/a/b/c"),
        ("s3://bucket/a%20b/", "s3://bucket/a%20b/"),
        ("memory://x", "memory://x"),
        ("", ""),
    ],
)
def test_uris_of_files_become_paths_and_others_stay(given: str, expected: str) -> None:
    assert absolute_uri(given) == expected


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("~/x") == f"{tmp_path}/x"
    assert absolute_uri("./idx") == absolute_uri("idx") == f"{tmp_path}/idx"
    assert absolute_uri("file:rel") == f"{tmp_path}/rel"
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    assert absolute_uri("link/../x") == os.path.realpath(tmp_path / "real" / "x")  # as the kernel has it
    assert table_uri("./idx", "documents") == f"{tmp_path}/idx/documents.lance"


def test_names_that_are_not_utf8_come_back() -> None:
    path = os.fsdecode(b"/data/m\xf6wen.jsonl")
    assert printable_uri(path) == "file:///data/m%F6wen.jsonl"
    assert absolute_uri(printable_uri(path)) == path
    assert printable_uri("/data/möwen.jsonl") == "/data/möwen.jsonl"


def test_a_line_end_in_a_name_does_not_break_a_message() -> None:
    assert printable_uri("/data/a\nb.jsonl") == "file:///data/a%0Ab.jsonl"
    assert absolute_uri("file:///data/a%0Ab.jsonl") == "/data/a\nb.jsonl"


def test_every_path_of_a_config_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "weights.pth").touch()
    config = load_config(
        input={"paths": "in/*.jsonl"},
        index={"uri": "file:idx"},
        embedders=[
            {"name": "a", "model": "models/mine", "picture_weights": "weights.pth"},
            {"name": "b", "model": "BAAI/bge-m3"},
        ],
    )
    found = resolve_paths(config)
    assert found.input.paths == (f"{tmp_path}/in/*.jsonl",)
    assert found.index.uri == f"{tmp_path}/idx"
    assert found.embedders[0].model == f"{tmp_path}/models/mine"
    assert found.embedders[0].picture_weights == f"{tmp_path}/weights.pth"
    assert found.embedders[1].model == "BAAI/bge-m3"
    assert resolve_paths(found) == found


def test_a_folder_named_as_the_packaged_model_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    assert absolute_model("all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"
    assert absolute_model("~/nowhere") == "~/nowhere"
    assert absolute_model("./all-MiniLM-L6-v2") == f"{tmp_path}/all-MiniLM-L6-v2"


def test_an_index_that_cannot_be_written_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"index\.uri: .*/file/idx: .*/file is a file, a folder is needed"):
        check_writable(str(tmp_path / "file" / "idx"))
    check_writable(str(tmp_path / "new" / "idx"))
    check_writable("s3://bucket/idx")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot be written by this user, or is on a read-only file system"):
        check_writable(str(tmp_path / "idx"))
