"""Query tokens weighed by how many rows have them: the numbers, the switch, and that an explanation still adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.retrieval.encoder import pieces
from pipelines.retrieval.fusion import SMOOTHING, FusionRule
from pipelines.retrieval.index import Index, open_index
from pipelines.search_indexes.document_frequencies import (
    DocumentFrequencies,
    read_document_frequencies,
    write_document_frequencies,
)
from pipelines.store.table import open_table
from tests.indexes import VOCABULARY, WordEmbedder, corpus, make_index, word_id

QUERY = "scheduler reads dirty pages"
TEXTS = corpus(60)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = make_index(tmp_path_factory.mktemp("rarity"), TEXTS)
    counts = np.zeros(VOCABULARY, np.int64)
    counts[[word_id(word) for word in QUERY.split()]] = [1, 30, 5, 60]
    write_document_frequencies(open_table(uri), "words", DocumentFrequencies(60, counts))
    return uri


def opened(uri: str, idf_weighting: bool | None) -> Index:
    return open_index(uri, embedder=WordEmbedder(), idf_weighting=idf_weighting)


def test_lexical_weights_are_root_times_idf_and_colbert_weights_idf(uri: str) -> None:
    plain, weighed = (opened(uri, rarity).encode([QUERY]) for rarity in (False, True))
    statistics = read_document_frequencies(open_table(uri), "words")
    assert statistics is not None
    (ids, before), (same, after) = plain.sparse(0), weighed.sparse(0)
    np.testing.assert_array_equal(ids, same)
    np.testing.assert_allclose(after, np.sqrt(before) * statistics.idf(ids), rtol=1e-6)
    assert plain.token_weights is None
    order = [word_id(word) for word in QUERY.split()]
    np.testing.assert_allclose(weighed.token_weights, statistics.idf(np.array(order)), rtol=1e-6)


def test_the_pieces_of_a_word_share_its_weight_as_their_root(uri: str) -> None:
    index = opened(uri, True)
    whole = index.encode([QUERY]).token_weights
    tokenizer = index.encoder.embedder.tokenizer
    tokenizer.continuing = tokenizer.continuing.copy()
    tokenizer.continuing[word_id("reads")] = True  # as if "scheduler reads" were one word of two pieces
    shared = index.encode([QUERY]).token_weights
    assert whole is not None
    assert shared is not None
    np.testing.assert_allclose(shared, whole / np.sqrt([2, 2, 1, 1]), rtol=1e-6)


def test_no_word_goes_on_from_one_query_to_the_next() -> None:
    continuing = np.array([True, True, False, True, False])
    assert pieces(continuing, np.array([0, 1, 1, 4, 5])).tolist() == [1, 1, 2, 2, 1]
    assert pieces(np.zeros(0, bool), np.array([0, 0])).tolist() == []


def test_other_models_keep_m3s_scores_unless_asked(uri: str) -> None:
    unasked, off, on = (
        [hit.score for hit in opened(uri, rarity).search(QUERY, mode="sparse")] for rarity in (None, False, True)
    )
    assert unasked == off
    assert on != off


def test_an_explanation_of_weighed_tokens_adds_up(uri: str) -> None:
    index = opened(uri, True)
    hit = index.search(QUERY, mode="sparse")[0]
    explained = index.explain(QUERY, hit.chunk_id, mode="sparse")
    assert sum(match.product for match in explained.sparse) == pytest.approx(hit.score, rel=1e-5)


class Fitted(WordEmbedder):
    """An embedder whose heads `tridex fit-heads` made."""

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "fitted_heads": True}


def test_fitted_heads_are_searched_as_the_packaged_ones_are(tmp_path: Path) -> None:
    index = open_index(make_index(tmp_path, TEXTS, embedder=Fitted()), embedder=Fitted())
    assert index.idf_weighting
    weights = {"dense": 1.0, "sparse": 0.1, "colbert": 1.3, "bm25": 0.3}
    assert index.default_fusion == FusionRule("zscore", weights, SMOOTHING)
