"""A backup is one version of all tables, whole or refused, and a restored index answers as the first one did."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from pipelines import backup as backing
from pipelines.backup import CONTENTS, BackupFailed, back_up_index, restore_index
from pipelines.config import ConfigError
from pipelines.integrity.check import check_index
from pipelines.retrieval.index import open_index
from pipelines.search_indexes.document_ids import update_document_id_index
from pipelines.search_indexes.postings import update_postings
from pipelines.store.lease import acquire
from pipelines.store.maintain import optimize
from pipelines.store.table import open_table
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Fragments with deletions, changed metadata, three kinds of search indexes and some history."""
    years = pa.array([2000 + i % 5 for i in range(120)])
    made = make_index(tmp_path / "index", corpus(120), metadata={"year": years}, fragment_rows=3)
    update_postings(made)
    update_document_id_index(made)
    index = open_index(made, embedder=WordEmbedder())
    index.upsert([{"doc_id": "d0001", "text": corpus(2)["d0001"], "year": 1999}, {"doc_id": "new", "text": "a zebra"}])
    index.delete(["d0002", "d0077"])
    return made


def answers(uri: str) -> list[list[tuple[str, float]]]:
    index = open_index(uri, embedder=WordEmbedder())
    queries = ["scheduler locks the inode", "zebra"]
    return [[(h.chunk_id, h.score) for h in index.search(q, mode=m)] for q in queries for m in index.channels]


def test_a_restored_index_is_the_same_and_lives_on(uri: str, tmp_path: Path) -> None:
    made = back_up_index(uri, str(tmp_path / "backup"))
    assert made.tables["documents"] == open_table(uri).version
    assert "leases" not in made.tables
    assert lance.dataset(f"{uri}/documents.lance").tags.list() == {}
    open_index(uri, embedder=WordEmbedder()).delete(["new"])
    done = restore_index(str(tmp_path / "backup"), str(tmp_path / "again"))
    assert "and verified" in done.text("restored to")
    assert (len(done.files), done.bytes) == (len(made.files), made.bytes)
    again = str(tmp_path / "again")
    assert open_table(again).dataset.count_rows() == 119
    report = check_index(again)
    assert report.sound, report.text()
    assert {d.name for d in open_table(again).dataset.describe_indices()} == {"text_idx", "doc_id_idx"}
    restored = answers(again)
    assert restored[0][0][0] in corpus(120)
    open_index(again, embedder=WordEmbedder()).delete(["new"])
    assert answers(again) == answers(uri)
    assert optimize(again, keep_versions=timedelta(0), orphan_age=timedelta(0)).versions_removed
    assert check_index(again).sound


def test_a_backup_is_made_beside_a_writer_and_an_optimize(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = backing._copy_file, []

    def copy_late(*arguments: object) -> object:
        if not seen:
            seen.append(1)
            open_index(uri, embedder=WordEmbedder()).delete(["d0003"])
            optimize(uri, keep_versions=timedelta(0), orphan_age=timedelta(0))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backing, "THREADS", 1)
    monkeypatch.setattr(backing, "_copy_file", copy_late)
    with acquire(uri, "documents", "nightly", lease_seconds=1) as lease:
        lease.release()
        back_up_index(uri, str(tmp_path / "backup"))
    monkeypatch.undo()
    restore_index(str(tmp_path / "backup"), str(tmp_path / "again"))
    assert open_table(str(tmp_path / "again")).dataset.count_rows(filter="doc_id = 'd0003'") == 1
    assert check_index(str(tmp_path / "again")).sound


def test_a_damaged_or_incomplete_backup_is_refused_by_name(uri: str, tmp_path: Path) -> None:
    back_up_index(uri, str(tmp_path / "backup"))
    data = next((tmp_path / "backup" / "documents.lance" / "data").iterdir())
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BackupFailed, match=rf"{data.name}: is damaged in the backup"):
        restore_index(str(tmp_path / "backup"), str(tmp_path / "again"))
    with pytest.raises(ConfigError, match=r"there is no table|no such index"):
        open_table(str(tmp_path / "again"))
    data.unlink()
    with pytest.raises(BackupFailed, match="cannot be copied"):
        restore_index(str(tmp_path / "backup"), str(tmp_path / "third"))
    (tmp_path / "backup" / CONTENTS).unlink()
    with pytest.raises(ConfigError, match=f"not a whole backup: it has no {CONTENTS}"):
        restore_index(str(tmp_path / "backup"), str(tmp_path / "fourth"))


def test_nothing_is_overwritten(uri: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    for call in (lambda: back_up_index(uri, str(tmp_path / "full")), lambda: back_up_index(uri, uri)):
        with pytest.raises(ConfigError, match="holds something already"):
            call()
    back_up_index(uri, str(tmp_path / "backup"))
    with pytest.raises(ConfigError, match="holds something already"):
        restore_index(str(tmp_path / "backup"), uri)
    with pytest.raises(ConfigError, match="no such index"):
        back_up_index(str(tmp_path / "nowhere"), str(tmp_path / "b"))
    assert (tmp_path / "full" / "note").read_text() == "mine"
