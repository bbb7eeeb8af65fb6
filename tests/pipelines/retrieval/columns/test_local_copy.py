"""A local copy answers as the table does, whatever was appended, deleted or moved, and copies only what is new."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pytest

from pipelines.retrieval.channels import colbert
from pipelines.retrieval.columns import local_copy as local
from pipelines.retrieval.index import Index, open_index
from tests.indexes import WordEmbedder, corpus, documents, make_index

QUERY = "scheduler reads dirty pages"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return make_index(tmp_path / "index", corpus(), codec="sign")


def opened(uri: str, folder: Path, disk: int | None = None) -> Index:
    return open_index(uri, embedder=WordEmbedder(), memory=0, local=folder, disk=disk)


def same_answers(uri: str, folder: Path) -> Index:
    copied, plain = opened(uri, folder), open_index(uri, embedder=WordEmbedder(), memory=0)
    for mode in ("hybrid", "dense", "sparse", "colbert"):
        ours, theirs = copied.search(QUERY, k=20, mode=mode), plain.search(QUERY, k=20, mode=mode)
        assert [(h.chunk_id, h.score, dict(h.scores)) for h in ours] == [
            (h.chunk_id, h.score, dict(h.scores)) for h in theirs
        ]
    assert copied.warm() == dict.fromkeys(("dense", "sparse", "colbert"), "local")
    return copied


def copied_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every fragment copied from now on."""
    rows: list[int] = []
    append = local._append
    monkeypatch.setattr(local, "_append", lambda *a: (append(*a), rows.append(a[-1][a[4]])))
    return rows


def test_a_copy_answers_as_the_table_and_is_made_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = copied_rows(monkeypatch)
    same_answers(uri, tmp_path / "copy")
    assert sum(rows) == 3 * 400
    same_answers(uri, tmp_path / "copy")
    assert sum(rows) == 3 * 400


def test_appends_deletes_and_compaction_are_followed(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = same_answers(uri, tmp_path / "copy")
    first = before.search(QUERY, k=20).ids
    rows = copied_rows(monkeypatch)
    more = documents({f"n{i}": f"zzz timer {i}" for i in range(20)}, WordEmbedder(), "sign", "none", {})
    lance.write_dataset(more, uri + "/documents.lance", mode="append")
    same_answers(uri, tmp_path / "copy")
    assert rows == [20, 20, 20]
    lance.dataset(uri + "/documents.lance").delete("chunk_id IN ('d0002', 'd0003')")
    after = same_answers(uri, tmp_path / "copy")
    assert rows[3:] == [98, 98, 98]
    assert after.column_cache.whole("dense") is None
    lance.dataset(uri + "/documents.lance").optimize.compact_files(target_rows_per_fragment=1000)
    same_answers(uri, tmp_path / "copy")
    assert before.search(QUERY, k=20).ids == first


def test_a_copy_that_was_cut_off_is_finished(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = local._write, []

    def failing(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(local, "_write", failing)
    with pytest.warns(UserWarning, match="no local copy of words_dense in .*: No space left on device"):
        opened(uri, tmp_path / "copy").search(QUERY, mode="dense")
    monkeypatch.undo()
    same_answers(uri, tmp_path / "copy")


def test_what_the_disk_limit_does_not_allow_is_read_from_the_table(uri: str, tmp_path: Path) -> None:
    index = opened(uri, tmp_path / "copy", disk=60_000)
    held = index.column_cache.warm()
    assert set(held.values()) == {"local", "table"}
    plain = open_index(uri, embedder=WordEmbedder(), memory=0)
    assert index.search(QUERY, k=20).ids == plain.search(QUERY, k=20).ids


def test_rows_taken_from_a_copy_are_those_of_the_table(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colbert, "COLBERT_SCAN_BYTES", 0)
    index, positions = opened(uri, tmp_path / "copy"), np.array([399, 0, 105, 105, 7])
    stored = open_index(uri, embedder=WordEmbedder(), memory=0).column_cache
    assert np.array_equal(index.column_cache.take("dense", positions), stored.take("dense", positions))
    for output in ("sparse", "colbert"):
        ours, theirs = index.column_cache.take(output, positions), stored.take(output, positions)
        assert ours.to_arrow().equals(theirs.to_arrow())
