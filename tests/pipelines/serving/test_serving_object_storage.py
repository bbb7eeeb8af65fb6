"""An index in an S3-compatible store on loopback is served with local copies of what scoring reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import lance
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from pipelines.retrieval import open_index
from tests.indexes import WordEmbedder, corpus, documents, make_index
from tests.pipelines.serving.conftest import Client

SECRET = "sesame-open-sesame-open"
URI = "s3://indexes/words"
QUERY = "the kernel writes dirty pages"


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "aws_access_key_id": "AKIATESTTESTTEST",
        "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1",
        "aws_endpoint": f"http://{host}:{port}",
        "allow_http": "true",
        "virtual_hosted_style_request": "false",
        "timeout": "120s",
    }
    keys = {"access_key": options["aws_access_key_id"], "secret_key": SECRET, "region": "us-east-1"}
    patient = {"connect_timeout": 120, "request_timeout": 120, "allow_bucket_creation": True}
    pafs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", **keys, **patient).create_dir("indexes")
    yield options
    server.stop()


def write(texts: Mapping[str, str], options: dict[str, str], mode: str = "create") -> None:
    table = documents(texts, WordEmbedder(), "float32", "none", {})
    dataset = lance.write_dataset(table, f"{URI}/documents.lance", mode=mode, storage_options=options)
    if mode == "create":
        dataset.create_scalar_index("text", "INVERTED", with_position=False, stem=True, remove_stop_words=True)


def test_scoring_reads_local_copies_that_follow_the_index(
    started: Client, options: dict[str, str], tmp_path: Path
) -> None:
    write(corpus(60), options)
    cache = tmp_path / "cache"
    client = started(f"w={URI}", storage_options=options, local=str(cache), refresh_seconds=0.2, prewarm=True)
    deadline = time.monotonic() + 120
    while client.get("/readyz").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    answer = client.post("/v1/search", json={"query": QUERY, "k": 5})
    assert answer.status_code == 200, answer.text
    wanted = open_index(make_index(tmp_path / "here", corpus(60)), embedder=WordEmbedder()).search(QUERY, k=5)
    hits = answer.json()["results"][0]["hits"]
    assert [hit["chunk_id"] for hit in hits] == [hit.chunk_id for hit in wanted]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-6)
    copies = sorted(path.name for path in cache.iterdir() if path.is_dir())
    assert len(copies) == 3, "dense, sparse, colbert"
    sizes = {path: path.stat().st_size for path in cache.rglob("*.bin")}
    assert sizes

    write({"new": "a zebra crosses"}, options, "append")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = client.post("/v1/search", json={"query": "zebra", "k": 1}).json()
        if found["version"] > answer.json()["version"]:
            break
        time.sleep(0.05)
    assert found["results"][0]["hits"][0]["doc_id"] == "new"
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == copies, "the copies grew in place"
    assert all(path.stat().st_size >= size for path, size in sizes.items())
    for path in ("/v1/indexes", "/metrics", "/readyz"):
        assert SECRET not in client.get(path).text
