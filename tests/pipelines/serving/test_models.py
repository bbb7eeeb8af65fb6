"""Embeddings, reranking and encoding give the numbers of `actors`, in the forms that clients expect."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from actors import load_embedder, load_reranker
from actors.embedders.base import Embedder
from actors.embedders.pair_scores import colbert_score
from actors.spec import EmbedderSpec
from pipelines.config import DEFAULT_MODEL
from tests.checkpoints_rerankers import xlm_roberta
from tests.pipelines.serving.conftest import Client

TEXTS = ["Hybrid search joins words and meaning.", "A kernel schedules processes.", "x", "long " * 600]
QUERY = "what joins words?"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(EmbedderSpec(model=DEFAULT_MODEL))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xlm_roberta(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module")
def models(started: Client, word_index: str, embedder: Embedder, reranker: Path) -> TestClient:
    """A server whose index has the packaged model in place of its own: these routes do not search."""
    client = started(f"m={word_index}", rerankers=[f"tiny={reranker}"], aliases={"text-embedding-3-small": "m"})
    (view,) = client.app.state.service.catalog.views()  # type: ignore[attr-defined]
    view.index.encoder._given = embedder
    return client


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("input_type", ["query", "passage"])
def test_embeddings_are_the_dense_vectors(models: TestClient, embedder: Embedder, input_type: str) -> None:
    wanted = embedder.embed_tokens(embedder.tokenise(TEXTS, input_type), ["dense"])  # type: ignore[arg-type]
    assert wanted.dense is not None
    asked = {"input": TEXTS, "model": "text-embedding-3-small", "input_type": input_type}
    floats = post(models, "/v1/embeddings", **asked)
    coded = post(models, "/v1/embeddings", **asked, encoding_format="base64")
    for got, binary, vector in zip(floats["data"], coded["data"], wanted.dense, strict=True):
        assert got["embedding"] == pytest.approx(vector.tolist(), abs=1e-6)
        assert np.frombuffer(base64.b64decode(binary["embedding"]), "<f4") == pytest.approx(vector, abs=1e-6)
    assert floats["usage"]["total_tokens"] == int(wanted.n_tokens.sum())


def test_a_text_alone_and_token_ids_give_the_same(models: TestClient, embedder: Embedder) -> None:
    ids = embedder.tokenise(TEXTS[:2]).ids
    offsets = embedder.tokenise(TEXTS[:2]).offsets
    rows = [ids[a:b].tolist() for a, b in pairwise(offsets.tolist())]
    texts = [row["embedding"] for row in post(models, "/v1/embeddings", input=TEXTS[:2], model="m")["data"]]
    several = [row["embedding"] for row in post(models, "/v1/embeddings", input=rows, model="m")["data"]]
    one = [row["embedding"] for row in post(models, "/v1/embeddings", input=rows[0], model="m")["data"]]
    assert several[0] == pytest.approx(texts[0], abs=1e-6)
    assert several[1] == pytest.approx(texts[1], abs=1e-6)
    assert one == [pytest.approx(texts[0], abs=1e-6)]
    wrong = models.post("/v1/embeddings", json={"input": [10**7], "model": "m"})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["field"] == "input"


def test_dimensions_shorten_and_normalise(models: TestClient) -> None:
    (whole,) = post(models, "/v1/embeddings", input="x", model="m")["data"]
    (short,) = post(models, "/v1/embeddings", input="x", model="m", dimensions=10)["data"]
    kept = np.array(whole["embedding"][:10])
    assert short["embedding"] == pytest.approx((kept / np.linalg.norm(kept)).tolist(), abs=1e-6)
    assert models.post("/v1/embeddings", json={"input": "x", "model": "m", "dimensions": 385}).status_code == 400


def test_the_three_outputs_come_of_one_pass(models: TestClient, embedder: Embedder) -> None:
    wanted = embedder.embed_corpus(TEXTS)
    assert wanted.dense is not None
    assert wanted.sparse is not None
    assert wanted.colbert is not None
    answer = post(models, "/v1/encode", texts=TEXTS)
    coded = post(models, "/v1/encode", texts=TEXTS, outputs=["colbert"], encoding_format="base64")
    assert answer["colbert_dim"] == embedder.colbert_dim
    for i, row in enumerate(answer["data"]):
        assert row["dense"] == pytest.approx(wanted.dense[i].tolist(), abs=1e-6)
        assert row["sparse"]["indices"] == wanted.sparse.row(i)[0].tolist()
        assert row["sparse"]["values"] == pytest.approx(wanted.sparse.row(i)[1].tolist(), abs=1e-6)
        assert np.array(row["colbert"]) == pytest.approx(wanted.colbert.row(i), abs=1e-6)
        assert row["n_truncated"] == int(wanted.n_truncated[i])
        binary = np.frombuffer(base64.b64decode(coded["data"][i]["colbert"]), "<f4")
        assert binary.reshape(-1, answer["colbert_dim"]) == pytest.approx(wanted.colbert.row(i), abs=1e-6)
        assert set(coded["data"][i]) == {"index", "colbert", "n_tokens", "n_truncated"}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_reranking_gives_the_scores_of_the_reranker(models: TestClient, reranker: Path, path: str) -> None:
    loaded = load_reranker(str(reranker))
    scores = loaded.score(QUERY, TEXTS, normalize=True)
    answer = post(models, path, query=QUERY, documents=TEXTS, model="tiny", top_n=3, return_documents=True)
    order = sorted(range(len(TEXTS)), key=lambda i: -scores[i])[:3]
    assert [result["index"] for result in answer["results"]] == order
    assert [r["relevance_score"] for r in answer["results"]] == pytest.approx([scores[i] for i in order], abs=1e-6)
    assert [r["document"]["text"] for r in answer["results"]] == [TEXTS[i] for i in order]
    raw = post(models, path, query=QUERY, documents=TEXTS, model="tiny", raw_scores=True, return_documents=False)
    logits = sorted((float(s) for s in loaded.score(QUERY, TEXTS)), reverse=True)
    assert [r["relevance_score"] for r in raw["results"]] == pytest.approx(logits, abs=1e-6)
    assert "document" not in raw["results"][0]


def test_reranking_by_colbert_needs_no_reranker(models: TestClient, embedder: Embedder) -> None:
    query, passages = embedder.embed_queries([QUERY]), embedder.embed_corpus(TEXTS)
    assert query.colbert is not None
    assert passages.colbert is not None
    scores = [colbert_score(query.colbert.row(0), passages.colbert.row(i)) for i in range(len(TEXTS))]
    documents = [{"text": text} for text in TEXTS]
    answer = post(models, "/v1/rerank", query=QUERY, documents=documents, model="colbert")
    assert [r["relevance_score"] for r in answer["results"]] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    assert answer["usage"]["total_tokens"] == int(query.n_tokens.sum() + passages.n_tokens.sum())


def test_models_are_listed(models: TestClient) -> None:
    listed = [model["id"] for model in models.get("/v1/models").json()["data"]]
    assert listed == ["m", "tiny", "text-embedding-3-small"]
