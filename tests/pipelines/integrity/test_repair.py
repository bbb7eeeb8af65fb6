"""An index is damaged in each way; the damage is named, and repaired where the table suffices."""

from __future__ import annotations

import shutil
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.integrity.check import check_index
from pipelines.integrity.repair import repair_index
from pipelines.search_indexes import document_frequencies
from pipelines.search_indexes.document_frequencies import count_document_frequencies, write_document_frequencies
from pipelines.search_indexes.document_ids import COLUMN, NAME
from pipelines.search_indexes.posting_blocks import Blocks
from pipelines.search_indexes.postings import find_segments, read_fragments, update_postings
from pipelines.store.table import open_table
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """60 documents in three fragments with a full-text index, one on ids and one on a filter, postings and counts."""
    monkeypatch.setattr(document_frequencies, "update_document_frequencies", lambda *_: {})
    monkeypatch.setattr("pipelines.integrity.repair.update_document_frequencies", lambda *_: {})
    uri = make_index(tmp_path / "index", corpus(60), metadata={"year": pa.array(range(60))}, fragment_rows=25)
    dataset = lance.dataset(f"{uri}/documents.lance")
    dataset.create_scalar_index(COLUMN, "BTREE", name=NAME)
    dataset.create_scalar_index("year", "BTREE")
    update_postings(uri)
    return uri


def problems(uri: str) -> list[str]:
    return [line for check in check_index(uri).checks for line in check.problems]


def postings_of(uri: str) -> Path:
    (folder,) = Path(uri).glob("postings_*.lance")
    return folder


def index_files(uri: str, name: str) -> list[Path]:
    (found,) = (d for d in lance.dataset(f"{uri}/documents.lance").describe_indices() if d.name == name)
    return sorted(Path(uri, "documents.lance/_indices", found.segments[0].uuid).iterdir())


def test_a_sound_index_needs_no_repair(index: str) -> None:
    assert check_index(index).sound, check_index(index).text()
    assert repair_index(index).done == ()


@pytest.mark.parametrize("name", ["text_idx", NAME, "year_idx"])
@pytest.mark.parametrize("damage", ["file gone", "cut off", "folder gone", "overwritten"])
def test_a_damaged_index_of_lance_is_built_again(index: str, name: str, damage: str) -> None:
    file = index_files(index, name)[0]
    size = file.stat().st_size
    if damage == "folder gone":
        shutil.rmtree(file.parent)
    elif damage == "file gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: size // 2] if damage == "cut off" else bytes(size))
    (problem,) = problems(index)
    assert problem.startswith(f"{name}: ")
    done = repair_index(index)
    assert done.check.sound, done.text()
    assert name in {d.name for d in lance.dataset(f"{index}/documents.lance").describe_indices()}


@pytest.mark.parametrize("damage", ["data gone", "data cut off", "manifests gone"])
def test_postings_whose_files_are_damaged_are_written_again(index: str, damage: str) -> None:
    folder = postings_of(index)
    (data,) = (folder / "data").iterdir()
    if damage == "manifests gone":
        shutil.rmtree(folder / "_versions")
    elif damage == "data gone":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:100])
    (problem,) = problems(index)
    assert problem.startswith(f"{folder.stem}: cannot be read: ")
    done = repair_index(index)
    assert done.check.sound, done.text()
    assert postings_of(index) != folder


def rewrite_postings(uri: str, change: str) -> None:
    """Replaces a segment's content by other postings than the table's, in a file that is whole."""
    snapshot = open_table(uri)
    ((info, dataset),) = find_segments(snapshot, "words")
    rows = read_fragments(snapshot, "words", snapshot.dataset.get_fragments())
    blocks = Blocks.of(rows)
    batches = [b.replace_schema_metadata(dataset.schema.metadata) for b in blocks.to_arrow()]
    table = pa.Table.from_batches(batches)
    if change == "fewer":
        table = table.slice(1)
    elif change == "weights":
        doubled = pa.array([2 * m for m in table["maximum"].to_pylist()], pa.float32())
        table = table.set_column(2, table.schema.field(2), doubled)
    else:
        table = table.set_column(
            0, table.schema.field(0), pa.array([t + 1 for t in table["token"].to_pylist()], pa.uint32())
        )
    lance.write_dataset(table, f"{uri}/{info.table}.lance", mode="overwrite")


