"""Every channel against a plain reference over the whole table; fusion, filters, paging, grouping, snapshots."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from actors.codecs.table import TRAINED, decode, encode, get_codec
from actors.kernels.jit import HAS_NUMBA
from pipelines.config import search_options
from pipelines.retrieval import filters
from pipelines.retrieval.channels import colbert
from pipelines.retrieval.index import Index, open_index
from pipelines.search_indexes.vectors import update_vector_indexes
from tests.indexes import WordEmbedder, corpus, documents, make_index

QUERY = "scheduler reads dirty pages"
TEXTS = list(corpus().values())
IDS = list(corpus())


def reference(channel: str, query: str = QUERY, codec: str = "float32") -> np.ndarray:
    """Scores of all documents by plain numpy."""
    embedder = WordEmbedder()
    q, d = embedder.embed_queries([query]), embedder.embed_corpus(TEXTS)
    if channel == "dense":
        return d.dense @ q.dense[0]
    if channel == "sparse":
        weights = dict(zip(*q.sparse.row(0), strict=True))
        return np.array([sum(weights.get(t, 0) * w for t, w in zip(*d.sparse.row(i), strict=True)) for i in range(400)])
    stored_as = get_codec(codec, TRAINED[codec].train(d.colbert.vectors) if codec in TRAINED else None)
    rows = [decode(encode(d.colbert.row(i), stored_as), stored_as, 32) for i in range(400)]
    return np.array([(q.colbert.vectors @ row.T).max(axis=1).mean() for row in rows])


@pytest.mark.parametrize("channel", ["dense", "sparse", "colbert"])
def test_a_channel_gives_the_exact_best(index: Index, channel: str) -> None:
    hits = index.search(QUERY, k=20, mode=channel)
    expected = reference(channel)
    np.testing.assert_allclose([h.score for h in hits], np.sort(expected)[::-1][:20], rtol=1e-5)
    for hit in hits:
        assert hit.score == pytest.approx(expected[IDS.index(hit.chunk_id)], rel=1e-5)
        assert hit.scores[channel] == hit.score
        assert set(hit.scores) == {"dense", "sparse", "colbert", "bm25"}


@pytest.mark.parametrize("codec", ["float16", "int8", "bits2", "sign", "rotated_sign", "sign_half", "pq"])
def test_colbert_scores_what_the_codec_stored(tmp_path: Path, codec: str) -> None:
    index = open_index(make_index(tmp_path, corpus(), codec=codec, full_text=False), embedder=WordEmbedder())
    expected = reference("colbert", codec=codec)
    hits = index.search(QUERY, k=10, mode="colbert")
    np.testing.assert_allclose([h.score for h in hits], np.sort(expected)[::-1][:10], rtol=1e-4, atol=1e-5)


def test_bm25_is_lances_score_and_ranks_rare_words_first(index: Index) -> None:
    hits = index.search("scheduler 17", k=5, mode="bm25")
    assert hits[0].text.endswith("in case 17 of batch4")
    raw = lance.dataset(index.snapshot.dataset.uri).scanner(full_text_query="scheduler 17", limit=1).to_table()
    assert hits[0].score == pytest.approx(raw["_score"][0].as_py())


def test_candidates_have_every_channels_exact_score(index: Index) -> None:
    queries = index.encode([QUERY])
    (found,) = index.candidates(queries, list(index.channels), 15)
    for channel in ("dense", "sparse", "colbert"):
        np.testing.assert_allclose(found.scores[channel], reference(channel)[found.positions], rtol=1e-5, atol=1e-6)
    everything = index.channels["bm25"].top(queries, 400, None)[0]
    bm25 = np.zeros(400, np.float32)
    bm25[everything.positions] = everything.scores
    np.testing.assert_allclose(found.scores["bm25"], bm25[found.positions], rtol=1e-5)


def test_a_channel_that_has_no_say_is_scored_for_the_page_alone(index: Index) -> None:
    weights = {"dense": 1.0, "colbert": 1.0}
    queries, request = index.encode([QUERY]), index.request(search_options(k=5, weights=weights, fusion="weighted"))
    assert index.candidates_for(queries, request)[0].scores.keys() == weights.keys()
    hits = index.search(QUERY, k=5, weights=weights, fusion="weighted")
    rows = index.snapshot.matching(" OR ".join(f"chunk_id = '{hit.chunk_id}'" for hit in hits))
    for channel in ("sparse", "bm25"):
        by_id = dict(zip(sorted(hits.ids), index.channels[channel].scores(queries, 0, rows), strict=True))
        assert {hit.chunk_id: hit.scores[channel] for hit in hits} == pytest.approx(by_id)
    explained = index.explain(QUERY, hits.ids[0], weights=weights, fusion="weighted")
    assert explained.channels.keys() == {"dense", "sparse", "colbert", "bm25"}


@pytest.mark.parametrize("where", [None, "chunk_id >= 'd0300'"])
def test_bm25_of_a_row_is_one_score_whoever_asks_and_whatever_is_indexed(tmp_path: Path, where: str | None) -> None:
    texts = corpus()
    indexed, late = dict(list(texts.items())[:300]), dict(list(texts.items())[300:])
    uri = make_index(tmp_path, indexed)
    more = documents(late, WordEmbedder(), "float32", "none", {})
    lance.write_dataset(more, uri + "/documents.lance", mode="append")
    index = open_index(uri, embedder=WordEmbedder())
    queries, bm25 = index.encode([QUERY]), index.channels["bm25"]
    expected = bm25.top(queries, 400, None)[0].at(np.arange(400))
    assert np.count_nonzero(expected[300:])
    np.testing.assert_array_equal(bm25.scores(queries, 0, np.arange(290, 310)), expected[290:310])
    hits = index.search(QUERY, k=400, mode="bm25", where=where)
    assert len(hits) == np.count_nonzero(expected if where is None else expected[300:])
    assert [hit.score for hit in hits] == [expected[IDS.index(hit.chunk_id)] for hit in hits]
    assert index.search(QUERY, k=5, where=where)[0].scores["bm25"] in expected


def test_hybrid_with_raw_weights_is_m3s_weighted_mean(index: Index) -> None:
    weights = {"dense": 1.0, "sparse": 0.3, "colbert": 1.0}
    hits = index.search(QUERY, k=5, weights=weights, fusion="weighted", candidates=400)
    expected = (reference("dense") + 0.3 * reference("sparse") + reference("colbert")) / 2.3
    np.testing.assert_allclose([h.score for h in hits], np.sort(expected)[::-1][:5], rtol=1e-5)


@pytest.mark.parametrize("scored", [0, 400])
@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse", "colbert", "bm25"])
def test_a_filter_holds_in_every_channel_before_the_cut(
    index: Index, mode: str, scored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "SELECTIVE_ROWS", scored)
    hits = index.search(QUERY, k=400, mode=mode, where="year = 2003 AND kind = 'k1'", candidates=400)
    assert {(h.metadata["year"], h.metadata["kind"]) for h in hits} == {(2003, "k1")}
    if mode == "dense":
        assert len(hits) == sum(i % 20 == 3 and i % 3 == 1 for i in range(400))


@pytest.mark.parametrize("rescored", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"fusion": "zscore", "offset": 3}, {"mode": "colbert"}, {"group_by": "kind"}, {"mode": "bm25"}],
    ids=str,
)
def test_a_list_of_queries_gives_what_each_gives_alone(
    uri: str, options: dict[str, Any], rescored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colbert, "COLBERT_SCAN_BYTES", 0 if rescored else 2**26)
    index = open_index(uri, embedder=WordEmbedder())
    queries = [QUERY, "timer releases a socket", "nothing of all that", "case 7 of batch7"]
    for query, together in zip(queries, index.search(queries, **options), strict=True):
        alone = index.search(query, **options)
        assert [hit.chunk_id for hit in together] == [hit.chunk_id for hit in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-6)
            assert one.scores == pytest.approx(other.scores, abs=1e-6)
            assert one.passage == other.passage


def test_a_filter_that_nothing_meets_gives_no_hits(index: Index) -> None:
    hits = index.search(QUERY, where="year = 1066")
    assert len(hits) == 0
    assert "nothing found" in hits._repr_html_()
    assert list(hits.to_pandas().columns)[:3] == ["rank", "doc_id", "chunk_id"]


def test_queries_in_a_batch_get_the_same_answers_as_alone(index: Index) -> None:
    queries = [QUERY, "timer flushes the clock", "network"]
    for together, query in zip(index.search(queries, k=7), queries, strict=True):
        alone = index.search(query, k=7)
        assert together.ids == alone.ids
        np.testing.assert_allclose([h.score for h in together], [h.score for h in alone], rtol=1e-5)


def test_offset_continues_the_page(index: Index) -> None:
    both = index.search(QUERY, k=10)
    assert index.search(QUERY, k=5, offset=5).ids == both.ids[5:]


def test_k_beyond_the_table_gives_the_table(index: Index) -> None:
    assert len(index.search(QUERY, k=10_000, mode="dense")) == 400


def test_grouping_keeps_the_best_of_each_group(index: Index) -> None:
    hits = index.search(QUERY, k=3, group_by="kind", group_size=2, candidates=400)
    kinds = [h.metadata["kind"] for h in hits]
    assert len(hits) == 6
    assert kinds[0::2] == kinds[1::2]
    assert len(set(kinds)) == 3
    assert hits[0].chunk_id == index.search(QUERY, k=1, candidates=400)[0].chunk_id


def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path) -> None:
    texts = dict.fromkeys(("c", "a", "d", "b", "e"), "the very same words")
    index = open_index(make_index(tmp_path, texts, codec="sign", fragment_rows=2), embedder=WordEmbedder())
    for mode in ("hybrid", "dense", "sparse", "colbert", "bm25"):
        assert index.search("same words", k=3, mode=mode).ids == ["a", "b", "c"]


def test_deleted_rows_are_never_found_and_positions_stay_right(tmp_path: Path) -> None:
    uri = make_index(tmp_path, corpus(), codec="sign")
    lance.dataset(uri + "/documents.lance").delete("chunk_id IN ('d0003', 'd0150', 'd0399')")
    index = open_index(uri, embedder=WordEmbedder())
    assert len(index) == 397
    for mode in ("hybrid", "dense", "sparse", "colbert", "bm25"):
        for hit in index.search("driver releases the clock case 399 150", k=50, mode=mode):
            assert hit.text == corpus()[hit.chunk_id]
            assert hit.chunk_id not in ("d0003", "d0150", "d0399")


def test_an_open_index_does_not_see_what_is_written_meanwhile(tmp_path: Path) -> None:
    uri = make_index(tmp_path, corpus(50))
    before = open_index(uri, embedder=WordEmbedder())
    more = documents({"new": "zebra crossing"}, WordEmbedder(), "float32", "none", {})
    lance.write_dataset(more, uri + "/documents.lance", mode="append")
    for mode in ("hybrid", "dense", "sparse", "bm25"):
        assert "new" not in before.search("zebra crossing", mode=mode).ids
        assert open_index(uri, embedder=WordEmbedder()).search("zebra crossing", mode=mode).ids[0] == "new"
    assert "new" not in open_index(uri, embedder=WordEmbedder(), version=before.version).search("zebra crossing").ids


def test_without_memory_columns_are_streamed_with_the_same_answers(uri: str, index: Index) -> None:
    streamed = open_index(uri, embedder=WordEmbedder(), memory=0)
    for mode in ("hybrid", "dense", "sparse", "colbert"):
        assert streamed.search(QUERY, k=20, mode=mode).ids == index.search(QUERY, k=20, mode=mode).ids


def test_reranking_by_channel_and_by_object(index: Index) -> None:
    by_colbert = index.search(QUERY, k=10, mode="dense", rerank="colbert", rerank_k=50)
    scores = [h.scores["colbert"] for h in by_colbert]
    assert scores == sorted(scores, reverse=True)
    assert [h.score for h in by_colbert] == scores

    class Shortest:
        def score(self, query: str, passages: list[str]) -> list[float]:
            return [-len(p) for p in passages]

    hits = index.search(QUERY, k=3, rerank=Shortest(), rerank_k=100)
    assert hits[0].scores["rerank"] == -min(len(h.text) for h in index.search(QUERY, k=100))


def test_hits_print_well_everywhere(index: Index) -> None:
    hits = index.search("scheduler <b>reads</b>", k=3)
    frame = hits.to_pandas()
    assert frame["rank"].tolist() == [1, 2, 3]
    assert frame["doc_id"].tolist() == hits.ids
    assert {"dense", "sparse", "colbert", "bm25", "year"} <= set(frame.columns)
    assert "3 hits for" in repr(hits)
    page = hits._repr_html_()
    assert "scheduler &lt;b&gt;reads" in page
    assert hits.ids[0] in page
    assert hits.to_dict()["hits"][0]["scores"].keys() == hits[0].scores.keys()


def test_retrieval_imports_neither_ray_nor_torch() -> None:
    code = "import sys, pipelines.retrieval; print('ray' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_vector_index_is_asked_with_its_own_metric_and_refined_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = make_index(tmp_path, corpus(), full_text=False)
    before = open_index(uri, embedder=WordEmbedder()).search(QUERY, k=20, mode="dense")
    assert update_vector_indexes(uri) == {"words": None}
    assert update_vector_indexes(uri, kind="IVF_PQ") == {"words": "IVF_PQ"}
    index = open_index(uri, embedder=WordEmbedder())
    found = index.channels["dense"].vector_index
    assert (found.metric, found.partitions, found.kind) == ("dot", 1, "IVF_PQ")
    approximate = index.search(QUERY, k=20, mode="dense")
    assert len(set(approximate.ids) & set(before.ids)) >= 15
    expected = dict(zip(IDS, reference("dense"), strict=True))
    for hit in approximate:
        assert hit.score == pytest.approx(expected[hit.chunk_id], rel=1e-5)
    assert index.search(QUERY, k=20, mode="dense", exact=True).ids == before.ids
    filtered = index.search(QUERY, k=50, mode="dense", where="chunk_id < 'd0030'")
    assert len(filtered) == 30
    assert sorted(filtered.ids) == IDS[:30]
    filtered = index.search(QUERY, k=400, mode="dense", where="chunk_id >= 'd0030'", candidates=400)
    assert sorted(filtered.ids) == IDS[30:]
    assert len(index.search(QUERY, mode="dense", where="chunk_id = 'none'")) == 0
    monkeypatch.setattr(filters, "SELECTIVE_ROWS", 0)
    by_index = index.search(QUERY, k=400, mode="dense", where="chunk_id >= 'd0030'", candidates=400)
    assert [(h.id, h.score) for h in by_index] == [(h.id, h.score) for h in filtered]


def test_on_a_large_table_colbert_ranks_what_the_others_bring(
    index: Index, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colbert, "COLBERT_SCAN_BYTES", 100)
    large = open_index(uri, embedder=WordEmbedder())
    found = large.search(QUERY, k=10, mode="colbert")
    brought = {p for c in ("dense", "sparse", "bm25") for p in large.search(QUERY, k=200, mode=c).ids}
    assert set(found.ids) <= brought
    assert large.search(QUERY, k=10, mode="colbert", exact=True).ids == index.search(QUERY, k=10, mode="colbert").ids
    assert len(large.search(QUERY, k=10)) == 10


def test_sparse_always_brings_rows_for_colbert(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colbert, "COLBERT_SCAN_BYTES", 100)
    large = open_index(uri, embedder=WordEmbedder())
    queries = large.encode([QUERY])
    brought = {
        searched: set(large.candidates(queries, searched, 20)[0].tops) - {"colbert"}
        for searched in [("dense", "colbert"), ("dense", "bm25", "colbert"), ("sparse", "colbert")]
    }
    assert brought == {
        ("dense", "colbert"): {"dense", "sparse"},
        ("dense", "bm25", "colbert"): {"dense", "bm25", "sparse"},
        ("sparse", "colbert"): {"sparse"},
    }


@pytest.mark.skipif(not HAS_NUMBA, reason="without kernels every row is scored exactly")
@pytest.mark.parametrize(
    ("fusion", "lexical", "codec"),
    [("weighted", "sparse", "sign"), ("zscore", "sparse", "bits2"), ("zscore", "bm25", "rotated_sign")],
)
def test_rough_scores_choose_rows_and_exact_ones_rank_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: str, lexical: str, codec: str
) -> None:
    uri = make_index(tmp_path, corpus(), codec=codec, full_text=lexical == "bm25")
    weights = {"dense": 1.0, lexical: 0.3, "colbert": 1.0}
    expected = open_index(uri, embedder=WordEmbedder()).search(
        QUERY, k=10, fusion=fusion, weights=weights, candidates=400
    )
    monkeypatch.setattr(colbert, "COLBERT_SCAN_BYTES", 0)
    large = open_index(uri, embedder=WordEmbedder())
    request = large.request(search_options(k=10, fusion=fusion, weights=weights, candidates=25))
    (found,) = large.candidates_for(large.encode([QUERY]), request)
    assert len(found.positions) == 25
    hits = large.search(QUERY, k=10, fusion=fusion, weights=weights, candidates=25)
    assert [h.score for h in hits] == pytest.approx([h.score for h in expected], rel=1e-5)
