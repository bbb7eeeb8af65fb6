"""New versions appear without a failed request, aliases switch without a restart, a vanished index is said."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from pipelines.config import ConfigError
from pipelines.retrieval import open_index
from pipelines.serving.app import create_app
from pipelines.serving.settings import ServeConfig
from pipelines.store.maintain import optimize
from tests.indexes import WordEmbedder, corpus, make_index
from tests.pipelines.serving.conftest import Client


def search(client: Any, query: str, **body: Any) -> Any:
    return client.post("/v1/search", json={"query": query, "k": 3, **body})


def test_a_new_version_is_served_within_the_stated_time(started: Client, tmp_path: Path) -> None:
    uri = make_index(tmp_path, corpus(50))
    client = started(f"w={uri}", refresh_seconds=0.2)
    first = search(client, "kernel").json()["version"]
    open_index(uri, embedder=WordEmbedder()).upsert([{"doc_id": "new", "text": "a zebra"}])
    deadline = time.monotonic() + 120
    while (answer := search(client, "zebra").json())["version"] == first and time.monotonic() < deadline:
        time.sleep(0.02)
    assert answer["version"] > first
    assert answer["results"][0]["hits"][0]["doc_id"] == "new"
    assert f'tridex_index_version{{index="w"}} {answer["version"]:.1f}' in client.get("/metrics").text


def test_files_that_are_gone_cost_no_request(started: Client, tmp_path: Path) -> None:
    """An optimize that keeps no old version removes the files of the version that is served."""
    from datetime import timedelta

    uri = make_index(tmp_path, corpus(200), fragment_rows=20)
    client = started(f"w={uri}", refresh_seconds=3600, memory=1)
    before = search(client, "kernel writes dirty pages").json()
    open_index(uri, embedder=WordEmbedder()).delete(["d0199"])
    optimize(uri, keep_versions=timedelta(0), orphan_age=timedelta(0))
    with pytest.raises(ConfigError):
        open_index(uri, version=before["version"])
    after = search(client, "kernel writes dirty pages")
    assert after.status_code == 200, after.text
    assert after.json()["version"] > before["version"]
    hits = [[hit["doc_id"] for hit in answer["results"][0]["hits"]] for answer in (before, after.json())]
    assert hits[0] == hits[1]


def test_an_index_that_disappears_is_said_and_comes_back(started: Client, tmp_path: Path) -> None:
    uri = make_index(tmp_path / "index", corpus(50))
    client = started(f"w={uri}", refresh_seconds=0.2, memory=1)
    assert search(client, "kernel").status_code == 200
    shutil.move(uri, tmp_path / "away")
    gone = search(client, "another kernel")
    assert gone.status_code == 503, gone.text
    assert gone.json()["error"]["code"] == "index_unavailable"
    assert str(tmp_path) not in gone.text
    assert gone.headers["retry-after"]
    shutil.move(tmp_path / "away", uri)
    assert search(client, "another kernel").status_code == 200


def test_aliases_switch_without_a_restart(started: Client, tmp_path: Path) -> None:
    old, new = make_index(tmp_path / "old", corpus(30)), make_index(tmp_path / "new", corpus(40))
    aliases = tmp_path / "aliases.yaml"
    aliases.write_text("current: old\n")
    client = started(f"old={old}", f"new={new}", aliases_file=str(aliases), refresh_seconds=0.1)
    assert search(client, "kernel", index="current").json()["index"] == "old"
    aliases.write_text("current: new\n")
    os.utime(aliases, (1, 1))
    deadline = time.monotonic() + 120
    while search(client, "kernel", index="current").json()["index"] == "old" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert search(client, "kernel", index="current").json()["index"] == "new"
    assert search(client, "kernel", index="old").json()["index"] == "old"
    assert search(client, "kernel", index="words").status_code == 404, "two indexes have an embedder of that name"
    aliases.write_text("[not, a, mapping]")
    os.utime(aliases, (2, 2))
    time.sleep(0.5)
    assert search(client, "kernel", index="current").json()["index"] == "new"


def test_a_server_of_nothing_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such index"):
        create_app(ServeConfig(indexes=(str(tmp_path / "none"),)))
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "documents.lance"))
    with pytest.raises(ConfigError, match="not an index"):
        create_app(ServeConfig(indexes=(str(tmp_path),)))


def test_prewarm_is_ready_when_the_first_query_would_be_fast(started: Client, word_index: str) -> None:
    client = started(word_index, prewarm=True)
    deadline = time.monotonic() + 120
    while client.get("/readyz").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.02)
    (view,) = client.app.state.service.catalog.views()  # type: ignore[attr-defined]
    assert view.index.encoder.loaded is not None


def test_a_server_follows_the_promoted_embedder(started: Client, tmp_path: Path) -> None:
    """The index's own name stays an answer while a second model joins, is promoted, and the first one is dropped."""
    from pipelines.search_indexes.drop import drop_embedder
    from pipelines.store.promote import promote_embedder
    from tests.pipelines.test_model_switch import OtherEmbedder, add_embedder

    uri = make_index(tmp_path, corpus(50))
    client = started(f"w={uri}", refresh_seconds=3600)

    def answering() -> str:
        client.app.state.service.catalog.refresh()  # type: ignore[attr-defined]
        answers = [search(client, "kernel", mode="bm25", **named) for named in ({}, {"index": "w"})]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        (name,) = {answer.json()["index"] for answer in answers}
        return str(name)

    seen = [answering()]
    for step in (
        lambda: add_embedder(uri, OtherEmbedder()),
        lambda: promote_embedder(uri, "others"),
        lambda: drop_embedder(uri, "words"),
    ):
        step()
        seen.append(answering())
    assert seen == ["w", "w/words", "w/others", "w"]
