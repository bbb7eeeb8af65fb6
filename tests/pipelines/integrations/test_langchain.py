"""LangChain's standard suites, and what they do not ask: hybrid, filters and every channel's score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="`make test-adapters` installs LangChain's suites")

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from pipelines.config import ConfigError
from pipelines.integrations.documents import DocumentIndex
from pipelines.integrations.langchain import TridexEmbeddings, TridexReranker, TridexRetriever, TridexVectorStore

TEXTS = ["the river carries sand", "sand castles on the beach", "a kernel schedules threads", "threads of wool"]
ABOUT = [{"n": i, "kind": "ab"[i % 2], "tags": ["x", str(i)], "source": f"file{i}"} for i in range(4)]


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, new_documents: Callable[[], DocumentIndex]) -> VectorStore:  # type: ignore[override]
        return TridexVectorStore(new_documents())


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return TridexEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "all-MiniLM-L6-v2"}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return TridexEmbeddings


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def filled(self, new_documents: Callable[[], DocumentIndex]) -> None:
        self.store = TridexVectorStore(new_documents())
        self.store.add_texts(TEXTS, ABOUT)

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return TridexRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.store}

    @property
    def retriever_query_example(self) -> str:
        return "sand in the river"


@pytest.fixture
def store(new_documents: Callable[[], DocumentIndex]) -> TridexVectorStore:
    made = TridexVectorStore(new_documents())
    made.add_texts(TEXTS, ABOUT, ids=["0", "1", "2", "3"])
    return made


def test_every_channel_ranks_and_every_score_is_there(store: TridexVectorStore) -> None:
    (document,) = TridexRetriever(index=store, k=1).invoke("river sand")
    assert document.id == "0"
    assert document.metadata["scores"].keys() == {"dense", "sparse", "colbert", "bm25"}
    assert document.metadata["source"] == "file0"
    store.add_texts(["gravel"], ids=["gravel"])
    assert "source" not in TridexRetriever(index=store, k=1).invoke("gravel")[0].metadata
    for mode in ("dense", "sparse", "colbert", "bm25"):
        found, score = store.similarity_search_with_score("river sand", k=1, mode=mode)[0]
        assert found.id == "0"
        assert score == pytest.approx(document.metadata["scores"][mode], rel=1e-5)


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ({"n": 1}, "1"),
        ({"n": {"$gt": 1}}, "23"),
        ({"n": {"$gte": 1, "$lt": 3}}, "12"),
        ({"n": {"$in": [0, 3, 9]}}, "03"),
        ({"n": {"$nin": [0, 3]}}, "12"),
        ({"n": {"$gt": 0.5}}, "123"),
        ({"kind": {"$ne": "a"}}, "13"),
        ({"kind": "a", "n": 2}, "2"),
        ({"$or": [{"n": 0}, {"kind": "b"}]}, "013"),
        ({"$not": {"kind": "b"}}, "02"),
        ({"$and": [{"kind": "b"}, {"n": {"$between": [2, 9]}}]}, "3"),
        ({"tags": {"$contains": "2"}}, "2"),
        ({"absent": {"$exists": False}}, "0123"),
        ({"absent": 1}, ""),
        ({"source": "file3"}, "3"),
        ("n = 2 OR kind = 'b'", "123"),
    ],
)
def test_filters(store: TridexVectorStore, condition: Any, ids: str) -> None:
    found = store.similarity_search("sand", k=10, filter=condition)
    assert sorted(document.id or "" for document in found) == list(ids)


def test_a_filter_with_an_unknown_operator_names_it(store: TridexVectorStore) -> None:
    with pytest.raises(ConfigError, match=r"filter: '\$near' is unknown"):
        store.similarity_search("sand", filter={"n": {"$near": 1}})
    with pytest.raises(ConfigError, match="has no order with that"):
        store.similarity_search("sand", filter={"n": {"$gt": "one"}})


def test_marginal_relevance_prefers_what_differs(store: TridexVectorStore) -> None:
    store.add_texts(["the river carries sand."], ids=["again"])
    nearest = [document.id for document in store.similarity_search("river carries sand", k=2, mode="dense")]
    spread = store.max_marginal_relevance_search("river carries sand", k=2, fetch_k=5, lambda_mult=0.3)
    assert set(nearest) == {"0", "again"}
    assert len({"0", "again"} & {document.id for document in spread}) == 1


def test_relevance_scores_lie_between_0_and_1(store: TridexVectorStore) -> None:
    found = store.similarity_search_with_relevance_scores("river sand", k=4)
    assert all(0 <= score <= 1 for _, score in found)
    assert found[0][1] > 0.5


def test_a_document_comes_back_as_it_went_in(store: TridexVectorStore) -> None:
    about = {"nested": {"a": [1, {"b": None}]}, "none": None, "mixed": [1, "a"], "n": "not a number", "big": 2**70}
    store.add_documents([Document(id="d", page_content="sand " * 2000 + "end", metadata=about)])
    (back,) = store.get_by_ids(["d"])
    assert back.metadata == about
    assert back.page_content == "sand " * 2000 + "end"


def test_deleting_everything_needs_a_word(store: TridexVectorStore) -> None:
    with pytest.raises(ValueError, match="name the ids"):
        store.delete()


def test_a_store_is_made_from_texts_and_opened_again(tmp_path: Path) -> None:
    TridexVectorStore.from_texts(TEXTS, TridexEmbeddings(), ABOUT, index=tmp_path / "idx")
    assert TridexRetriever(index=tmp_path / "idx", k=1).invoke("wool")[0].page_content == "threads of wool"
    with pytest.raises(ValueError, match="no such index"):
        TridexRetriever(index=tmp_path / "nothing")
    with pytest.raises(ConfigError):
        TridexVectorStore.from_texts(TEXTS, object(), index=tmp_path / "idx")  # type: ignore[arg-type]


class LengthReranker:
    """Longer passages are better."""

    def score(self, query: str, passages: list[str]) -> list[float]:
        return [float(len(passage)) for passage in passages]


def test_a_reranker_orders_what_a_retriever_found(store: TridexVectorStore) -> None:
    documents = TridexRetriever(index=store, k=4).invoke("sand")
    ranked = TridexReranker(model=LengthReranker(), top_n=2).compress_documents(documents, "sand")
    assert [d.metadata["relevance_score"] for d in ranked] == sorted(map(len, TEXTS))[:1:-1]
    assert ranked[0].metadata["scores"].keys() == {"dense", "sparse", "colbert", "bm25"}
    assert "relevance_score" not in documents[0].metadata
    assert list(TridexReranker(model=LengthReranker()).compress_documents([], "sand")) == []
