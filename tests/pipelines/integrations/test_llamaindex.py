"""A small index built and asked through LlamaIndex's own index, retriever and query engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="`make test-adapters` installs LlamaIndex")

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from pipelines.config import ConfigError
from pipelines.integrations.documents import DocumentIndex
from pipelines.integrations.llamaindex import TridexEmbedding, TridexReranker, TridexRetriever, TridexVectorStore

TEXTS = ["the river carries sand", "sand castles on the beach", "a kernel schedules threads", "threads of wool"]
CHANNELS = {"dense", "sparse", "colbert", "bm25"}


def nodes() -> list[TextNode]:
    about = [{"n": i, "kind": "ab"[i % 2], "tags": ["x", str(i)], "file_name": f"File{i}.txt"} for i in range(4)]
    return [TextNode(id_=str(i), text=text, metadata=about[i]) for i, text in enumerate(TEXTS)]


@pytest.fixture
def store(new_documents: Callable[[], DocumentIndex]) -> TridexVectorStore:
    made = TridexVectorStore(new_documents())
    made.add(nodes())
    return made


def ids(store: TridexVectorStore, *conditions: Any, condition: FilterCondition = FilterCondition.AND) -> str:
    filters = MetadataFilters(filters=list(conditions), condition=condition)
    result = store.query(VectorStoreQuery(query_str="sand", similarity_top_k=10, filters=filters))
    return "".join(sorted(result.ids or []))


def test_llamaindex_builds_asks_and_answers(new_documents: Callable[[], DocumentIndex]) -> None:
    store = TridexVectorStore(new_documents())
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    for number, text in enumerate(TEXTS):
        index.insert(Document(id_=f"d{number}", text=text, metadata={"n": number}))
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=2, vector_store_query_mode="hybrid")
    answer = engine.query("what does the river carry?")
    best = answer.source_nodes[0]
    assert best.node.get_content(metadata_mode=MetadataMode.NONE) == TEXTS[0]
    assert best.node.ref_doc_id == "d0"
    assert best.node.metadata["scores"].keys() == CHANNELS
    assert "river carries sand" in str(answer)
    assert "colbert" not in str(answer), "scores are not shown to the language model"
    index.delete_ref_doc("d0")
    assert len(store.get_nodes()) == 3


def test_an_ingestion_pipeline_writes_into_the_store(new_documents: Callable[[], DocumentIndex]) -> None:
    store = TridexVectorStore(new_documents())
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), TridexEmbedding(store.client.embedder)],
        vector_store=store,
    )
    pipeline.run(documents=[Document(text=" ".join(f"Sentence {i} is about rivers." for i in range(60)))])
    found = store.get_nodes()
    assert len(found) > 1
    assert found[1].prev_node is not None
    assert found[1].prev_node.node_id == found[0].node_id


@pytest.mark.parametrize("mode", ["dense", "sparse", "colbert", "bm25", "hybrid"])
def test_every_channel_ranks(store: TridexVectorStore, mode: str) -> None:
    engine = RetrieverQueryEngine.from_args(TridexRetriever(store.client, k=2, mode=mode), llm=MockLLM())
    nodes = engine.query("river sand").source_nodes
    assert nodes[0].node.node_id == "0"
    assert nodes[0].node.metadata["scores"].keys() == CHANNELS
    if mode != "hybrid":
        assert nodes[0].score == pytest.approx(nodes[0].node.metadata["scores"][mode], rel=1e-5)


def test_query_modes_choose_channels(store: TridexVectorStore) -> None:
    for mode, channel in ((VectorStoreQueryMode.SPARSE, "sparse"), (VectorStoreQueryMode.TEXT_SEARCH, "bm25")):
        result = store.query(VectorStoreQuery(query_str="river sand", similarity_top_k=1, mode=mode))
        assert result.nodes is not None
        assert result.similarities is not None
        assert result.similarities[0] == pytest.approx(result.nodes[0].metadata["scores"][channel], rel=1e-5)
    with pytest.raises(ConfigError, match="mode: 'svm'"):
        store.query(VectorStoreQuery(query_str="sand", mode=VectorStoreQueryMode.SVM))
    with pytest.raises(ConfigError, match="searches by text"):
        store.query(VectorStoreQuery(query_embedding=[0.0] * 384))


def test_alpha_weighs_dense_against_words(store: TridexVectorStore) -> None:
    def first(alpha: float) -> str:
        query = VectorStoreQuery(query_str="wool", similarity_top_k=1, mode=VectorStoreQueryMode.HYBRID, alpha=alpha)
        return (store.query(query).ids or [""])[0]

    assert first(0.0) == "3"


def test_marginal_relevance_prefers_what_differs(store: TridexVectorStore) -> None:
    store.add([TextNode(id_="again", text="the river carries sand.")])
    query = VectorStoreQuery(
        query_str="river carries sand", similarity_top_k=2, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.3
    )
    assert len({"0", "again"} & set(store.query(query).ids or [])) == 1


@pytest.mark.parametrize(
    ("key", "operator", "value", "expected"),
    [
        ("n", FilterOperator.EQ, 1, "1"),
        ("n", FilterOperator.NE, 1, "023"),
        ("n", FilterOperator.GT, 1, "23"),
        ("n", FilterOperator.GTE, 1, "123"),
        ("n", FilterOperator.LT, 1, "0"),
        ("n", FilterOperator.LTE, 1, "01"),
        ("n", FilterOperator.IN, [0, 3], "03"),
        ("n", FilterOperator.NIN, [0, 3], "12"),
        ("tags", FilterOperator.ANY, ["1", "2"], "12"),
        ("tags", FilterOperator.ALL, ["x", "2"], "2"),
        ("tags", FilterOperator.CONTAINS, "3", "3"),
        ("file_name", FilterOperator.TEXT_MATCH, "File2", "2"),
        ("file_name", FilterOperator.TEXT_MATCH_INSENSITIVE, "fiLE2", "2"),
        ("absent", FilterOperator.IS_EMPTY, None, "0123"),
        ("n", FilterOperator.IS_EMPTY, None, ""),
    ],
)
def test_filters(store: TridexVectorStore, key: str, operator: FilterOperator, value: Any, expected: str) -> None:
    assert ids(store, MetadataFilter(key=key, operator=operator, value=value)) == expected


def test_filters_nest(store: TridexVectorStore) -> None:
    even, big = MetadataFilter(key="kind", value="a"), MetadataFilter(key="n", operator=FilterOperator.GT, value=1)
    assert ids(store, even, big) == "2"
    assert ids(store, even, big, condition=FilterCondition.OR) == "023"
    assert ids(store, even, big, condition=FilterCondition.NOT) == "1"
    inner = MetadataFilters(filters=[even, big], condition=FilterCondition.OR)
    assert ids(store, inner, MetadataFilter(key="n", operator=FilterOperator.NE, value=0)) == "23"


def test_nodes_come_back_and_go(store: TridexVectorStore) -> None:
    (back,) = store.get_nodes(["2"])
    assert back.metadata == nodes()[2].metadata
    with pytest.raises(ValueError, match="name the nodes"):
        store.delete_nodes()
    store.delete_nodes(["0", "nothing"])
    store.delete_nodes(filters=MetadataFilters(filters=[MetadataFilter(key="n", value=1)]))
    assert [node.node_id for node in store.get_nodes()] == ["2", "3"]
    store.clear()
    assert store.get_nodes() == []
    assert store.query(VectorStoreQuery(query_str="sand")).ids == []


class LengthReranker:
    """Longer passages are better."""

    def score(self, query: str, passages: list[str]) -> list[float]:
        return [float(len(passage)) for passage in passages]


def test_a_reranker_orders_nodes(store: TridexVectorStore) -> None:
    found = TridexRetriever(store.client, k=4).retrieve("sand")
    ranked = TridexReranker(model=LengthReranker(), top_n=2).postprocess_nodes(found, QueryBundle("sand"))
    assert [node.score for node in ranked] == [26.0, 25.0]


async def test_embeddings_are_the_same_both_ways(embedder: Any) -> None:
    model = TridexEmbedding(embedder)
    assert model.get_text_embedding("sand") == (await model.aget_text_embedding_batch(["sand"]))[0]
    assert len(await model.aget_query_embedding("sand")) == 384
