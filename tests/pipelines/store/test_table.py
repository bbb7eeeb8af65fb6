"""Positions and addresses translate into each other whatever was deleted; indexes are chosen by size."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pytest

from pipelines.config import ConfigError
from pipelines.search_indexes.document_frequencies import (
    DocumentFrequencies,
    count_document_frequencies,
    read_document_frequencies,
    update_document_frequencies,
    write_document_frequencies,
)
from pipelines.search_indexes.scalar_indexes import update_scalar_indexes
from pipelines.search_indexes.vectors import choose_kind, parameters, update_vector_indexes
from pipelines.store.conditions import check_filter
from pipelines.store.table import open_table
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return make_index(tmp_path, corpus(350), full_text=False)


def test_positions_and_addresses_are_inverse(uri: str) -> None:
    lance.dataset(uri + "/documents.lance").delete("chunk_id IN ('d0000', 'd0099', 'd0100', 'd0150', 'd0349')")
    snapshot = open_table(uri)
    positions = np.arange(len(snapshot))
    addresses = snapshot.rows.addresses(positions)
    scanned = snapshot.dataset.scanner(columns=["_rowaddr"], scan_in_order=True).to_table()["_rowaddr"].to_numpy()
    assert np.array_equal(addresses, scanned)
    shuffled = np.random.default_rng(0).permutation(positions)
    assert np.array_equal(snapshot.rows.positions(addresses[shuffled]), shuffled)
    everything = snapshot.dataset.scanner(columns=["chunk_id"], scan_in_order=True).to_table()["chunk_id"].to_numpy()
    assert snapshot.take(shuffled, ["chunk_id"])["chunk_id"].to_pylist() == everything[shuffled].tolist()


def test_addresses_that_are_gone_have_no_position(uri: str) -> None:
    lance.dataset(uri + "/documents.lance").delete("chunk_id = 'd0003'")
    rows = open_table(uri).rows
    gone = np.array([3, 2, 99 << 32, (3 << 32) | 50, (3 << 32) | 49], np.uint64)
    assert rows.positions(gone).tolist() == [-1, 2, -1, -1, 348]


def test_a_fragment_without_live_rows_is_no_trouble(uri: str) -> None:
    lance.dataset(uri + "/documents.lance").delete("chunk_id < 'd0100'")
    snapshot = open_table(uri)
    assert len(snapshot) == 250
    assert snapshot.take(np.array([0]), ["chunk_id"])["chunk_id"][0].as_py() == "d0100"
    assert snapshot.matching("chunk_id = 'd0349'").tolist() == [249]


@pytest.mark.parametrize("where", ["a = ';'", "`odd;name` = 1", "a = 'it''s; fine'", '"odd;name" > 2'])
def test_semicolons_in_quotes_are_allowed(where: str) -> None:
    check_filter(where)


def test_small_tables_get_no_vector_index() -> None:
    assert choose_kind(99_999, "auto") is None
    assert choose_kind(100_000, "auto") == "IVF_RQ"
    assert choose_kind(10, "IVF_PQ") == "IVF_PQ"
    with pytest.raises(ConfigError, match="vector index: 'HNSW' is unknown; there are auto, none, IVF_PQ"):
        choose_kind(10, "HNSW")  # type: ignore[arg-type]
    assert parameters("IVF_PQ", 10**6, 384, None) == {"num_partitions": 244, "num_sub_vectors": 48}
    assert parameters("IVF_RQ", 10**6, 384, 100) == {"num_partitions": 100}


def test_indexes_are_built_once_and_then_extended(uri: str) -> None:
    assert update_vector_indexes(uri, kind="IVF_PQ") == {"words": "IVF_PQ"}
    version = open_table(uri).version
    assert update_vector_indexes(uri, kind="IVF_PQ") == {"words": "IVF_PQ"}
    assert open_table(uri).version == version
    assert update_scalar_indexes(uri, ["source"]) == ["source"]
    assert update_scalar_indexes(uri, ["source"]) == []
    with pytest.raises(ConfigError, match="filter columns: the index has no column 'yaer'"):
        update_scalar_indexes(uri, ["yaer"])


def test_token_statistics_count_rows_not_places(tmp_path: Path) -> None:
    uri = make_index(tmp_path, {"a": "red red green", "b": "red blue", "c": "blue blue"}, full_text=False)
    snapshot = open_table(uri)
    assert read_document_frequencies(snapshot, "words") is None
    counted = count_document_frequencies(snapshot, _Lengths(WordEmbedder()), 64)
    red, blue, green = (int(WordEmbedder().tokenizer.offsets(w)[0][0]) for w in ("red", "blue", "green"))
    assert (counted.rows, *counted.counts[[red, blue, green]]) == (3, 2, 2, 1)
    write_document_frequencies(snapshot, "words", counted)
    again = read_document_frequencies(snapshot, "words")
    assert again is not None
    assert again.rows == 3
    np.testing.assert_allclose(again.idf(np.array([red, green, 10**6])), np.log1p([1.5 / 2.5, 2.5 / 1.5, 3.5 / 0.5]))


def test_tokens_are_counted_again_when_enough_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.text.tokenizer.load_tokenizer", lambda spec: _Lengths(WordEmbedder()))
    uri = make_index(tmp_path, {f"d{i}": "red green" for i in range(100)}, full_text=False)
    assert update_document_frequencies(uri) == {"words": 100}
    dataset = open_table(uri).dataset
    for n, counted in ((4, {}), (4, {"words": 108}), (0, {})):
        if n:
            lance.write_dataset(dataset.to_table(limit=n), dataset.uri, mode="append")
        assert update_document_frequencies(uri) == counted


def test_statistics_of_a_sample_are_spread_over_the_table(uri: str) -> None:
    counted = count_document_frequencies(open_table(uri), _Lengths(WordEmbedder()), 64, sample=50)
    assert counted.rows == 50
    assert isinstance(counted, DocumentFrequencies)


class _Lengths:
    """The tokenizer's own method, without instructions."""

    def __init__(self, embedder: WordEmbedder) -> None:
        self.embedder = embedder

    def tokenise(self, texts: list[str], max_length: int) -> object:
        return self.embedder.tokenise(texts, "passage", max_length)
