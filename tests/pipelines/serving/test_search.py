"""HTTP answers are those of `Index.search`, with the same numbers, from one version of the index."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipelines.config import SearchOptions
from pipelines.retrieval import open_index
from pipelines.retrieval.index import Index
from tests.indexes import WordEmbedder

QUERIES = ["the kernel writes dirty pages", "timer releases a socket", "case 7 of batch7"]


@pytest.fixture(scope="module")
def index(word_index: str) -> Index:
    return open_index(word_index, embedder=WordEmbedder())


def search(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "offset": 2},
        {"mode": "dense"},
        {"mode": "bm25", "k": 5},
        {"mode": "sparse"},
        {"mode": "colbert", "exact": True},
        {"weights": {"dense": 1, "bm25": 2}, "fusion": "zscore"},
        {"weights": {"dense": 0.3, "sparse": 1.5, "colbert": 0}, "fusion": "rrf", "candidates": 30},
        {"where": "year > 2003", "columns": ["year"]},
        {"where": "tenant = 'a'", "group_by": "year", "group_size": 2, "k": 4},
        {"rerank": "colbert", "rerank_k": 20},
        {"group_by": None},
    ],
    ids=str,
)
def test_answers_are_those_of_the_index(client: TestClient, index: Index, options: dict[str, Any]) -> None:
    answer = search(client, query=QUERIES, **options)
    assert (answer["index"], answer["version"]) == ("words", index.version)
    for result, hits in zip(answer["results"], index.search(QUERIES, **options), strict=True):
        expected = hits.to_dict()
        assert [hit["chunk_id"] for hit in result["hits"]] == [hit["chunk_id"] for hit in expected["hits"]]
        for got, wanted in zip(result["hits"], expected["hits"], strict=True):
            assert got["score"] == pytest.approx(wanted["score"], abs=1e-6)
            assert got["scores"] == pytest.approx(wanted["scores"], abs=1e-6)
            assert {k: v for k, v in got.items() if k not in ("score", "scores")} == {
                k: v for k, v in wanted.items() if k not in ("score", "scores")
            }
        assert result["weights"] == pytest.approx(expected["weights"])
        assert (result["mode"], result["fusion"]) == (expected["mode"], expected["fusion"])


def test_requests_that_arrive_together_are_searched_together_and_answered_each(
    client: TestClient, index: Index
) -> None:
    queries = [f"case {i} writes dirty pages" for i in range(24)]
    plain, filtered = {"k": 4}, {"k": 4, "where": "tenant = 'a'"}
    bodies = [{"query": query, **(filtered if i % 3 == 0 else plain)} for i, query in enumerate(queries)]
    before = batches_of(client)
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = list(threads.map(lambda body: search(client, **body), bodies))
    for i, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        expected = index.search(query, **(filtered if i % 3 == 0 else plain)).to_dict()["hits"]
        got = answer["results"][0]["hits"]
        assert [hit["chunk_id"] for hit in got] == [hit["chunk_id"] for hit in expected]
        assert [hit["score"] for hit in got] == pytest.approx([hit["score"] for hit in expected], abs=1e-6)
        assert [hit["passage"] for hit in got] == [hit["passage"] for hit in expected]
    assert batches_of(client) - before < len(bodies)


def batches_of(client: TestClient) -> float:
    """How many batches of searches the server has run."""
    found = re.search(r'_batch_texts_count\{kind="searches"\} (\S+)', client.get("/metrics").text)
    return float(found[1]) if found else 0.0


def test_one_query_is_a_list_of_one(client: TestClient) -> None:
    one, several = search(client, query=QUERIES[0]), search(client, query=[QUERIES[0]])
    assert one["results"] == several["results"]
    assert len(one["results"]) == 1


def test_explanations_are_those_of_the_index(client: TestClient, index: Index) -> None:
    body = {"query": QUERIES[0], "id": "d0009", "weights": {"dense": 1, "sparse": 1}, "where": "year > 2001"}
    told = client.post("/v1/explain", json=body).json()["explanation"]
    expected = index.explain(QUERIES[0], "d0009", weights={"dense": 1, "sparse": 1}, where="year > 2001")
    assert told["score"] == pytest.approx(expected.score, abs=1e-6)
    assert told["rank"] == expected.rank
    for name, part in expected.to_dict()["channels"].items():
        assert told["channels"][name] == pytest.approx(part, abs=1e-6)
    assert sum(c["part"] for c in told["channels"].values()) == pytest.approx(told["score"])
    assert sum(m["product"] for m in told["sparse"]) == pytest.approx(told["channels"]["sparse"]["score"], abs=1e-6)
    assert sum(m["part"] for m in told["colbert"]) == pytest.approx(told["channels"]["colbert"]["score"], abs=1e-5)


def test_the_body_has_the_options_of_the_index_and_no_list_of_its_own(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(schema["SearchBody"]["properties"]) == {*SearchOptions.model_fields, "query", "index", "normalised"}
    assert set(schema["ExplainBody"]["properties"]) == {*SearchOptions.model_fields, "query", "index", "id"}


def test_documents_come_by_id(client: TestClient) -> None:
    answer = client.get("/v1/documents/d0011").json()
    assert answer["document"]["doc_id"] == "d0011"
    assert answer["document"]["metadata"] == {"tenant": "b", "note": "secret of b 11", "year": 2004}
    assert "case 11 of" in answer["document"]["chunks"][0]["text"]


def test_indexes_say_what_is_served(client: TestClient, index: Index) -> None:
    (described,) = client.get("/v1/indexes").json()["indexes"]
    assert described["rows"] == 120
    assert described["channels"] == list(index.channels)
    assert described["columns"] == ["tenant", "note", "year"]


@pytest.mark.parametrize("fusion", ["zscore", "weighted", "rrf", "dbsf"])
def test_hits_carry_what_a_client_needs_to_weigh_them_anew(client: TestClient, fusion: str) -> None:
    """The page's formula: the weighed sum of the channels' normalised scores gives the server's own score."""
    weights = {"dense": 1.0, "bm25": 0.5, "colbert": 3.0}
    (result,) = search(client, query=QUERIES[0], fusion=fusion, weights=weights, normalised=True)["results"]
    for hit in result["hits"]:
        assert set(hit["normalised"]) == {"dense", "sparse", "colbert", "bm25"}
        total = 1 if fusion == "rrf" else sum(weights.values())
        assert sum(w * hit["normalised"][c] for c, w in weights.items()) / total == pytest.approx(
            hit["score"], abs=1e-9
        )


def test_weighing_anew_gives_what_the_server_would(client: TestClient, index: Index) -> None:
    """Where all rows are candidates, new weights over old normalised scores give the new search's scores."""
    asked = {"query": QUERIES[0], "fusion": "zscore", "candidates": 120, "k": 100}
    (before,) = search(client, **asked, normalised=True)["results"]
    weights = {"dense": 2.0, "sparse": 1.0, "bm25": 0.25}
    (after,) = search(client, **asked, weights=weights)["results"]
    scores = {
        hit["chunk_id"]: sum(w * hit["normalised"][c] for c, w in weights.items()) / sum(weights.values())
        for hit in before["hits"]
    }
    both = [hit for hit in after["hits"] if hit["chunk_id"] in scores]
    assert len(both) > 80
    for hit in both:
        assert scores[hit["chunk_id"]] == pytest.approx(hit["score"], abs=1e-9)
