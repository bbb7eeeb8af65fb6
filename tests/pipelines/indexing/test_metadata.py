"""Metadata comes, changes and goes without a text being embedded; nothing of it is lost unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import pytest

from pipelines.config import BuildConfig, ConfigError, load_config
from pipelines.indexing.build import build_index
from pipelines.retrieval import open_index

pytestmark = pytest.mark.ray

ROWS = [{"id": f"d{i}", "text": f"This is text number {i}.", "lang": "en", "year": 2000 + i} for i in range(8)]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def configure(folder: Path, metadata: str, *overrides: str) -> BuildConfig:
    return load_config(
        None,
        ["ray.progress=false", f"input.columns.metadata={metadata}", "embedders.0.outputs=[dense]", *overrides],
        input={"paths": [str(folder / "a.jsonl")]},
        index={"uri": str(folder / "index")},
    )


def table(folder: Path) -> dict[str, dict[str, Any]]:
    rows = lance.dataset(str(folder / "index" / "documents.lance")).to_table().to_pylist()
    assert len({row["doc_id"] for row in rows}) == len(rows)
    return {row["doc_id"]: row for row in rows}


@pytest.fixture(scope="module")
def folder(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests below use one index, in order: each says what it starts from."""
    folder = tmp_path_factory.mktemp("metadata")
    write(folder, ROWS)
    assert build_index(configure(folder, "[lang]")).new == 8
    return folder


def test_the_whole_life_of_a_column(folder: Path) -> None:
    built = table(folder)
    with pytest.raises(ConfigError, match="metadata column 'lang', this job does not: name it in"):
        build_index(configure(folder, "[]"))
    assert table(folder) == built
    added = build_index(configure(folder, "[lang, year]"))
    assert (added.embedded.rows, added.metadata_only, added.metadata_rows, added.unchanged) == (0, 8, 8, 0)
    assert {name: row["year"] for name, row in table(folder).items()} == {row["id"]: row["year"] for row in ROWS}
    changed = [{**row, "lang": "de"} if row["id"] in ("d1", "d5") else row for row in ROWS[:-1]]
    changed[2] = {**changed[2], "text": "Another text."}
    write(folder, [*changed, {"id": "new", "text": "A new one.", "lang": "fr", "year": 1}])
    summary = build_index(configure(folder, "[year, lang]"))
    assert (summary.new, summary.changed, summary.metadata_only, summary.unchanged, summary.gone) == (1, 1, 2, 4, 1)
    assert (summary.embedded.documents, summary.metadata_rows) == (2, 2)
    for text in ("1 new, 1 changed, 2 with new metadata only, 4 the same, 1 gone from the input", "report      "):
        assert text in summary.text()
    rows = table(folder)
    assert {name for name, row in rows.items() if row["lang"] == "de"} == {"d1", "d5"}
    assert all(rows[name]["minilm_dense"] == built[name]["minilm_dense"] for name in built if name != "d2")
    assert open_index(str(folder / "index")).search("text", where="lang = 'de'", k=9).ids in (
        ["d1", "d5"],
        ["d5", "d1"],
    )
    dropped = build_index(configure(folder, "[year]", "job.drop_columns=[lang]"))
    assert (dropped.embedded.rows, dropped.unchanged + dropped.metadata_only) == (0, 8)
    assert "lang" not in table(folder)["d1"]
    again = build_index(configure(folder, "[year]", "job.drop_columns=[lang]"))
    assert (again.embedded.rows, again.metadata_only, again.unchanged) == (0, 0, 8)


def test_builds_and_upserts_know_each_others_documents(folder: Path) -> None:
    """Starts from eight documents with `year`."""
    before = table(folder)
    versions = lance.dataset(str(folder / "index" / "documents.lance")).version
    index = open_index(str(folder / "index"))
    same = {"doc_id": "d1", "text": before["d1"]["text"], "year": before["d1"]["year"]}
    assert index.upsert([same]) == 1
    assert lance.dataset(str(folder / "index" / "documents.lance")).version == versions
    assert index.upsert([{**same, "year": 1066}, {"doc_id": "mine", "text": "By hand.", "year": 7}]) == 2
    rows = table(folder)
    assert (rows["d1"]["year"], rows["d1"]["source"]) == (1066, before["d1"]["source"])
    assert rows["d1"]["minilm_dense"] == before["d1"]["minilm_dense"]
    given = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    write(folder, [*given, {"id": "mine", "text": "By hand.", "year": 7}])
    summary = build_index(configure(folder, "[year]"))
    assert (summary.embedded.rows, summary.metadata_only, summary.unchanged) == (0, 1, 8)
    assert table(folder)["d1"]["year"] == before["d1"]["year"]
