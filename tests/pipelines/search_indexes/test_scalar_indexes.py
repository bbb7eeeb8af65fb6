"""Scalar indexes on metadata columns: chosen by the values, complete after writes, the same rows with and without."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from pipelines.retrieval.index import open_index
from pipelines.search_indexes import scalar_indexes
from pipelines.search_indexes.scalar_indexes import choose_scalar_kind, update_scalar_indexes
from pipelines.store.table import open_table
from tests.indexes import WordEmbedder, corpus, documents, make_index

CONDITIONS = ("year = 2003 AND kind = 'k1'", "year >= 2010 OR kind IN ('k0', 'k2')", "n < 30", "NOT kind = 'k1'")


def metadata(n: int) -> dict[str, pa.Array]:
    return {
        "year": pa.array([2000 + i % 20 for i in range(n)], pa.int64()),
        "kind": pa.array([f"k{i % 3}" if i % 7 else None for i in range(n)]),
        "n": pa.array(range(n), pa.int64()),
        "tags": pa.array([[f"t{i % 5}"] for i in range(n)], pa.list_(pa.string())),
    }


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array(["de", "en", None] * 100), "BITMAP"),
        (pa.array([True, False]), "BITMAP"),
        (pa.array(range(1000)), "BTREE"),
        (pa.array([f"id{i}" for i in range(1000)]), "BTREE"),
        (pa.array(["a long abstract " * 20] * 3), None),
        (pa.array([["a"], ["b"]], pa.list_(pa.string())), "LABEL_LIST"),
        (pa.array([{"a": 1}]), None),
        (pa.nulls(3), None),
    ],
)
def test_the_kind_follows_the_values(values: pa.Array, kind: str | None) -> None:
    assert choose_scalar_kind(values) == kind


def test_all_metadata_columns_of_a_large_table_are_indexed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = make_index(tmp_path, corpus(), metadata=metadata(400), full_text=False)
    assert update_scalar_indexes(uri) == []
    monkeypatch.setattr(scalar_indexes, "NO_INDEX_BELOW", 400)
    assert update_scalar_indexes(uri, ["source"]) == ["source", "year", "kind", "n", "tags"]
    kinds = {name: d.index_type for name, d in open_table(uri).indexes().items()}
    assert kinds == {"source": "Bitmap", "year": "Bitmap", "kind": "Bitmap", "n": "BTree", "tags": "LabelList"}
    assert update_scalar_indexes(uri) == []


def test_filters_find_the_same_rows_with_indexes_after_appends_deletions_and_new_metadata(tmp_path: Path) -> None:
    texts, columns = corpus(), metadata(400)
    uri = make_index(tmp_path, texts, metadata=columns)
    update_scalar_indexes(uri, list(columns))
    index = open_index(uri, embedder=WordEmbedder())
    late = {f"late{i}": f"late page {i}" for i in range(20)}
    lance.write_dataset(
        documents(late, WordEmbedder(), "float32", "none", metadata(20)), f"{uri}/documents.lance", mode="append"
    )
    open_index(uri, embedder=WordEmbedder()).delete(["d0003", "d0043"])
    moved = [{"doc_id": i, "text": texts[i], "year": 1066, "kind": "k1", "n": 5} for i in ("d0005", "d0123")]
    open_index(uri, embedder=WordEmbedder()).upsert(moved)
    snapshot = open_index(uri, embedder=WordEmbedder()).snapshot
    assert index.snapshot.version < snapshot.version
    table = snapshot.dataset.to_table(columns=["chunk_id", *columns])
    assert len(snapshot.matching("year = 1066")) == 2
    for where in CONDITIONS:
        expected = snapshot.dataset.scanner(filter=where, use_scalar_index=False, columns=["chunk_id"]).to_table()
        found = table["chunk_id"].take(pa.array(snapshot.matching(where)))
        assert sorted(found.to_pylist()) == sorted(expected["chunk_id"].to_pylist())
        np.testing.assert_array_equal(np.flatnonzero(snapshot.matching_mask(where)), snapshot.matching(where))
