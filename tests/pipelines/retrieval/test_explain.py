"""An explanation's parts add up to the score that the search showed, at every level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.config import ConfigError
from pipelines.retrieval.explain.explanation import ColbertMatch, join_pieces, mark
from pipelines.retrieval.explain.tokens import aligned_spans
from pipelines.retrieval.index import Index, open_index
from tests.indexes import WordEmbedder, make_index

QUERY = "scheduler reads the dirty pages"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "rrf"},
        {"fusion": "dbsf"},
        {"fusion": "zscore", "weights": {"dense": 1, "bm25": 0.5, "colbert": 2}},
        {"fusion": "weighted", "weights": {"dense": 0.4, "sparse": 0.2, "colbert": 0.4}},
        {"mode": "colbert"},
        {"mode": "sparse"},
        {"mode": "bm25"},
    ],
)
def test_parts_sum_to_the_score_of_the_search(index: Index, options: dict) -> None:
    for rank, hit in enumerate(index.search(QUERY, k=3, **options), start=1):
        explained = index.explain(QUERY, hit.chunk_id, **options)
        assert explained.score == pytest.approx(hit.score, abs=1e-5)
        assert sum(c.part for c in explained.channels.values()) == pytest.approx(hit.score, abs=1e-5)
        assert sum(m.product for m in explained.sparse) == pytest.approx(hit.scores["sparse"], abs=1e-5)
        assert sum(m.part for m in explained.colbert) == pytest.approx(hit.scores["colbert"], abs=1e-5)
        assert {n: c.score for n, c in explained.channels.items()} == pytest.approx(dict(hit.scores), abs=1e-5)
        assert explained.rank <= rank


@pytest.mark.parametrize("pooling", ["none", "sequential2", "sequential3", "distinct"])
@pytest.mark.parametrize("codec", ["sign", "rotated_sign", "float16"])
def test_colbert_matches_name_the_tokens_behind_pooled_vectors(tmp_path: Path, pooling: str, codec: str) -> None:
    texts = {"a": "red green blue red yellow", "b": "nothing of the kind"}
    index = open_index(make_index(tmp_path, texts, codec=codec, pooling=pooling), embedder=WordEmbedder())
    explained = index.explain("yellow red", "a")
    (hit,) = [h for h in index.search("yellow red") if h.chunk_id == "a"]
    assert sum(m.part for m in explained.colbert) == pytest.approx(hit.scores["colbert"], abs=1e-5)
    yellow, red = explained.colbert
    assert "yellow" in {texts["a"][s:e] for s, e in yellow.spans}
    assert "red" in {texts["a"][s:e] for s, e in red.spans}
    if pooling == "distinct":
        assert red.spans == ((0, 3), (15, 18))


def test_sparse_matches_have_both_weights_and_every_place(index: Index) -> None:
    explained = index.explain("scheduler scheduler", "d0002", mode="sparse")
    (match,) = explained.sparse
    assert match.query_weight == pytest.approx(np.sqrt(2))
    assert explained.text[slice(*match.spans[0])] == "scheduler"


def test_a_row_that_was_not_found_is_explained_all_the_same(index: Index) -> None:
    explained = index.explain("scheduler 17", "d0100", mode="bm25")
    assert explained.rank == 0
    assert explained.score == 0
    assert "not among the candidates" in str(explained)


def test_it_prints_as_text_and_as_html(index: Index) -> None:
    explained = index.explain(QUERY, "d0002")
    assert "dense" in str(explained)
    assert "<mark" in explained._repr_html_()
    assert explained.to_dict()["channels"]["dense"]["score"] == explained.channels["dense"].score


def test_unknown_ids_and_injections_are_just_unknown(index: Index) -> None:
    with pytest.raises(ConfigError, match="no document or chunk \"x' OR '1'='1\""):
        index.explain(QUERY, "x' OR '1'='1")
    with pytest.raises(ConfigError, match="id: expected a string, got int"):
        index.explain(QUERY, 7)  # type: ignore[arg-type]


def test_marks_escape_the_text_and_join_overlaps() -> None:
    html = mark("a <b> c", {(2, 5): 1.0, (4, 7): 0.5})
    assert "&lt;b&gt;" in html
    assert html.count("<mark") == 2
    assert "<b>" not in html


def test_spans_survive_instructions_special_tokens_and_truncation() -> None:
    text_ids, starts, ends = np.array([5, 6, 7, 8]), np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7])
    model = np.array([90, 91, 5, 6, 7, 99])
    spans = aligned_spans(model, text_ids, starts, ends)
    assert spans.tolist() == [[-1, -1], [-1, -1], [0, 1], [2, 3], [4, 5], [-1, -1]]


def test_word_pieces_are_joined_to_words_of_the_text() -> None:
    matches = (
        ColbertMatch("bio", ("bio",), 0.8, 0.1, 0.08, ((4, 7),), (0, 3)),
        ColbertMatch("##mat", ("##mech",), 0.4, 0.1, 0.04, ((7, 11),), (3, 6), continues=True),
        ColbertMatch("[SEP]", (), 0.3, 0.1, 0.03, ()),
        ColbertMatch("heat", ("cold",), 0.5, 0.2, 0.1, ((17, 21),), (7, 11)),
    )
    words = join_pieces(matches, "biomat heat", "the biomechanics cold")
    assert [(w.query_word, w.matched) for w in words] == [("biomat", ("biomechanics",)), ("heat", ("cold",))]
    assert words[0].part == pytest.approx(0.12)
    assert words[0].similarity == pytest.approx(0.6)


def test_marks_keep_the_texts_colour_for_dark_pages() -> None:
    assert "color:inherit" in mark("a b", {(0, 1): 1.0})


def test_an_explanation_shows_the_text(index: Index) -> None:
    assert "*scheduler*" in str(index.explain("scheduler", "d0002"))
