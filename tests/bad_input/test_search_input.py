"""Wrong searches, wrong indexes, wrong judgements: each refused with a message that names what is at fault."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import ConfigError
from pipelines.evaluation import evaluate, read_qrels, read_queries
from pipelines.retrieval.index import Index, open_index
from pipelines.store.schema import Identity
from pipelines.store.table import sql_in, sql_literal
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    texts = corpus(60)
    return make_index(tmp_path_factory.mktemp("bad"), texts, metadata={"year": pa.array(range(60))})


@pytest.fixture(scope="module")
def index(uri: str) -> Index:
    return open_index(uri, embedder=WordEmbedder())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: must be an integer of at least 1, got 0"),
        ({"k": -3}, "k: must be an integer of at least 1, got -3"),
        ({"k": 2.5}, "k: must be an integer of at least 1, got 2.5"),
        ({"k": True}, "k: must be an integer of at least 1, got True"),
        ({"offset": -1}, "offset: must be an integer of at least 0, got -1"),
        ({"candidates": 0}, "candidates: must be an integer of at least 1"),
        ({"mode": "semantic"}, "mode: 'semantic' is unknown; there are hybrid, dense, sparse, colbert, bm25"),
        ({"fusion": "max"}, "fusion: 'max' is unknown; there are zscore, weighted, rrf, dbsf"),
        ({"weights": {"dense": -1}}, r"weights\.dense: must be a number that is 0 or more, got -1"),
        ({"weights": {"dense": float("nan")}}, r"weights\.dense: must be a number"),
        ({"weights": {"dense": "1"}}, r"weights\.dense: must be a number that is 0 or more, got '1'"),
        ({"weights": {"dense": 0, "sparse": 0.0}}, "weights: at least one must be above 0"),
        ({"weights": {}}, "weights: at least one must be above 0"),
        ({"weights": {"splade": 1}}, "weights: the index has no channel 'splade'; it has dense, sparse"),
        ({"columns": ["yaer"]}, "columns: the index has no column 'yaer'; it has doc_id, chunk_id, year"),
        ({"group_by": "parent"}, "group_by: the index has no column 'parent'"),
        ({"group_by": "year", "group_size": 0}, "group_size: must be an integer of at least 1"),
        ({"rerank": 5}, r"rerank: expected a name or an object with \.score\(query, passages\), got 5"),
        ({"where": ""}, "where: the condition is empty"),
        ({"where": "   "}, "where: the condition is empty"),
        ({"where": 3}, "where: expected a SQL condition as a string, got int"),
        ({"where": ["year = 3"]}, "where: expected a SQL condition as a string, got list"),
        ({"where": "year = "}, "where: syntax error: Expected: an expression, found: EOF in 'year = '"),
        ({"where": "yaer = 3"}, r"where: No field named yaer.* in 'yaer = 3'"),
        ({"where": "year = 'abc'"}, "where: .*could not convert to literal of type 'Int64'"),
        ({"where": "year = 3; DROP TABLE documents"}, "where: one condition is expected, found ';'"),
        ({"where": "year = 3 UNION SELECT 1"}, "where: "),
        ({"where": "year + 1"}, "where: "),
    ],
)
def test_a_wrong_request_is_refused_by_its_argument(index: Index, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        index.search("kernel", **options)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "query 0: is empty"),
        (" \n\t", "query 0: is empty"),
        ("lone \ud800", "query 0: holds half of a surrogate pair"),
        (["kernel", ""], "query 1: is empty"),
        (["kernel", None], "query 1: expected a text, got NoneType"),
    ],
)
def test_a_query_must_be_a_text(index: Index, query: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        index.search(query)


def test_no_queries_give_no_answers(index: Index) -> None:
    assert index.search([]) == []


def test_a_semicolon_inside_a_value_is_a_value(index: Index) -> None:
    assert len(index.search("kernel", where="text = 'a;b'")) == 0


def test_a_query_longer_than_the_model_says_what_was_cut(index: Index) -> None:
    hits = index.search("kernel " * 200, k=3)
    assert len(hits) == 3
    assert hits.n_truncated == 200 + 1 - 64


@pytest.mark.parametrize(
    "query", ["内核如何写回脏页", "كيف يكتب النواة", "🙂🙂", "'; DROP TABLE documents; --", '"unclosed', "+ - * ( ["]
)
def test_any_text_is_a_query(index: Index, query: str) -> None:
    for mode in ("hybrid", "dense", "sparse", "colbert", "bm25"):
        for hit in index.search(query, k=3, mode=mode):
            assert np.isfinite(hit.score)


def test_a_channel_that_the_index_lacks_is_named(tmp_path: Path) -> None:
    embedder = WordEmbedder(outputs=("dense",))
    index = open_index(make_index(tmp_path, corpus(20), embedder=embedder, full_text=False), embedder=embedder)
    assert list(index.channels) == ["dense"]
    assert len(index.search("kernel", k=2)) == 2
    with pytest.raises(ConfigError, match="mode: the index has no sparse output; it has dense"):
        index.search("kernel", mode="sparse")
    with pytest.raises(ConfigError, match="mode: the index has no full-text index over the text; `tridex optimize`"):
        index.search("kernel", mode="bm25")
    with pytest.raises(ConfigError, match="rerank: the index has no channel 'colbert'; it has dense"):
        index.search("kernel", rerank="colbert")


def test_a_reranker_that_loses_passages_is_caught(index: Index) -> None:
    class Lossy:
        def score(self, query: str, passages: list[str]) -> list[float]:
            return [1.0]

    with pytest.raises(ConfigError, match="rerank: 60 passages were given, 1 scores came back"):
        index.search("kernel", rerank=Lossy())


def test_what_cannot_be_opened_says_why(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"nothing: no such index; `tridex build --index .*nothing` makes one"):
        open_index(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder: not an index: there is no table 'documents' in it"):
        open_index(tmp_path / "folder")
    lance.write_dataset(pa.table({"x": [1]}), tmp_path / "other" / "documents.lance")
    with pytest.raises(ConfigError, match="other: not an index: table 'documents' carries no tridex identity"):
        open_index(tmp_path / "other")
    with pytest.raises(ConfigError, match="no version 99 of table 'documents'"):
        open_index(uri, version=99)
    with pytest.raises(ConfigError, match="embedder: the index has no 'm3'; it has words"):
        open_index(uri, embedder="m3")


def test_a_newer_format_is_refused(tmp_path: Path, uri: str) -> None:
    identity = Identity.from_metadata(lance.dataset(uri + "/documents.lance").schema.metadata)
    assert identity is not None
    newer = dataclasses.replace(identity, format_version=99)
    table = pa.table({"doc_id": ["a"]}).replace_schema_metadata(newer.to_metadata())
    lance.write_dataset(table, tmp_path / "documents.lance")
    with pytest.raises(ConfigError, match="format_version 99 is newer than this program's 2; upgrade it"):
        open_index(tmp_path)


def test_an_index_of_another_model_names_the_field_that_differs(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"built with another model: embedders\.words\.model: index has 'words', you"):
        open_index(uri, embedder=WordEmbedder(model="other"))
    longer = WordEmbedder()
    longer.max_length = 128
    with pytest.raises(ConfigError, match=r"embedders\.words\.passage_max_length: index has 64, you have 128"):
        open_index(uri, embedder=longer)


@pytest.mark.parametrize("evil", ["x') OR ('1'='1", "' OR 1=1 --", "a''b", "\\'; DROP TABLE documents; --"])
def test_ids_are_bound_and_never_become_sql(tmp_path: Path, evil: str) -> None:
    index = open_index(make_index(tmp_path, {evil: "the kernel", "other": "the kernel"}), embedder=WordEmbedder())
    assert index.snapshot.matching(sql_in("chunk_id", [evil])).tolist() == [0]
    assert index.snapshot.matching(sql_in("chunk_id", [])).tolist() == []
    assert index.explain("kernel", evil).chunk_id == evil
    with pytest.raises(ConfigError, match="no document or chunk"):
        index.explain("kernel", evil + "x")


def test_only_strings_and_integers_are_bound() -> None:
    assert sql_literal("it's") == "'it''s'"
    assert sql_literal(7) == "7"
    with pytest.raises(TypeError, match="ids are strings or integers, got float"):
        sql_literal(1.5)  # type: ignore[arg-type]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no query"),
        ('{"_id": "1"}\n', "line 1: has no 'text'"),
        ('{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', "line 2: query '1' is there twice"),
        ('{"_id": "1", "text": \n', "line 1: not JSON"),
        ("no tabs here\n", "line 1: expected JSON or id<TAB>text"),
    ],
)
def test_query_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_queries(write(tmp_path / "queries.jsonl", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query-id\tcorpus-id\tscore\n", "holds no judgement"),
        ("1 d 1\n1 d\n", r"line 2: expected 3 columns \(BEIR\) or 4 \(TREC\), got 2"),
        ("1\td\tgood\n", "line 1: the judgement 'good' is not an integer"),
    ],
)
def test_judgement_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_qrels(write(tmp_path / "qrels.tsv", text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"q\.jsonl: no such file"):
        read_queries(tmp_path / "q.jsonl")


def test_judgements_with_unknown_ids_are_counted_and_reported(index: Index) -> None:
    queries = {"a": "kernel writes", "b": "timer", "c": "no judgement"}
    qrels = {"a": {"d0000": 1, "gone": 1}, "b": {"d0007": 1}, "z": {"d0001": 1}}
    result = evaluate(index, queries, qrels)
    assert (result.unknown_documents, result.unknown_queries, result.unjudged_queries) == (1, 1, 1)
    assert "1 relevant documents are not in the index" in result.text()
    assert json.loads(json.dumps(result.to_dict()))["unknown_documents"] == 1


def test_judgements_of_other_queries_are_refused(index: Index) -> None:
    with pytest.raises(ConfigError, match="no query has a relevant document; do the query ids of the two files agree"):
        evaluate(index, {"1": "kernel"}, {"q1": {"d0000": 1}})
