"""Whatever a body holds, the answer is JSON with a code and the field at fault, and nothing of the inside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.retrieval.index import Index
from pipelines.serving.settings import Limits
from tests.pipelines.serving.conftest import Client

ROUTES = ["/v1/search", "/v1/explain", "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v1/encode"]


def refused(response: Any, *statuses: int) -> dict[str, Any]:
    assert response.status_code in statuses, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "message", "field"}
    assert "Traceback" not in response.text
    assert "/tmp" not in response.text
    return error


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"query": NaN}', b'{"query": Infinity}', b"[]", b"3", b'"x"',
        b"null", b"{}", b'{"a": ' * 50 + b"1" + b"}" * 50, b"9" * 5000, b'{"query": "\\ud800"}', b'{"\\udfff": 1}',
        b'{"query": {"x": 1}}', b'{"query": []}', b'{"query": ""}', b'{"query": "  "}', b'{"query": "x", "k": 1e400}',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_bodies_that_are_none(client: TestClient, path: str, body: bytes) -> None:
    refused(client.post(path, content=body, headers={"Content-Type": "application/json"}), 400, 413)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": "x", "kk": 1}, "kk"),
        ({"query": "x", "k": 0}, "k"),
        ({"query": "x", "k": "ten"}, "k"),
        ({"query": "x", "k": True}, "k"),
        ({"query": "x", "k": 10**30}, "k"),
        ({"query": "x", "offset": -1}, "offset"),
        ({"query": "x", "offset": 5000}, "k"),
        ({"query": "x", "candidates": 10**6}, "candidates"),
        ({"query": "x", "rerank": "colbert", "rerank_k": 10**6}, "rerank_k"),
        ({"query": "x", "mode": "magic"}, "mode"),
        ({"query": "x", "fusion": "magic"}, "fusion"),
        ({"query": "x", "weights": {"dense": -1}}, "weights.dense"),
        ({"query": "x", "weights": {"dense": 0}}, "weights"),
        ({"query": "x", "weights": {"nose": 1}}, "weights"),
        ({"query": "x", "where": "nothing = 1"}, "where"),
        ({"query": "x", "where": "year = "}, "where"),
        ({"query": "x", "where": ""}, "where"),
        ({"query": "x", "where": 3}, "where"),
        ({"query": "x", "where": "year > 1; drop table x"}, "where"),
        ({"query": "x", "where": "year = " + "1 + " * 3000 + "1"}, "where"),
        ({"query": "x", "group_by": "nothing"}, "group_by"),
        ({"query": "x", "columns": ["nothing"]}, "columns"),
        ({"query": "x", "columns": "year"}, "columns"),
        ({"query": "x", "rerank": "../../etc/passwd"}, "rerank"),
        ({"query": "x" * 10_000}, "query"),
        ({"query": ["x"] * 100}, "query"),
        ({"query": ["x", ""]}, "query"),
        ({"query": ["x", 3]}, "query"),
    ],
    ids=str,
)
def test_searches_that_ask_wrongly(client: TestClient, body: dict[str, Any], field: str) -> None:
    error = refused(client.post("/v1/search", json=body), 400)
    assert error["field"].startswith(field)
    assert field.split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": "x", "weights": {"dense": "much"}}, "weights.dense: must be a number that is 0 or more, got 'much'"),
        ({"query": "x", "smoothing": "much"}, "smoothing: must be a number that is 0 or more, got 'much'"),
        ({"query": "x", "weights": 3}, "weights: must be a mapping of names to values, got 3"),
        ({"query": "x", "group_by": 3}, "group_by: must be a string, got 3"),
        ({"query": "x", "exact": "yes"}, "exact: must be true or false, got 'yes'"),
        ({"query": 3}, "query: must be a string or a list, got 3"),
        ({"query": ["x", 3]}, "query.1: must be a string, got 3"),
        ({"query": ["x", ""]}, "query.1: is empty"),
        ({"query": "x", "columns": ["a", 3]}, "columns.1: must be a string, got 3"),
        ({"querry": "x"}, "querry: is unknown; did you mean 'query'?"),
        ({}, "query: is missing"),
    ],
    ids=str,
)
def test_http_and_mcp_name_the_field_at_fault_in_the_same_words(
    client: TestClient, arguments: dict[str, Any], message: str
) -> None:
    assert refused(client.post("/v1/search", json=arguments), 400)["message"] == message
    assert call_search(client, json.dumps(arguments)) == message


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["weights.dense", "smoothing"])
def test_a_number_that_is_none_is_named(client: TestClient, number: str, field: str) -> None:
    value = f'{{"weights": {{"dense": {number}}}}}' if field == "weights.dense" else f'{{"smoothing": {number}}}'
    body = f'{{"query": "x", {value[1:]}'
    response = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert refused(response, 400)["field"] == field
    assert call_search(client, body).startswith(f"{field}: must be a number")


def call_search(client: TestClient, arguments: str) -> str:
    """Calls MCP's search tool with arguments that it must refuse; returns its message."""
    head = '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": '
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    result = client.post("/mcp", content=f"{head}{arguments}}}}}", headers=headers).json()["result"]
    assert result["isError"]
    return str(result["content"][0]["text"])


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/embeddings", {"input": 3, "model": "words"}, "input: must be a string or a list, got 3"),
        ("/v1/embeddings", {"input": [[1], [2, "x"]], "model": "words"}, "input.1.1: must be an integer, got 'x'"),
        (
            "/v1/rerank",
            {"query": "x", "documents": [{"txt": "x"}]},
            "documents.0.txt: is unknown; did you mean 'text'?",
        ),
        ("/v1/encode", {"texts": ["x"], "outputs": ["sparce"]}, "outputs.0: must be 'dense', 'sparse' or 'colbert'"),
    ],
    ids=str,
)
def test_other_routes_name_the_field_without_the_types_that_it_may_have(
    client: TestClient, path: str, body: dict[str, Any], message: str
) -> None:
    assert refused(client.post(path, json=body), 400)["message"].startswith(message)


