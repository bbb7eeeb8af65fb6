"""Adapts tridex to LlamaIndex: a vector store, a retriever, embeddings and a reranker. Extra: `llamaindex`.

    store = TridexVectorStore("./idx")
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    index.insert_nodes(nodes)
    index.as_retriever(vector_store_query_mode="hybrid").retrieve("what moves sand")

The index embeds by itself, all outputs in one pass, and searches by the query's text: the vectors that LlamaIndex hands
over are not read. Each node that is found carries `scores`, every channel's own, which prompts do not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.extras import require_extra
from pipelines.config import DEFAULT_MODEL, ConfigError
from pipelines.integrations import filters as sql
from pipelines.integrations import models
from pipelines.integrations.documents import DocumentIndex, StoredDocument
from pipelines.integrations.metadata import column_of, from_columns
from pipelines.retrieval.hits import Hit, Hits

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
except ModuleNotFoundError:
    require_extra("llamaindex", __name__)
    raise

SOURCE_DOCUMENT = "ref_doc_id"
"""Metadata key under which LlamaIndex names the document that a node is a part of."""
MODES = {
    VectorStoreQueryMode.DEFAULT: {},
    VectorStoreQueryMode.MMR: {},
    VectorStoreQueryMode.HYBRID: {"mode": "hybrid"},
    VectorStoreQueryMode.SEMANTIC_HYBRID: {"mode": "hybrid"},
    VectorStoreQueryMode.SPARSE: {"mode": "sparse"},
    VectorStoreQueryMode.TEXT_SEARCH: {"mode": "bm25"},
}
"""Options of `Index.search` per query mode; the default mode takes the store's own options."""


class TridexEmbedding(BaseEmbedding):
    """Embeds texts as dense vectors of a BGE model, or of any other that tridex runs."""

    _embedder: Any = PrivateAttr()

    def __init__(self, model: Any = DEFAULT_MODEL, **kwargs: Any) -> None:
        """Loads a model. model: a name, hub id or folder, or a loaded embedder."""
        embedder = models.as_embedder(model)
        super().__init__(model_name=str(embedder.spec.model), **kwargs)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Returns the class name that LlamaIndex serialises."""
        return "TridexEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return models.query_vector(self._embedder, query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return models.passage_vectors(self._embedder, [text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return models.passage_vectors(self._embedder, texts)


class TridexVectorStore(BasePydanticVectorStore):
    """Wraps a tridex index as a LlamaIndex vector store; each node is a document of the index."""

    stores_text: bool = True
    is_embedding_query: bool = False
    flat_metadata: bool = False
    options: dict[str, Any] = Field(default_factory=dict)

    _documents: DocumentIndex = PrivateAttr()

    def __init__(
        self, index: str | Path | DocumentIndex, *, embedder: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Opens an index, or creates an empty one if there is none.

        index: its folder or URI. embedder: the model of an index that is made, as `embedders.0` in a job's config.
        options: keywords of every search, such as `mode`, `weights` or `rerank`.
        """
        super().__init__(options=options)  # type: ignore[call-arg]
        self._documents = index if isinstance(index, DocumentIndex) else DocumentIndex.open(index, embedder=embedder)

    @classmethod
    def class_name(cls) -> str:
        """Returns the class name that LlamaIndex serialises."""
        return "TridexVectorStore"

    @property
    def client(self) -> DocumentIndex:
        """Returns the index that the store wraps."""
        return self._documents

    @property
    def embedding(self) -> TridexEmbedding:
        """Returns the index's own model, for LlamaIndex's `embed_model`."""
        return TridexEmbedding(self._documents.embedder)

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Adds nodes; one whose id exists is replaced."""
        self._documents.upsert([_as_stored(node) for node in nodes])
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Deletes all nodes of a source document."""
        self._delete_where(sql.equals(self._documents.columns, SOURCE_DOCUMENT, ref_doc_id))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Deletes nodes by id, by filter, or those of the ids that meet the filter."""
        if node_ids is None and filters is None:
            raise ValueError("delete_nodes: name the nodes by node_ids or filters; clear() deletes all of them")
        self._delete_where(self._where(filters, node_ids) or sql.NEVER)

    def clear(self) -> None:
        """Deletes all nodes."""
        self._delete_where(None)

    def _delete_where(self, where: str | None) -> None:
        self._documents.delete([document.id for document in self._documents.documents(where)])

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Returns whole nodes by id and filter (None: all)."""
        found = self._documents.documents(self._where(filters, node_ids))
        return [_as_node(d.id, d.text, dict(d.metadata)) for d in found]

    def _where(self, filters: MetadataFilters | None, node_ids: list[str] | None = None) -> str | None:
        conditions = [] if filters is None else [as_where(filters, self._documents.columns)]
        if node_ids is not None:
            conditions.append(sql.one_of({"doc_id": pa.string()}, "doc_id", node_ids))
        return sql.all_of(conditions) if conditions else None

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Searches by the query's text. kwargs: of `Index.search`, over the store's options."""
        if not query.query_str:
            raise ConfigError("query: the index searches by text (query_str), a vector alone has one channel of four")
        k = query.hybrid_top_k or query.similarity_top_k
        options = {**self.options, **_mode_options(query), **kwargs}
        options.setdefault("where", self._query_where(query))
        if query.mode is VectorStoreQueryMode.MMR:
            return self._diverse(query, k, options)
        return _result(list(self._documents.search(query.query_str, k, **options)))

    def _query_where(self, query: VectorStoreQuery) -> str | None:
        columns, conditions = self._documents.columns, []
        if query.doc_ids:
            conditions.append(sql.one_of(columns, SOURCE_DOCUMENT, query.doc_ids))
        where = self._where(query.filters, query.node_ids or None)
        return sql.all_of([*conditions, *([where] if where else [])]) if conditions or where else None

    def _diverse(self, query: VectorStoreQuery, k: int, options: dict[str, Any]) -> VectorStoreQueryResult:
        """Selects k hits by maximal marginal relevance over the 4 k best."""
        hits = self._documents.search(query.query_str or "", 4 * k, **options)
        vectors = self._documents.dense_vectors([hit.chunk_id for hit in hits])
        query_vector = self._documents.dense_query(query.query_str or "")
        rows = [vectors[hit.chunk_id].tolist() for hit in hits]
        _, chosen = get_top_k_mmr_embeddings(
            np.asarray(query_vector).tolist(), rows, similarity_top_k=k, mmr_threshold=query.mmr_threshold
        )
        return _result([hits[i] for i in chosen])


class TridexRetriever(BaseRetriever):
    """Retrieves nodes by all channels from any index, including one that `tridex build` made."""

    def __init__(
        self, index: str | Path | DocumentIndex, *, k: int = 4, where: str | None = None, **options: Any
    ) -> None:
        """Opens an index. index: its folder or URI. where: a SQL condition. options: of every search."""
        self.documents = index if isinstance(index, DocumentIndex) else DocumentIndex.open(index, create=False)
        self.options = {"k": k, "where": where, **options}
        super().__init__()

    def search(self, query: str) -> Hits:
        """Searches the index and returns tridex's own hits."""
        return self.documents.search(query, **self.options)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=_node_of(hit), score=hit.score) for hit in self.search(query_bundle.query_str)]


