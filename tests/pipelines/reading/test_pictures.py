"""Pictures through a job: bytes, paths and URIs, what the index keeps of them, and what ends in the quarantine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.config import ConfigError, InputConfig, validate
from pipelines.reading.images import decode, stored_fields
from pipelines.reading.units import metadata_fields, plan_units, read_unit
from tests.checkpoints_vision import Visualized, build_visualized, drawn, encoded, hollow_png

PNG = encoded(drawn(1), "PNG")


def config_for(path: Path, **pictures: Any) -> InputConfig:
    return InputConfig(paths=(str(path),), pictures={"column": "image", **pictures})


def decoded(path: Path, **pictures: Any) -> pa.Table:
    config = config_for(path, **pictures)
    units = plan_units(config)
    fields = metadata_fields(config, units)
    return pa.concat_tables(decode(t, config, 32) for u in units for t in read_unit(u, config, 100, fields))


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_bytes_become_pixels_and_a_thumbnail_and_are_let_go(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", id=["a", "b"], text=["a panda", None], image=[PNG, None])
    table = decoded(path, thumbnail=20)
    assert "image" not in table.column_names
    assert len(table["pixels"][0].as_py()) == 32 * 32 * 3
    assert Image.open(io.BytesIO(table["thumbnail"][0].as_py())).size == (20, 13)
    assert table["error"].to_pylist() == [None, "there is neither a text nor a picture"]
    assert table["text"].to_pylist() == ["a panda", None]


def test_paths_start_at_the_file_that_names_them_and_stay_in_the_index(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)
    uris = ["pictures/a.png", f"file://{tmp_path}/pictures/a.png", str(tmp_path / "pictures/a.png"), "pictures/b.png"]
    path = write(tmp_path / "a.parquet", id=list("abcd"), text=[""] * 4, image=uris)
    table = decoded(path, thumbnail=0)
    assert table["image"].to_pylist() == uris
    assert "thumbnail" not in table.column_names
    first, *others = table["pixels"].to_pylist()
    assert first is not None
    assert others == [first, first, None]
    assert "pictures/b.png" in table["error"][3].as_py()


def test_bad_pictures_are_marked_and_named(tmp_path: Path) -> None:
    bad = [b"words", encoded(Image.new("RGB", (1, 1)), "PNG"), hollow_png(10_000, 10_000), PNG[:100], PNG]
    path = write(tmp_path / "a.parquet", id=list("abcde"), text=["t"] * 5, image=bad)
    table = decoded(path)
    errors = table["error"].to_pylist()
    parts = ["not readable as a picture", "too small", "100 megapixels, the limit is 64", "not readable"]
    assert [part in error for part, error in zip(parts, errors, strict=False)] == [True] * 4
    assert errors[4] is None
    assert table["text"].to_pylist() == [None] * 4 + ["t"]


def test_a_file_that_is_too_long_is_not_read_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    path = write(tmp_path / "a.parquet", id=["a"], text=[""], image=["a.png"])
    assert "longer than max_bytes (1,000)" in decoded(path, max_bytes=1000)["error"][0].as_py()


def test_an_unknown_scheme_is_the_rows_own_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", id=["a", "b"], text=["", "b"], image=["nosuch://x/y.png", None])
    errors = decoded(path)["error"].to_pylist()
    assert "nosuch" in errors[0]
    assert errors[1] is None


def test_ids_are_made_of_the_picture_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=["", ""], image=[PNG, encoded(drawn(2), "PNG")])
    ids = decoded(path)["doc_id"].to_pylist()
    assert ids == decoded(path)["doc_id"].to_pylist()
    assert len(set(ids)) == 2


def test_a_column_that_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    config = config_for(write(tmp_path / "a.parquet", id=["a"], text=["t"], image=[1]))
    with pytest.raises(ConfigError, match=r"input.pictures.column: 'image' is int64, not binary and not a string"):
        stored_fields(config, metadata_fields(config, plan_units(config)))


def tree(path: Path, built: Visualized, index: Path, **changes: Any) -> dict[str, Any]:
    embedder = {
        "name": "visual", "model": str(built.folder), "picture_weights": str(built.weights), "max_length": 40,
        "compute": {"dtype": "fp32", "threads": 1}, "pool": {"max_size": 1},
    }  # fmt: skip
    return {
        "input": {"paths": [str(path)], "pictures": {"column": "image", "thumbnail": 24}},
        "index": {"uri": str(index)},
        "embedders": [embedder],
        "job": {"quarantine_limit": 1.0},
        **changes,
    }


def test_pictures_need_a_model_that_sees_them_and_whole_documents(tmp_path: Path) -> None:
    job = {"input": {"paths": ["x"], "pictures": {"column": "image"}}, "index": {"uri": "y"}}
    with pytest.raises(ConfigError, match=r"input.pictures needs an embedder with picture_weights"):
        validate(job)
    with pytest.raises(ConfigError, match=r"chunk.mode must be whole where input.pictures is set"):
        validate({**job, "chunk": {"mode": "tokens"}})
    seeing = {**job, "embedders": [{"picture_weights": "w"}]}
    assert validate(seeing).chunking.mode == "whole"


def test_a_picture_model_cannot_be_added_to_an_index_that_keeps_no_pictures(tmp_path: Path) -> None:
    from pipelines.indexing.backfill import refuse_picture_backfill

    embedders = [{"name": "minilm"}, {"name": "visual", "model": "m", "picture_weights": "w"}]
    job = {"input": {"paths": ["x"], "pictures": {"column": "image"}}, "index": {"uri": "y"}, "embedders": embedders}
    refuse_picture_backfill(validate(job), {"minilm": ("sparse",)})
    with pytest.raises(ConfigError, match=r"embedders: visual sees pictures, which the index at y does not keep"):
        refuse_picture_backfill(validate(job), {"visual": ("dense",)})


@pytest.mark.ray
def test_an_index_of_pictures_is_searched_by_text_picture_and_both(ray_session: None, tmp_path: Path) -> None:
    from pipelines import build_index, open_index

    built = build_visualized("bert", tmp_path / "model")
    pictures = [encoded(drawn(i), "PNG") for i in range(6)]
    texts = ["a panda", "", "the river", "bear", "", "query"]
    path = write(
        tmp_path / "a.parquet",
        id=[f"d{i}" for i in range(8)],
        text=[*texts, "only text", "broken"],
        image=pa.array([*pictures, None, b"no picture"], pa.binary()),
    )
    summary = build_index(validate(tree(path, built, tmp_path / "index")))
    assert summary.rows_in_index == 7
    columns = lance.dataset(f"{tmp_path}/index/documents.lance").schema
    assert "thumbnail" in columns.names
    assert not {"image", "pixels"} & set(columns.names)
    quarantine = lance.dataset(f"{tmp_path}/index/quarantine.lance").to_table().to_pylist()
    assert [(row["doc_id"], "not readable as a picture" in row["error"]) for row in quarantine] == [("d7", True)]

    index = open_index(tmp_path / "index")
    assert index.search_picture(pictures[4]).ids[0] == "d4"
    assert index.search_picture(pictures[0], "a panda", mode="dense")[0].score == pytest.approx(1, abs=1e-4)
    assert index.search("only text", mode="dense")[0].scores["dense"] == pytest.approx(1, abs=1e-4)
    hits = index.search_picture(Image.open(io.BytesIO(pictures[1])), k=3)
    assert hits.ids[0] == "d1"
    assert hits.query == "picture"
    with pytest.raises(ConfigError, match="rerank: a reranker reads texts"):
        index.search_picture(pictures[1], rerank="colbert")
    assert hits._repr_html_().count("<img src='data:image/jpeg;base64,") == 3
    assert isinstance(hits.to_dict()["hits"][0]["metadata"]["thumbnail"], str)

    again = build_index(validate(tree(path, built, tmp_path / "index")))
    assert (again.unchanged, again.rows_in_index) == (7, 7)
    np.testing.assert_array_equal(
        open_index(tmp_path / "index").search_picture(pictures[4]).ids, index.search_picture(pictures[4]).ids
    )
