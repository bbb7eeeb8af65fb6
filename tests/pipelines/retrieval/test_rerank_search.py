"""A reranker as the second stage of a search: its score is one more channel of a hit."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.rerankers.registry import load_reranker
from pipelines.config import ConfigError
from pipelines.retrieval.index import Index
from tests.checkpoints_rerankers import build


def test_a_named_reranker_orders_the_best_hits(index: Index, tmp_path: Path) -> None:
    folder = str(build("bert", tmp_path / "model"))
    query = "the river and the city"
    hits = index.search(query, k=10, rerank=folder, rerank_k=10)
    expected = load_reranker(folder).score(query, [hit.text for hit in hits])
    assert [hit.scores["rerank"] for hit in hits] == pytest.approx(expected.tolist(), abs=2e-3)
    scores = [hit.scores["rerank"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert {hit.chunk_id for hit in hits} == {hit.chunk_id for hit in index.search(query, k=10)}


def test_a_reranker_that_is_not_there_is_a_wrong_request(index: Index, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rerank: model folder .* does not exist"):
        index.search("river", rerank=str(tmp_path / "nowhere"))