@pytest.mark.parametrize(
    ("change", "said"), [("fewer", "missing"), ("weights", "another weight"), ("tokens", "no row")]
)
def test_postings_that_say_other_things_than_the_vectors(index: str, change: str, said: str) -> None:
    rewrite_postings(index, change)
    (problem,) = problems(index)
    assert said in problem
    assert repair_index(index).check.sound


def test_deleted_rows_may_stay_in_postings(index: str) -> None:
    lance.dataset(f"{index}/documents.lance").delete("doc_id IN ('d0003', 'd0040')")
    assert problems(index) == []


def test_document_frequencies_that_cannot_be_read_are_dropped(index: str) -> None:
    snapshot = open_table(index)
    write_document_frequencies(snapshot, "words", count_document_frequencies(snapshot, WordEmbedder(), 64))
    assert problems(index) == []
    (data,) = Path(index, "tokens_words.lance/data").iterdir()
    data.unlink()
    assert problems(index)[0].startswith("tokens_words: cannot be read")
    assert repair_index(index).check.sound


def test_exact_copies_are_removed_and_others_only_on_demand(index: str) -> None:
    path = f"{index}/documents.lance"
    rows = lance.dataset(path).to_table()
    lance.write_dataset(rows.slice(3, 2), path, mode="append")
    assert "2 rows repeat a chunk_id" in problems(index)
    done = repair_index(index)
    assert done.check.sound, done.text()
    assert lance.dataset(path).count_rows() == 60
    other = rows.slice(3, 1).set_column(rows.column_names.index("year"), "year", pa.array([7]))
    lance.write_dataset(other, path, mode="append")
    assert not repair_index(index).check.sound
    done = repair_index(index, remove_lost=True)
    assert done.check.sound, done.text()
    assert lance.dataset(path).count_rows() == 59
    assert "d0003" not in lance.dataset(path).to_table(columns=["doc_id"])["doc_id"].to_pylist()


@pytest.mark.parametrize("damage", ["gone", "cut off", "overwritten"])
def test_rows_whose_file_is_lost_are_removed_on_demand_alone(index: str, damage: str) -> None:
    dataset = lance.dataset(f"{index}/documents.lance")
    file = Path(index, "documents.lance/data", dataset.get_fragments()[1].metadata.files[0].path)
    size = file.stat().st_size
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: size // 2] if damage == "cut off" else bytes(size))
    assert any(line.startswith("fragment 1, 25 rows: ") for line in problems(index)), check_index(index).text()
    assert "restore a backup" in check_index(index).text()
    kept = repair_index(index)
    assert not kept.check.sound
    assert lance.dataset(f"{index}/documents.lance").count_rows() == 60
    done = repair_index(index, remove_lost=True)
    assert done.check.sound, done.text()
    left = lance.dataset(f"{index}/documents.lance").to_table(columns=["doc_id"])["doc_id"].to_pylist()
    assert left == [f"d{i:04d}" for i in range(60) if not 25 <= i < 50]


def test_a_lost_deletion_file_costs_its_fragment(index: str) -> None:
    lance.dataset(f"{index}/documents.lance").delete("doc_id = 'd0003'")
    (file,) = Path(index, "documents.lance/_deletions").iterdir()
    file.unlink()
    assert "fragment 0, 25 rows: its deletion file is gone" in problems(index)
    assert repair_index(index, remove_lost=True).check.sound
    assert lance.dataset(f"{index}/documents.lance").count_rows() == 35


def test_orphans_are_removed_on_demand_alone(index: str) -> None:
    stray = Path(index, "documents.lance/data/stray.lance")
    stray.write_bytes(b"x")
    repair_index(index)
    assert stray.exists()
    assert "1 files that nothing referred to: removed" in repair_index(index, remove_orphans=True).done
    assert not stray.exists()


def test_the_command(index: str) -> None:
    index_files(index, "text_idx")[0].unlink()
    run = CliRunner().invoke(app, ["check", index])
    assert run.exit_code == 1
    assert "remedy: `tridex check --repair`" in run.output
    assert CliRunner().invoke(app, ["check", index, "--remove-lost"]).exit_code != 0
    run = CliRunner().invoke(app, ["check", index, "--repair"])
    assert run.exit_code == 0, run.output
    assert "repaired full-text index: built" in run.output
