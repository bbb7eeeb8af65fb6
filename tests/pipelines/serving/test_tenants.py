"""A key sees the rows of its filter and no others, whatever is asked: search, explain, documents, groups, reranking."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.pipelines.serving.conftest import Client, write_keys

CONDITIONS = [
    "year > 2002",
    "tenant = 'b'",
    "tenant = 'a' OR tenant = 'b'",
    "true) OR (true",
    "1 = 1) OR (tenant = 'b'",
    "true OR true -- ",
    "true /* ",
    "tenant = 'b' OR NOT (tenant = 'b')",
    "cast(note AS int) > 0",
    "tenant = 'a' AND cast(note AS int) >= 0",
    "CASE WHEN note LIKE 'secret%' THEN cast(note AS int) > 0 ELSE true END",
    "1 / (year - 2000) > 0",
    "note LIKE '%secret%' OR true",
    "doc_id IN ('d0001', 'd0003')",
    "_rowid >= 0",
    "_rowaddr >= 0",
    "text IS NOT NULL",
    "words_dense IS NOT NULL",
    "regexp_like(note, 'secret')",
    "'",
    ";",
    "tenant = 'a'; DROP TABLE documents",
]
IDS = [f"d{i:04d}" for i in range(0, 120, 7)] + ["d0001", "' OR '1'='1", "d0001') OR ('1'='1", "../documents.lance"]

searches = st.fixed_dictionaries(
    {"query": st.sampled_from(["kernel writes dirty pages", "secret of b", "batch7", "timer"])},
    optional={
        "where": st.sampled_from(CONDITIONS) | st.text(max_size=20),
        "mode": st.sampled_from(["hybrid", "dense", "sparse", "colbert", "bm25"]),
        "k": st.integers(1, 100),
        "offset": st.integers(0, 60),
        "candidates": st.integers(1, 200),
        "group_by": st.sampled_from([None, "doc_id", "tenant", "year", "note", "text", "chunk_id"]),
        "group_size": st.integers(1, 5),
        "rerank": st.sampled_from(["colbert", "dense", "bm25"]),
        "rerank_k": st.integers(1, 100),
        "exact": st.booleans(),
        "fusion": st.sampled_from(["zscore", "weighted", "rrf", "dbsf"]),
        "normalised": st.booleans(),
    },
)


@pytest.fixture(scope="module")
def tenants(started: Client, word_index: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    headers = write_keys(
        path,
        a={"scopes": ["search"], "filter": "tenant = 'a'"},
        b={"scopes": ["search"], "filter": "tenant = 'b'"},
        all={"scopes": ["search", "encode"]},
    )
    return started(f"words={word_index}", keys=str(path)), headers


def hits_of(response: Any) -> list[dict[str, Any]]:
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["field"], response.text
        return []
    return [hit for result in response.json()["results"] for hit in result["hits"]]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(searches, st.sampled_from("ab"))
@example({"query": "kernel", "where": "$"}, "a")
@example({"query": "kernel", "where": "note = N'x'"}, "a")
def test_no_search_shows_a_row_of_another_tenant(tenants: Any, body: dict[str, Any], key: str) -> None:
    client, headers = tenants
    response = client.post("/v1/search", json=body, headers=headers[key])
    for hit in hits_of(response):
        assert hit["metadata"]["tenant"] == key
        assert int(hit["doc_id"][1:]) % 2 == "ab".index(key)
    if key == "a":
        assert "secret of b" not in response.text.replace(body["query"], "").replace(body.get("where", " "), "")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(IDS), searches, st.sampled_from("ab"))
def test_no_explanation_or_document_is_of_another_tenant(tenants: Any, id: str, body: dict[str, Any], key: str) -> None:
    client, headers = tenants
    asked = {name: value for name, value in body.items() if name != "normalised"} | {"id": id}
    explained = client.post("/v1/explain", json=asked, headers=headers[key])
    opened = client.get(f"/v1/documents/{id}", headers=headers[key])
    foreign = not id.startswith("d0") or len(id) != 5 or int(id[1:]) % 2 != "ab".index(key)
    if foreign:
        assert explained.status_code in (400, 404), explained.text
        assert opened.status_code == 404, opened.text
        assert "case" not in opened.text
    else:
        assert opened.json()["document"]["metadata"]["tenant"] == key
        assert explained.status_code in (200, 400), explained.text


def test_a_foreign_document_is_refused_as_one_that_is_not_there(tenants: Any) -> None:
    client, headers = tenants
    foreign = client.get("/v1/documents/d0001", headers=headers["a"])
    absent = client.get("/v1/documents/d9999", headers=headers["a"])
    assert foreign.status_code == absent.status_code == 404
    assert foreign.text.replace("d0001", "ID") == absent.text.replace("d9999", "ID")


def test_the_filters_of_tenants_partition_the_rows(tenants: Any) -> None:
    client, headers = tenants
    rows = {
        key: client.get("/v1/indexes", headers=headers[key]).json()["indexes"][0]["rows"] for key in ("a", "b", "all")
    }
    assert rows == {"a": 60, "b": 60, "all": 120}
    body = {"query": "kernel", "k": 100, "candidates": 200, "group_by": None}
    found = {
        key: {h["doc_id"] for h in hits_of(client.post("/v1/search", json=body, headers=headers[key]))} for key in "ab"
    }
    assert not found["a"] & found["b"]
    assert len(found["a"]) == len(found["b"]) == 60


def test_a_condition_that_fails_on_a_foreign_row_alone_does_not_fail(tenants: Any) -> None:
    """Notes of tenant a are numbers, those of b are not: evaluated over the table, the cast quotes a secret of b."""
    client, headers = tenants
    body = {"query": "kernel", "where": "cast(note AS int) >= 100", "k": 50}
    found = hits_of(client.post("/v1/search", json=body, headers=headers["a"]))
    assert {int(hit["metadata"]["note"]) for hit in found} == set(range(100, 120, 2))
    quoted = client.post("/v1/search", json=body, headers=headers["all"])
    assert quoted.status_code == 400
    assert "secret of b" in quoted.text


def test_mcp_keeps_tenants_apart(tenants: Any) -> None:
    client, headers = tenants

    def ask(method: str, params: dict[str, Any], key: str) -> Any:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        accept = {"Accept": "application/json, text/event-stream"}
        return client.post("/mcp", json=message, headers={**headers[key], **accept}).json()

    def call(name: str, arguments: dict[str, Any], key: str) -> Any:
        return ask("tools/call", {"name": name, "arguments": arguments}, key)["result"]

    found = call("search", {"query": "secret of b", "k": 60}, "a")["structuredContent"]["results"][0]["hits"]
    assert {hit["metadata"]["tenant"] for hit in found} == {"a"}
    assert call("get_document", {"id": "d0001"}, "a")["isError"]
    assert call("get_document", {"id": "d0001"}, "b")["structuredContent"]["document"]["metadata"]["tenant"] == "b"
    assert call("index_status", {}, "a")["structuredContent"]["indexes"][0]["rows"] == 60
    (index,) = ask("resources/list", {}, "a")["result"]["resources"]
    assert "60 rows" in index["description"]
    assert "no document" in ask("resources/read", {"uri": f"{index['uri']}/documents/d0001"}, "a")["error"]["message"]
    assert ask("resources/read", {"uri": f"{index['uri']}/documents/d0001"}, "b")["result"]["contents"]


@pytest.mark.parametrize(
    "path", ["/v1/search", "/v1/explain", "/v1/documents/d0001", "/v1/indexes", "/mcp", "/v1/models"]
)
def test_no_key_no_answer(tenants: Any, path: str) -> None:
    client, _ = tenants
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token of a"}):
        response = client.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "unauthorized"


def test_scopes_bound_what_a_key_may_do(tenants: Any) -> None:
    client, headers = tenants
    body = {"input": "kernel", "model": "words"}
    assert client.post("/v1/embeddings", json=body, headers=headers["all"]).status_code == 200
    refused = client.post("/v1/embeddings", json=body, headers=headers["a"])
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden"


def test_the_page_and_health_need_no_key_and_tell_nothing(tenants: Any) -> None:
    client, _ = tenants
    for path in ("/", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        response = client.get(path)
        assert response.status_code == 200
        assert "secret of b" not in response.text
