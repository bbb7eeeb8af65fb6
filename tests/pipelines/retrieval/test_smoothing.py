"""Smoothing over near documents: the rule by hand, what it leaves alone, parts that add up, how it is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.config import InvalidRequest
from pipelines.retrieval.fusion import FusionRule, default_fusion, resolve_fusion
from pipelines.retrieval.index import Index
from pipelines.retrieval.smoothing import FALL, NEIGHBOURS, SMOOTHED_ROWS, best_places, build_graph

QUERY = "scheduler reads dirty pages"


def unit(*vectors: tuple[float, ...]) -> np.ndarray:
    rows = np.array(vectors, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_row_rises_to_the_weighted_mean_and_falls_a_part_of_the_way() -> None:
    fused, vectors = np.array([1.0, 3.0, 2.0]), unit((1, 0), (1, 1), (-1, 0))
    places = best_places(fused)
    assert places.tolist() == [1, 2, 0]
    smooth = build_graph(places, fused, vectors[places]).smoother(fused, 2.0)
    weight = 2 * 0.5**2  # strength x cosine^4 at 45 degrees
    mean = [(1 + weight * 3) / (1 + weight), (3 + weight * 1) / (1 + weight)]
    np.testing.assert_allclose(smooth(fused), [mean[0], 3 + FALL * (mean[1] - 3), 2], rtol=1e-6)
    parts = [np.array([0.5, 1.0, 2.0]), np.array([0.5, 2.0, 0.0])]
    np.testing.assert_allclose(smooth(parts[0]) + smooth(parts[1]), smooth(fused), rtol=1e-12)


def test_rows_alone_equal_rows_and_rows_further_down_keep_their_scores() -> None:
    rng = np.random.default_rng(0)
    fused = np.sort(rng.random(80))[::-1]
    fused[SMOOTHED_ROWS : SMOOTHED_ROWS + 3] = fused[SMOOTHED_ROWS - 1]
    places = best_places(fused)
    assert len(places) == SMOOTHED_ROWS + 3
    graph = build_graph(places, fused, np.eye(80, dtype=np.float32)[places])
    assert graph.neighbours.shape == (SMOOTHED_ROWS + 3, NEIGHBOURS)
    np.testing.assert_array_equal(graph.smoother(fused, 2.0)(fused), fused)
    vectors = unit(*rng.standard_normal((80, 16)))
    smoothed = build_graph(places, fused, vectors[places]).smoother(fused, 2.0)(fused)
    assert np.all(smoothed[places] != fused[places])
    np.testing.assert_array_equal(smoothed[len(places) :], fused[len(places) :])
    same = build_graph(places, fused, np.repeat(vectors[:1], len(places), axis=0)).smoother(np.full(80, 0.25), 2.0)
    np.testing.assert_allclose(same(np.full(80, 0.25)), 0.25, rtol=1e-12)


def test_one_candidate_and_none() -> None:
    for n in (0, 1):
        fused = np.ones(n)
        graph = build_graph(best_places(fused), fused, np.ones((n, 4), np.float32) / 2)
        np.testing.assert_array_equal(graph.smoother(fused, 2.0)(fused), fused)


def test_explained_parts_add_up_to_the_smoothed_score(index: Index) -> None:
    plain = index.search(QUERY, k=20, fusion="zscore", smoothing=0)
    hits = index.search(QUERY, k=20, fusion="zscore", smoothing=2)
    assert [hit.score for hit in plain] != [hit.score for hit in hits]
    for hit in hits[:3]:
        told = index.explain(QUERY, hit.id, fusion="zscore", smoothing=2)
        assert told.score == pytest.approx(hit.score, rel=1e-9)
        assert sum(part.part for part in told.channels.values()) == pytest.approx(hit.score, rel=1e-9)
        assert {c: part.score for c, part in told.channels.items()} == pytest.approx(dict(hit.scores))


def test_the_default_goes_with_the_default_fusion_of_fitted_heads() -> None:
    channels = ("dense", "colbert", "bm25")
    default = default_fusion("mine", channels, fitted=True)
    assert default.smoothing > 0
    assert default_fusion("BAAI/bge-m3", channels).smoothing == 0
    assert default_fusion("mine", ("dense", "bm25"), fitted=True).smoothing == 0
    assert resolve_fusion(default, channels, None, {"dense": 1}).smoothing == default.smoothing
    assert resolve_fusion(default, channels, "rrf", None).smoothing == 0
    assert resolve_fusion(default, channels, "rrf", None, 1.0).smoothing == 1.0
    assert resolve_fusion(default, channels, None, None, 0).smoothing == 0


@pytest.mark.parametrize("value", [-1, "much", True, float("nan")])
def test_what_is_no_strength_is_refused(index: Index, value: object) -> None:
    with pytest.raises(InvalidRequest, match="smoothing: must be a number that is 0 or more"):
        index.search(QUERY, smoothing=value)  # type: ignore[arg-type]


def test_without_dense_vectors_nothing_is_smoothed(index: Index) -> None:
    generator = index.candidate_generator
    rule = FusionRule("zscore", {"bm25": 1.0}, 2.0)
    (found,) = index.candidates(index.encode([QUERY]), ["bm25"], 10)
    assert generator.with_graph(found, rule).graph is not None
    lexical = type(generator)({"bm25": generator.channels["bm25"]}, generator.snapshot)
    assert lexical.with_graph(found, rule).graph is None