class TridexReranker(BaseNodePostprocessor):
    """Orders nodes by a reranker."""

    model: Any = Field(default="BAAI/bge-reranker-v2-m3")
    """A reranker's name, hub id or folder, or any object with `.score(query, passages)`."""
    top_n: int | None = None

    @classmethod
    def class_name(cls) -> str:
        """Returns the class name that LlamaIndex serialises."""
        return "TridexReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a reranker needs the query: pass query_str or query_bundle")
        texts = [node.node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
        scores = models.rerank(self.model, query_bundle.query_str, texts)
        return [NodeWithScore(node=nodes[i].node, score=scores[i]) for i in models.best(scores, self.top_n)]


def _as_stored(node: BaseNode) -> StoredDocument:
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return StoredDocument(node.node_id, text, node_to_metadata_dict(node, remove_text=True, flat_metadata=False))


def _as_node(doc_id: str, text: str, metadata: dict[str, Any]) -> BaseNode:
    """Returns the node that was added; for an index that `tridex build` made, a TextNode of the row."""
    if "_node_content" not in metadata:
        return TextNode(id_=doc_id, text=text, metadata=metadata)
    return metadata_dict_to_node(metadata, text=text)


def _node_of(hit: Hit) -> BaseNode:
    node = _as_node(hit.doc_id, hit.text, from_columns(hit.metadata))
    node.metadata = {**node.metadata, "scores": dict(hit.scores)}
    node.excluded_llm_metadata_keys = [*node.excluded_llm_metadata_keys, "scores"]
    node.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, "scores"]
    return node


def _result(hits: list[Hit]) -> VectorStoreQueryResult:
    nodes = [_node_of(hit) for hit in hits]
    return VectorStoreQueryResult(nodes, [hit.score for hit in hits], [node.node_id for node in nodes])


def _mode_options(query: VectorStoreQuery) -> dict[str, Any]:
    """Converts the query's mode to `Index.search` options; alpha weighs dense against BM25, as in LlamaIndex."""
    if query.mode not in MODES:
        raise ConfigError(f"mode: {query.mode.value!r} is not there; there are {', '.join(m.value for m in MODES)}")
    options: dict[str, Any] = dict(MODES[query.mode])
    if query.alpha is not None and query.mode is VectorStoreQueryMode.HYBRID:
        options["weights"] = {"dense": query.alpha, "bm25": 1 - query.alpha}
    return options


def as_where(filters: MetadataFilters, columns: Mapping[str, pa.DataType]) -> str:
    """Translates LlamaIndex's filters to a SQL condition."""
    parts = [
        as_where(part, columns) if isinstance(part, MetadataFilters) else _condition(part, columns)
        for part in filters.filters
    ]
    if filters.condition is FilterCondition.OR:
        return sql.any_of(parts)
    return sql.negated(sql.any_of(parts)) if filters.condition is FilterCondition.NOT else sql.all_of(parts)


def _condition(filter: MetadataFilter, columns: Mapping[str, pa.DataType]) -> str:
    column, value, operator = column_of(filter.key), filter.value, filter.operator
    if operator in (FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE):
        return sql.ordered(columns, column, operator.value, value)
    listed: Sequence[Any] = value if isinstance(value, list) else [value]
    made = {
        FilterOperator.EQ: lambda: sql.equals(columns, column, value),
        FilterOperator.NE: lambda: sql.negated(sql.equals(columns, column, value)),
        FilterOperator.IN: lambda: sql.one_of(columns, column, listed),
        FilterOperator.NIN: lambda: sql.negated(sql.one_of(columns, column, listed)),
        FilterOperator.ANY: lambda: sql.any_of(sql.contains(columns, column, item) for item in listed),
        FilterOperator.ALL: lambda: sql.all_of(sql.contains(columns, column, item) for item in listed),
        FilterOperator.CONTAINS: lambda: sql.contains(columns, column, value),
        FilterOperator.TEXT_MATCH: lambda: sql.contains(columns, column, value),
        FilterOperator.TEXT_MATCH_INSENSITIVE: lambda: sql.contains(columns, column, value, ignore_case=True),
        FilterOperator.IS_EMPTY: lambda: sql.empty(columns, column),
    }
    return made[operator]()
