"""Unmodified clients of OpenAI, Cohere, Infinity, LangChain and LlamaIndex get the numbers of `actors`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import Server

WHY = "outside client absent; `make test-clients` installs it"


def close(got: Any, wanted: Any, tolerance: float = 1e-6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(got, wanted, strict=True))


def test_openai(server: Server) -> None:
    openai = pytest.importorskip("openai", reason=WHY)
    client, texts = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none"), server.expected["texts"]
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = client.embeddings.create(input=texts, model="text-embedding-3-small", **encoding)
        assert [item.index for item in answer.data] == list(range(len(texts)))
        for item, wanted in zip(answer.data, server.expected["dense"], strict=True):
            if encoding.get("encoding_format") != "base64":
                assert close(item.embedding, wanted)
        assert answer.usage.total_tokens == sum(server.expected["n_tokens"])
    one = client.embeddings.create(input=texts[0], model="words")
    assert close(one.data[0].embedding, server.expected["dense"][0])
    ids = client.embeddings.create(input=server.expected["token_ids"][0], model="words")
    assert close(ids.data[0].embedding, server.expected["dense"][0])
    short = client.embeddings.create(input=texts, model="words", dimensions=64)
    assert {len(item.embedding) for item in short.data} == {64}
    assert sum(x * x for x in short.data[0].embedding) == pytest.approx(1, abs=1e-6)
    assert "words" in [model.id for model in client.models.list()]


def test_openai_reads_our_errors(server: Server) -> None:
    openai = pytest.importorskip("openai", reason=WHY)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="no-such") as missing:
        client.embeddings.create(input="x", model="no-such")
    assert missing.value.code == "not_found"
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(input="x", model="words", dimensions=10_000)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_cohere(server: Server, version: str) -> None:
    cohere = pytest.importorskip("cohere", reason=WHY)
    client_class = cohere.Client if version == "v1" else cohere.ClientV2
    client = client_class(api_key="none", base_url=server.url)
    texts, wanted = server.expected["texts"], server.expected["reranker_scores"]
    answer = client.rerank(model="rerank-v3.5", query=server.expected["query"], documents=texts, top_n=3)
    assert [r.index for r in answer.results] == sorted(range(len(texts)), key=lambda i: -wanted[i])[:3]
    assert close([r.relevance_score for r in answer.results], sorted(wanted, reverse=True)[:3])


def test_infinity(server: Server) -> None:
    pytest.importorskip("infinity_client", reason=WHY)
    from infinity_client import Client
    from infinity_client.api.default import embeddings, rerank
    from infinity_client.models import OpenAIEmbeddingInputText, RerankInput

    client, texts = Client(base_url=f"{server.url}/v1"), server.expected["texts"]
    asked = OpenAIEmbeddingInputText.from_dict({"input": texts, "model": "words"})
    answer = embeddings.sync(client=client, body=asked)
    for item, wanted in zip(answer.data, server.expected["dense"], strict=True):
        assert close(item.embedding, wanted)
    query = RerankInput.from_dict({"query": server.expected["query"], "documents": texts, "model": "colbert"})
    ranked = rerank.sync(client=client, body=query)
    assert close([r.relevance_score for r in ranked.results], sorted(server.expected["colbert_scores"], reverse=True))


def test_langchain_openai(server: Server) -> None:
    langchain = pytest.importorskip("langchain_openai", reason=WHY)
    model = langchain.OpenAIEmbeddings(
        model="words", base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    for got, wanted in zip(model.embed_documents(server.expected["texts"]), server.expected["dense"], strict=True):
        assert close(got, wanted)


def _nodes(texts: list[str]) -> list[Any]:
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.0) for i, text in enumerate(texts)]


def test_llama_index_cohere(server: Server) -> None:
    module = pytest.importorskip("llama_index.postprocessor.cohere_rerank", reason=WHY)
    model = module.CohereRerank(api_key="none", base_url=server.url, model="rerank-v3.5", top_n=2)
    got = model.postprocess_nodes(_nodes(server.expected["texts"]), query_str=server.expected["query"])
    wanted = sorted(server.expected["reranker_scores"], reverse=True)[:2]
    assert close([node.score for node in got], wanted)


def test_llama_index_jina(server: Server) -> None:
    module = pytest.importorskip("llama_index.postprocessor.jinaai_rerank", reason=WHY)
    model = module.JinaRerank(api_key="none", base_url=f"{server.url}/v1", model="colbert", top_n=2)
    got = model.postprocess_nodes(_nodes(server.expected["texts"]), query_str=server.expected["query"])
    wanted = sorted(server.expected["colbert_scores"], reverse=True)[:2]
    assert close([node.score for node in got], wanted)
