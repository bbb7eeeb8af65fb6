"""The index on ids finds what a scan finds, and is built and brought up to date only where it pays."""

from __future__ import annotations

from pathlib import Path

import lance
import pytest

from pipelines.retrieval.index import open_index
from pipelines.search_indexes import document_ids
from pipelines.search_indexes.document_ids import update_document_id_index
from pipelines.store.documents import find_rows
from pipelines.store.maintain import optimize
from pipelines.store.status import read_status
from pipelines.store.table import open_table, sql_in
from tests.indexes import WordEmbedder, corpus, make_index


def plan_of(uri: str) -> str:
    scanner = lance.dataset(f"{uri}/documents.lance").scanner(columns=["doc_id"], filter=sql_in("doc_id", ["d0001"]))
    return str(scanner.explain_plan())


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return make_index(tmp_path, corpus(160), fragment_rows=4)


def test_a_small_table_gets_none(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_ids, "MIN_FRAGMENTS", 41)
    assert not update_document_id_index(uri)
    assert "ScalarIndexQuery" not in plan_of(uri)


def test_documents_are_found_replaced_and_deleted_through_it(uri: str) -> None:
    assert update_document_id_index(uri)
    assert "ScalarIndexQuery" in plan_of(uri)
    index = open_index(uri, embedder=WordEmbedder())
    index.upsert([{"doc_id": "d0001", "text": "another text"}, {"doc_id": "new", "text": "a new text"}])
    index.delete(["d0002", "nobody"])
    dataset = lance.dataset(f"{uri}/documents.lance")
    found = find_rows(dataset, ["d0000", "d0001", "d0002", "new"], ("doc_id", "text"))
    assert dict(zip(found["doc_id"].to_pylist(), found["text"].to_pylist(), strict=True)) == {
        "d0000": corpus(1)["d0000"],
        "d0001": "another text",
        "new": "a new text",
    }
    assert dataset.count_rows() == 160


def test_it_is_brought_up_to_date_when_enough_is_missing_and_by_optimize(uri: str) -> None:
    update_document_id_index(uri)
    index = open_index(uri, embedder=WordEmbedder())
    index.upsert([{"doc_id": f"new{i}", "text": f"new text {i}"} for i in range(5)])
    assert not update_document_id_index(uri)
    assert update_document_id_index(uri, stale=0)
    assert open_table(uri).index_statistics("doc_id_idx")["num_unindexed_rows"] == 0
    index.delete(["new1"])
    optimize(uri)
    assert read_status(uri).last_job == "upsert"  # a compaction that moved an index cannot be read back by pylance 14
    dataset = lance.dataset(f"{uri}/documents.lance")
    assert find_rows(dataset, [f"new{i}" for i in range(5)]).num_rows == 4
    assert open_table(uri).index_statistics("doc_id_idx")["num_unindexed_rows"] == 0