def test_unknown_names_are_404(client: TestClient) -> None:
    assert refused(client.post("/v1/search", json={"query": "x", "index": "other"}), 404)["field"] == "index"
    assert refused(client.post("/v1/embeddings", json={"input": "x", "model": "other"}), 404)["field"] == "model"
    assert refused(client.post("/v1/explain", json={"query": "x", "id": "other"}), 404)["field"] == "id"
    refused(client.get("/v1/nothing"), 404)


@pytest.mark.parametrize("id", ["a/b/c", "..", "%00", "'", "%F0%9F%98%80", "a%2Fb", "x" * 9000, "%ff", "#", "?"])
def test_ids_of_any_kind(client: TestClient, id: str) -> None:
    refused(client.get(f"/v1/documents/{id}"), 400, 404, 405)


def test_other_methods_and_types(client: TestClient) -> None:
    refused(client.put("/v1/search", json={}), 405)
    refused(client.get("/v1/search"), 405)
    refused(client.post("/v1/search", content=b'{"query": "x"}', headers={"Content-Type": "text/plain"}), 400)
    refused(
        client.post("/v1/search", content=b"query=x", headers={"Content-Type": "application/x-www-form-urlencoded"}),
        400,
    )


def test_other_hosts_and_origins_are_refused_without_keys(client: TestClient) -> None:
    """A page of another site must not reach a server of this machine, not even by a name that resolves to it."""
    refused(client.get("/v1/indexes", headers={"Host": "evil.example"}), 403)
    refused(client.get("/v1/indexes", headers={"Origin": "http://evil.example"}), 403)
    assert client.get("/v1/indexes", headers={"Origin": "http://localhost:8000"}).status_code == 200


def test_a_body_is_bounded_before_it_is_read(started: Client, word_index: str) -> None:
    client = started(word_index, limits={"body_bytes": 1000})
    assert refused(client.post("/v1/search", json={"query": "x" * 2000}), 413)["code"] == "too_large"

    def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 100

    refused(client.post("/v1/search", content=chunks(), headers={"Content-Type": "application/json"}), 413)


def test_what_nobody_foresaw_tells_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("secret path /tmp/secret")

    monkeypatch.setattr(Index, "request", fails)
    assert refused(client.post("/v1/search", json={"query": "x"}), 500)["code"] == "internal"


def test_memory_that_runs_out_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Index, "encode", fails)
    assert refused(client.post("/v1/search", json={"query": "x"}), 503)["code"] == "out_of_memory"
    monkeypatch.undo()
    assert client.post("/v1/search", json={"query": "x"}).status_code == 200


def mcp_call(arguments: bytes, name: bytes = b"search") -> bytes:
    parameters = b'{"name": "' + name + b'", "arguments": ' + arguments + b"}"
    return b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": ' + parameters + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nul", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b"9" * 5000,
        b'{"jsonrpc": "2.0", "id": "\\udfff"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "nothing"}',
        mcp_call(b'{"query": NaN}'),
        mcp_call(b'{"query": ""}'),
        mcp_call(b'{"query": "\\ud800"}'),
        mcp_call(b'{"query": "x", "k": 1e999}'),
        mcp_call(b'{"query": "x", "kk": 1}'),
        mcp_call(b'{"a": ' * 900 + b"1" + b"}" * 900),
        mcp_call(b'{"query": "x", "where": "' + b"(" * 3000 + b'"}'),
        mcp_call(b"{}", b"\\ud800"),
        mcp_call(b"{}", b"upsert"),
        mcp_call(b'{"id": "../../etc/passwd"}', b"get_document"),
        b'{"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "tridex://indexes/x/documents/%00"}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "file:///etc/passwd"}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "prompts/get", "params": {"name": "other", "arguments": {}}}',
    ],
    ids=lambda body: repr(body[-40:]),
)  # fmt: skip
def test_mcp_messages_that_are_wrong(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    response = client.post("/mcp", content=body, headers=headers)
    assert response.status_code in (200, 400), response.text
    answer = response.json()
    assert "error" in answer or answer["result"]["isError"] is True
    assert "Traceback" not in response.text
    assert "/tmp" not in response.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    "query",
    "k",
    "mode",
    "where",
    "weights",
    "group_by",
    "columns",
    "input",
    "model",
    "documents",
    "texts",
    "top_n",
]


@settings(max_examples=150)
@given(st.sampled_from(ROUTES), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))
def test_no_body_makes_the_server_fail(client: TestClient, path: str, body: dict[str, Any]) -> None:
    response = client.post(path, json=body)
    if response.status_code != 200:
        refused(response, 400, 404)


def test_limits_are_in_the_settings() -> None:
    assert json.loads(Limits().model_dump_json())["body_bytes"] == 8 * 2**20
