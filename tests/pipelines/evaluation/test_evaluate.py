"""Measures against values by hand, runs against the searches that they stand for, tuning against planted truths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.config import ConfigError, SearchConfig
from pipelines.evaluation import evaluate, read_qrels, read_queries, tune
from pipelines.evaluation.metrics import interval, paired_p, per_query
from pipelines.evaluation.report import rules_of
from pipelines.evaluation.runs import fused_run, rank
from pipelines.evaluation.tune import features
from pipelines.retrieval.fusion import FusionRule
from pipelines.retrieval.index import Index, open_index
from tests.conftest import ROOT
from tests.indexes import WordEmbedder, corpus, make_index

TEXTS = corpus(300)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return open_index(make_index(tmp_path_factory.mktemp("evaluate"), TEXTS, codec="sign"), embedder=WordEmbedder())


@pytest.fixture(scope="module")
def queries() -> dict[str, str]:
    """Each asks for one sentence by some of its words."""
    return {f"q{i}": " ".join(TEXTS[f"d{i:04d}"].split()[1:6]) + f" {i}" for i in range(0, 300, 15)}


@pytest.fixture(scope="module")
def qrels(queries: dict[str, str]) -> dict[str, dict[str, int]]:
    return {q: {f"d{int(q[1:]):04d}": 1} for q in queries}


def test_measures_are_those_of_trec() -> None:
    run = {"a": {"x": 3.0, "y": 2.0, "z": 1.0}, "b": {"x": 1.0}}
    values = per_query(run, {"a": {"y": 1, "w": 1}, "b": {"v": 1}, "c": {"x": 1}}, ["a", "b", "c"])
    ideal = 1 + 1 / np.log2(3)
    np.testing.assert_allclose(values["nDCG@10"], [(1 / np.log2(3)) / ideal, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(values["R@100"], [0.5, 0, 0])
    np.testing.assert_allclose(values["MRR@10"], [0.5, 0, 0])
    np.testing.assert_allclose(values["MAP"], [0.25, 0, 0])


def test_intervals_and_tests_repeat_and_mean_something() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(200)
    assert interval(a) == interval(a)
    assert interval(a)[0] < a.mean() < interval(a)[1]
    assert paired_p(a, a) == 1.0
    assert paired_p(a + 0.1, a) < 0.001
    assert paired_p(a + rng.normal(0, 0.3, 200), a) > 0.01


def test_every_run_is_there_with_its_interval_and_test(index: Index, queries: dict, qrels: dict) -> None:
    result = evaluate(index, queries, qrels, rules={"raw": FusionRule("weighted", {"dense": 1, "sparse": 0.3})})
    tree = json.loads(json.dumps(result.to_dict()))
    assert set(tree["runs"]) == {"dense", "sparse", "colbert", "bm25", "hybrid", "rrf", "raw"}
    assert set(tree["runs"]["bm25"]) == {"nDCG@10", "R@100", "MRR@10", "MAP"}
    assert tree["runs"]["bm25"]["MRR@10"] > 0.9
    assert set(tree["versus_bm25"]) == set(tree["runs"]) - {"bm25"}
    low, high = tree["intervals"]["dense"]["nDCG@10"]
    assert low <= tree["runs"]["dense"]["nDCG@10"] <= high
    assert "hybrid" in result.text()
    assert "<table" in result._repr_html_()
    assert result.to_pandas().loc["bm25", "nDCG@10"] == pytest.approx(tree["runs"]["bm25"]["nDCG@10"])


def test_a_run_ranks_as_a_search_does(index: Index, queries: dict, qrels: dict) -> None:
    result = evaluate(index, queries, qrels)
    for query_id, text in list(queries.items())[:5]:
        for mode in ("bm25", "dense", "colbert", "hybrid"):
            ranked = sorted(result.runs[mode][query_id].items(), key=lambda item: (-item[1], item[0]))
            hits = index.search(text, k=10, mode=mode)
            np.testing.assert_allclose([s for _, s in ranked[:10]], [h.score for h in hits], rtol=1e-4, atol=1e-5)


def test_a_document_counts_once_with_its_best_chunk(tmp_path: Path) -> None:
    texts = {"a#0": "red apple", "a#1": "red red", "b#0": "green pear", "c#0": "red green"}
    index = open_index(make_index(tmp_path, texts), embedder=WordEmbedder())
    result = evaluate(index, {"q": "red apple"}, {"q": {"a": 1}})
    assert list(result.runs["dense"]["q"]).count("a") == 1
    assert result.runs["dense"]["q"]["a"] == pytest.approx(1.0)
    assert set(result.runs["dense"]["q"]) <= {"a", "b", "c"}


def test_rerankers_score_the_top_of_the_hybrid(index: Index, queries: dict, qrels: dict) -> None:
    class Exact:
        def score(self, query: str, passages: list[str]) -> list[float]:
            number = query.rsplit(" ", 1)[1]
            return [float(f"case {number} " in passage) for passage in passages]

    result = evaluate(index, queries, qrels, rerankers={"exact": Exact()}, rerank_k=50)
    assert result.means()["exact"]["MRR@10"] == 1.0


def test_trec_runs_can_be_read_back(index: Index, queries: dict, qrels: dict, tmp_path: Path) -> None:
    result = evaluate(index, queries, qrels)
    paths = result.write_runs(tmp_path)
    assert {p.name for p in paths} == {f"{name}.trec" for name in result.runs}
    first = (tmp_path / "bm25.trec").read_text().splitlines()[0].split()
    assert first[0] == "q0"
    assert first[1] == "Q0"
    assert first[3] == "1"
    import ir_measures

    again = list(ir_measures.read_trec_run(str(tmp_path / "bm25.trec")))
    assert len(again) == sum(len(d) for d in result.runs["bm25"].values())


def test_beir_and_trec_files_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"_id": "1", "text": "one"}\n{"_id": 2, "text": "two"}\n')
    (tmp_path / "q.tsv").write_text("1\tone\n2\ttwo\n")
    assert read_queries(tmp_path / "q.jsonl") == read_queries(tmp_path / "q.tsv") == {"1": "one", "2": "two"}
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t1\n2\td 2\t0\n")
    (tmp_path / "trec").write_text("1 0 d1 1\n2 0 d2 0\n")
    assert read_qrels(tmp_path / "beir.tsv") == {"1": {"d1": 1}, "2": {"d 2": 0}}
    assert read_qrels(tmp_path / "trec") == {"1": {"d1": 1}, "2": {"d2": 0}}


def test_too_few_candidates_for_recall_are_refused(index: Index, queries: dict, qrels: dict) -> None:
    with pytest.raises(ConfigError, match="candidates: must be at least 100 for recall@100, got 50"):
        evaluate(index, queries, qrels, candidates=50)


def test_tuning_measures_as_the_evaluation_does(index: Index, queries: dict, qrels: dict) -> None:
    ranked = rank(index, queries)
    channels = tuple(index.channels)
    weights = {"dense": 1.0, "sparse": 0.2, "colbert": 0.5, "bm25": 0.7}
    rule = FusionRule("zscore", weights, 2.0)
    ranked = [replace(q, found=index.candidate_generator.with_graph(q.found, rule)) for q in ranked]
    table = features(ranked, qrels, rule, channels)
    ours = table.ndcg(np.array([weights[c] for c in channels]) / sum(weights.values()))
    theirs = per_query(fused_run(ranked, rule), qrels, list(queries))["nDCG@10"]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_tuning_writes_a_config_only_if_fusing_pays(index: Index, queries: dict, qrels: dict, tmp_path: Path) -> None:
    bm25 = tune(index, queries, qrels)
    assert bm25.channels["bm25"].mean() > 0.9
    if not bm25.beats_best_channel:
        with pytest.raises(ConfigError, match=r"tune: the tuned hybrid \(.*\) does not beat .* no config is written"):
            bm25.write(tmp_path / "search.yaml")
        assert not (tmp_path / "search.yaml").exists()
        assert "DOES NOT BEAT" in bm25.text()


def test_tuning_finds_that_two_halves_make_a_whole(index: Index, tmp_path: Path) -> None:
    """Half of the relevance follows BM25, half ColBERT: no channel alone can see both."""
    texts = {f"q{i}": " ".join(TEXTS[f"d{i:04d}"].split()[1:6]) for i in range(0, 300, 6)}
    qrels = {}
    for judged in rank(index, texts):
        both = {c: [judged.documents[np.searchsorted(judged.found.positions, p)] for p in top.positions[:5]]
                for c, top in judged.found.tops.items()}  # fmt: skip
        qrels[judged.query_id] = dict.fromkeys((*both["bm25"][:3], *both["dense"][:3]), 1)
    found = tune(index, texts, qrels)
    assert found.beats_best_channel
    found.write(tmp_path / "search.yaml")
    config = SearchConfig.model_validate(yaml.safe_load((tmp_path / "search.yaml").read_text()))
    assert config.weights == dict(found.weights)
    assert 0 < len(index.search("kernel", k=3, weights=config.weights, fusion=config.fusion)) <= 3


def test_tuning_needs_queries_for_its_folds(index: Index, queries: dict, qrels: dict) -> None:
    few = dict(list(queries.items())[:6])
    with pytest.raises(ConfigError, match="folds: 5 folds need 10 judged queries or more, there are 6"):
        tune(index, few, qrels)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "search").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_is_a_search_config(index: Index, path: Path) -> None:
    config = SearchConfig.model_validate(yaml.safe_load(path.read_text()))
    rule = rules_of(index, {path.stem: config})[path.stem]
    assert rule.fusion == config.fusion
    assert len(index.search("the kernel", k=3, weights=config.weights, fusion=config.fusion)) == 3
