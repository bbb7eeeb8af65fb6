"""An index of an earlier format opens, gives the scores that it gave, and is brought up to date without embedding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from pipelines.config import load_config, read_search_config
from pipelines.indexing.build import build_index
from pipelines.integrity.check import check_index
from pipelines.retrieval import open_index
from pipelines.store import evolve
from pipelines.store.commit import CommitError
from pipelines.store.documents import hold_lease, target_of
from pipelines.store.evolve import upgrade_hashes
from pipelines.store.hashes import hash_content, hash_metadata
from pipelines.store.migrate import migrate_index
from pipelines.store.schema import FORMAT_VERSION, Identity
from pipelines.store.table import open_table

ROOT = Path(__file__).resolve().parents[3]
VERSIONS = ROOT / "tests" / "formats"
METADATA = ("lang", "year", "tags")


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return shutil.copytree(VERSIONS / "v1", tmp_path / "v1")


def table(folder: Path) -> pa.Table:
    return lance.dataset(str(folder / "index" / "documents.lance")).to_table()


def upgrade(folder: Path) -> lance.LanceDataset:
    target = target_of(open_table(str(folder / "index")), "test")
    with hold_lease(target) as lease:
        return upgrade_hashes(target, lease)


def test_format_1_gives_the_scores_that_it_gave(v1: Path) -> None:
    index = open_index(str(v1 / "index"))
    of_before = read_search_config(ROOT / "configs/search/without-smoothing.yaml").model_dump(exclude_unset=True)
    for key, expected in json.loads((v1 / "scores.json").read_text()).items():
        mode, _, query = key.partition(": ")
        hits = index.search(query, k=5, **{**of_before, "mode": mode}, group_by=None)
        assert [hit.chunk_id for hit in hits] == [chunk for chunk, _ in expected], key
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], rel=1e-5), key


def test_format_1_gets_two_hashes_and_nothing_else_changes(v1: Path) -> None:
    before = table(v1)
    upgraded = upgrade(v1)
    after = table(v1)
    kept = [name for name in before.column_names if name != "content_hash"]
    assert after.select(kept).equals(before.select(kept))
    identity = Identity.from_metadata(upgraded.schema.metadata)
    assert identity is not None
    assert identity.format_version == 2
    metadata = {name: after[name] for name in METADATA}
    assert after["metadata_hash"].to_pylist() == hash_metadata(metadata, len(after)).to_pylist()
    whole = after.filter(pa.compute.equal(after["chunk_count"], 1))
    assert whole["content_hash"].to_pylist() == hash_content(whole["text"].combine_chunks()).to_pylist()
    documents = [json.loads(line) for line in (v1 / "documents.jsonl").read_text().splitlines()]
    long = next(f"{row['title']} {row['text']}" for row in documents if row["id"] == "long")
    cut = after.filter(pa.compute.equal(after["doc_id"], "long"))
    assert set(cut["content_hash"].to_pylist()) == set(hash_content(pa.array([long])).to_pylist())
    version = upgraded.version
    assert upgrade(v1).version == version


def test_an_upgrade_that_died_goes_on_where_it_stopped(v1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolve, "FRAGMENTS_PER_COMMIT", 1)
    real, calls = evolve.commit_updates, []

    def dying(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 2:
            raise CommitError("killed")
        return real(*arguments)

    monkeypatch.setattr(evolve, "commit_updates", dying)
    with pytest.raises(CommitError):
        upgrade(v1)
    half = table(v1)["metadata_hash"].null_count
    assert 0 < half < len(table(v1))
    assert open_index(str(v1 / "index")).search("copper bridge", k=1, mode="bm25").ids == ["d5"]
    upgrade(v1)
    assert table(v1)["metadata_hash"].null_count == 0
    assert len(calls) == 3


def test_an_upsert_upgrades_too(v1: Path) -> None:
    index = open_index(str(v1 / "index"))
    index.upsert([{"doc_id": "by-hand", "text": "A letter in the garden.", "lang": "fr", "year": 2001}])
    after = table(v1)
    assert after["metadata_hash"].null_count == 0
    row = after.filter(pa.compute.equal(after["doc_id"], "by-hand")).to_pylist()
    assert [(r["lang"], r["text"]) for r in row] == [("fr", "A letter in the garden.")]


@pytest.mark.ray
@pytest.mark.parametrize("metadata", ["[lang, year, tags]", "[lang, year]", "[lang, year, tags, title]"])
def test_the_next_build_embeds_nothing_that_is_there(ray_session: None, v1: Path, metadata: str) -> None:
    """Also where the same build drops a column or adds one; what it embeds is what the upsert had replaced."""
    drop = "[]" if "tags" in metadata else "[tags]"
    config = load_config(
        None,
        [
            f"input.columns.metadata={metadata}", f"job.drop_columns={drop}", "chunk.size=32", "ray.progress=false",
            "embedders.0.compute.dtype=fp32", "embedders.0.outputs=[dense, sparse, colbert]",
        ],
        input={"paths": [str(v1 / "documents.jsonl")]},
        index={"uri": str(v1 / "index")},
    )  # fmt: skip
    vectors = {r["chunk_id"]: r["minilm_dense"] for r in table(v1).to_pylist() if r["doc_id"] not in ("d5", "by-hand")}
    summary = build_index(config)
    assert (summary.embedded.documents, summary.changed, summary.new, summary.gone) == (1, 1, 0, 1)
    after = {row["chunk_id"]: row for row in table(v1).to_pylist()}
    assert {name: after[name]["minilm_dense"] for name in vectors} == vectors
    if "title" in metadata:
        assert after["long#1"]["title"] == "A long one"
    again = build_index(config.model_copy(update={"job": replace_drop(config)}))
    assert (again.embedded.rows, again.metadata_only, again.unchanged) == (0, 0, 7)


def replace_drop(config: Any) -> Any:
    return config.job.model_copy(update={"drop_columns": ()})


@pytest.mark.parametrize("version", sorted(folder.name for folder in VERSIONS.iterdir() if folder.is_dir()))
def test_every_format_is_migrated_once_and_answers_as_before(version: str, tmp_path: Path) -> None:
    folder = shutil.copytree(VERSIONS / version, tmp_path / version)
    uri = str(folder / "index")
    done = migrate_index(uri)
    assert (done.before, done.after) == (int(version.removeprefix("v")), FORMAT_VERSION)
    assert check_index(uri).sound
    for key, expected in json.loads((folder / "scores.json").read_text()).items():
        mode, _, query = key.partition(": ")
        if mode != "hybrid":  # its fusion may change between releases; what is stored may not
            hits = open_index(uri).search(query, k=5, mode=mode, group_by=None)
            assert [hit.chunk_id for hit in hits] == [chunk for chunk, _ in expected], key
    again = migrate_index(uri)
    assert (again.before, again.version) == (FORMAT_VERSION, done.version)
    assert "nothing to do" in again.text()
