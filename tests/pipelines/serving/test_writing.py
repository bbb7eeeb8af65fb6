"""Upserts and deletes over HTTP are seen at once, keep to the key's rows, and wait for no other writer in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.store import lease
from tests.indexes import corpus, make_index
from tests.pipelines.serving.conftest import Client, write_keys


@pytest.fixture
def writable(started: Client, tmp_path: Path) -> Any:
    metadata = {"tenant": pa.array(["a", "b"] * 10), "seen": pa.nulls(20, pa.timestamp("us"))}
    uri = make_index(tmp_path / "index", corpus(20), metadata=metadata)
    scopes = ["search", "write"]
    headers = write_keys(
        tmp_path / "keys.yaml",
        a={"scopes": scopes, "filter": "tenant = 'a'"},
        b={"scopes": scopes, "filter": "tenant = 'b'"},
        root={"scopes": scopes},
        reader={"scopes": ["search"]},
    )
    return started(f"w={uri}", keys=str(tmp_path / "keys.yaml"), refresh_seconds=3600), headers, uri


def document(**values: Any) -> dict[str, Any]:
    return {"documents": [{"doc_id": "new", "text": "An entirely new zebra", "tenant": "a", **values}]}


def ids(client: Any, headers: dict[str, str], query: str) -> list[str]:
    results = client.post("/v1/search", json={"query": query, "k": 3}, headers=headers).json()["results"]
    return [hit["doc_id"] for hit in results[0]["hits"]]


def test_what_is_written_is_found_at_once(writable: Any) -> None:
    client, headers, _ = writable
    before = client.get("/v1/indexes", headers=headers["root"]).json()["indexes"][0]["version"]
    written = client.post("/v1/documents", json=document(seen="2026-01-02T03:04:05"), headers=headers["root"])
    assert written.status_code == 200, written.text
    assert written.json()["upserted"] == 1
    assert written.json()["version"] > before
    assert ids(client, headers["root"], "entirely new zebra")[0] == "new"
    found = client.get("/v1/documents/new", headers=headers["a"]).json()["document"]
    assert found["metadata"]["seen"].startswith("2026-01-02T03:04:05")
    gone = client.request("DELETE", "/v1/documents", json={"ids": ["new", "never there"]}, headers=headers["root"])
    assert gone.json()["deleted_rows"] == 1
    assert client.get("/v1/documents/new", headers=headers["root"]).status_code == 404


def test_a_tenant_writes_its_own_rows_alone(writable: Any) -> None:
    client, headers, _ = writable

    def refused(response: Any) -> bool:
        return bool(response.status_code == 403 and response.json()["error"]["code"] == "forbidden")

    assert refused(client.post("/v1/documents", json=document(tenant="b"), headers=headers["a"]))
    assert refused(client.post("/v1/documents", json=document(tenant=None), headers=headers["a"]))
    stolen = document(doc_id="d0001")
    assert refused(client.post("/v1/documents", json=stolen, headers=headers["a"]))
    assert refused(client.request("DELETE", "/v1/documents", json={"ids": ["d0001"]}, headers=headers["a"]))
    assert refused(client.post("/v1/documents", json=document(), headers=headers["reader"]))
    assert (
        "case 1 of" in client.get("/v1/documents/d0001", headers=headers["b"]).json()["document"]["chunks"][0]["text"]
    )
    own = client.post("/v1/documents", json=document(doc_id="d0002"), headers=headers["a"])
    assert own.status_code == 200
    assert ids(client, headers["a"], "entirely new zebra")[0] == "d0002"
    assert "d0002" not in ids(client, headers["b"], "entirely new zebra")
    deleted = client.request("DELETE", "/v1/documents", json={"ids": ["d0002"]}, headers=headers["a"])
    assert deleted.json()["deleted_rows"] == 1


def test_who_holds_the_lease_is_not_disturbed(writable: Any) -> None:
    client, headers, uri = writable
    with lease.acquire(uri, "documents", "build", lease_seconds=600):
        busy = client.post("/v1/documents", json=document(), headers=headers["root"])
    assert busy.status_code == 409
    assert busy.headers["retry-after"]
    assert "pid" not in busy.text


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"tenant": {"x": 1}}, "documents.0.tenant"), ({"seen": "yesterday"}, "documents.0.seen"),
        ({"nose": 1}, "documents"), ({"text": "  "}, "documents"), ({"text": ""}, "documents.0.text"),
        ({"doc_id": 3}, "documents.0.doc_id"),
    ],
)  # fmt: skip
def test_documents_that_do_not_fit(writable: Any, values: dict[str, Any], field: str) -> None:
    client, headers, _ = writable
    response = client.post("/v1/documents", json=document(**values), headers=headers["root"])
    assert response.status_code == 400, response.text
    assert response.json()["error"]["field"] == field


def test_without_keys_nobody_writes_unless_that_is_asked_for(started: Client, tmp_path: Path) -> None:
    uri = make_index(tmp_path, corpus(5))
    body = {"documents": [{"doc_id": "n", "text": "new"}]}
    assert started(uri).post("/v1/documents", json=body).status_code == 403
    assert started(uri, open_writes=True).post("/v1/documents", json=body).status_code == 200
