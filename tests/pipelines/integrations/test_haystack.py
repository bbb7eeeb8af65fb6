"""Haystack's own document store suites, a pipeline, and what they do not ask: every channel's score."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
pytest.importorskip("haystack", reason="`make test-adapters` installs Haystack")

from haystack import Document, Pipeline
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.errors import FilterError
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    CountUniqueMetadataByFilterTest,
    DocumentStoreBaseExtendedTests,
    DocumentStoreBaseTests,
    GetMetadataFieldMinMaxTest,
    GetMetadataFieldsInfoTest,
    GetMetadataFieldUniqueValuesTest,
)
from haystack.testing.document_store_async import (
    CountDocumentsAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
)

from pipelines.integrations.documents import DocumentIndex
from pipelines.integrations.haystack import (
    TridexDocumentEmbedder,
    TridexDocumentStore,
    TridexRanker,
    TridexRetriever,
    TridexTextEmbedder,
)

TEXTS = ["the river carries sand", "sand castles on the beach", "a kernel schedules threads", "threads of wool"]


class WithoutForeignVectors:
    """The suite's documents bring random embeddings; the index makes its own, so they are not compared."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        assert [(d.id, d.content, d.meta) for d in received] == [(d.id, d.content, d.meta) for d in expected]


class TestDocumentStore(
    WithoutForeignVectors,
    CountDocumentsByFilterTest,
    CountUniqueMetadataByFilterTest,
    GetMetadataFieldsInfoTest,
    GetMetadataFieldMinMaxTest,
    GetMetadataFieldUniqueValuesTest,
    DocumentStoreBaseExtendedTests,
):
    @pytest.fixture
    def document_store(self, new_documents: Callable[[], DocumentIndex]) -> TridexDocumentStore:  # type: ignore[override]
        return TridexDocumentStore(new_documents())

    def test_write_documents(self, document_store: TridexDocumentStore) -> None:  # type: ignore[override]
        """The suite leaves the default policy to the store: here a document that is there is refused."""
        assert document_store.write_documents([Document(id="1", content="test")]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([Document(id="1", content="other")])


class TestDocumentStoreAsync(
    WithoutForeignVectors,
    CountDocumentsAsyncTest,
    WriteDocumentsAsyncTest,
    DeleteDocumentsAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    UpdateByFilterAsyncTest,
    FilterDocumentsAsyncTest,
):
    @pytest.fixture
    def document_store(self, new_documents: Callable[[], DocumentIndex]) -> TridexDocumentStore:
        return TridexDocumentStore(new_documents())

    @pytest.mark.asyncio
    async def test_write_documents_async(self, document_store: TridexDocumentStore) -> None:  # type: ignore[override]
        assert await document_store.write_documents_async([Document(id="1", content="test")]) == 1


def test_the_base_suite_is_a_part_of_the_extended_one() -> None:
    assert issubclass(TestDocumentStore, DocumentStoreBaseTests)


@pytest.fixture
def store(new_documents: Callable[[], DocumentIndex]) -> TridexDocumentStore:
    made = TridexDocumentStore(new_documents())
    about = [{"n": i, "kind": "ab"[i % 2]} for i in range(4)]
    made.write_documents([Document(id=str(i), content=TEXTS[i], meta=about[i]) for i in range(4)])
    return made


def test_a_pipeline_finds_ranks_and_keeps_every_score(store: TridexDocumentStore) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", TridexRetriever(store, top_k=3))
    pipeline.add_component("ranker", TridexRanker(LengthReranker(), top_k=1))
    pipeline.connect("retriever", "ranker")
    found = pipeline.run({"retriever": {"query": "river sand"}, "ranker": {"query": "river sand"}})
    (best,) = found["ranker"]["documents"]
    assert best.score == float(len(best.content or ""))
    assert best.meta["scores"].keys() == {"dense", "sparse", "colbert", "bm25"}


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse", "colbert", "bm25"])
def test_every_channel_ranks(store: TridexDocumentStore, mode: str) -> None:
    found = TridexRetriever(store, options={"mode": mode}).run("river sand", top_k=1)["documents"]
    assert [document.id for document in found] == ["0"]
    if mode != "hybrid":
        assert found[0].score == pytest.approx(found[0].meta["scores"][mode], rel=1e-5)


def test_filters_of_a_retriever_merge_or_replace(store: TridexDocumentStore) -> None:
    own = {"field": "meta.n", "operator": ">", "value": 0}
    more = {"field": "meta.kind", "operator": "==", "value": "a"}

    def ids(policy: str, filters: Any) -> list[str]:
        found = TridexRetriever(store, filters=own, filter_policy=policy).run("sand", filters=filters)["documents"]
        return sorted(document.id for document in found)

    assert ids("replace", None) == ["1", "2", "3"]
    assert ids("replace", more) == ["0", "2"]
    assert ids("merge", more) == ["2"]
    with pytest.raises(FilterError, match="'near' is unknown"):
        ids("replace", {"field": "meta.n", "operator": "near", "value": 1})


def test_dates_in_texts_compare_as_moments(store: TridexDocumentStore) -> None:
    dates = ["2024-01-01", "2024-01-01T12:00:00", "2023-12-31T23:00:00-02:00", "soon"]
    store.write_documents([Document(id=f"t{i}", content="a date", meta={"at": at}) for i, at in enumerate(dates)])
    found = store.filter_documents({"field": "meta.at", "operator": ">", "value": "2024-01-01T00:30:00"})
    assert sorted(document.id for document in found) == ["t1", "t2"]


def test_metadata_is_updated_without_embedding(
    store: TridexDocumentStore, monkeypatch: pytest.MonkeyPatch, embedder: Any
) -> None:
    monkeypatch.setattr(embedder, "embed_tokens", lambda *_: pytest.fail("the text is the same"))
    assert store.update_by_filter({"field": "meta.n", "operator": "==", "value": 2}, {"seen": True}) == 1
    (document,) = store.filter_documents({"field": "meta.seen", "operator": "==", "value": True})
    assert (document.id, document.meta) == ("2", {"n": 2, "kind": "a", "seen": True})


def test_components_are_stored_as_yaml_and_come_back(tmp_path: Path) -> None:
    store = TridexDocumentStore(tmp_path / "idx")
    pipeline = Pipeline()
    pipeline.add_component("retriever", TridexRetriever(store, top_k=3, options={"mode": "bm25"}))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["pipelines.integrations.haystack"])
    retriever = again.get_component("retriever")
    assert isinstance(retriever, TridexRetriever)
    assert (retriever.top_k, retriever.options) == (3, {"mode": "bm25"})
    assert retriever.document_store.count_documents() == 0


class LengthReranker:
    """Longer passages are better."""

    def score(self, query: str, passages: list[str]) -> list[float]:
        return [float(len(passage)) for passage in passages]


def test_embedders_give_dense_and_sparse_vectors() -> None:
    documents = TridexDocumentEmbedder(meta_fields_to_embed=["title"]).run(
        [Document(content="the river", meta={"title": "Water"}), Document(content="a kernel")]
    )["documents"]
    query = TridexTextEmbedder().run("river water")

    def dot(document: Document) -> float:
        assert document.embedding is not None
        return sum(a * b for a, b in zip(query["embedding"], document.embedding, strict=True))

    assert dot(documents[0]) > dot(documents[1])
    assert documents[0].sparse_embedding is not None
    assert set(query["sparse_embedding"].indices) & set(documents[0].sparse_embedding.indices)
    with pytest.raises(TypeError, match="embeds one text"):
        TridexTextEmbedder().run([Document(content="a")])  # type: ignore[arg-type]
