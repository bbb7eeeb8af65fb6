"""Adapts tridex to LangChain: a hybrid vector store, a retriever, embeddings and a reranker. Extra: `langchain`.

    store = TridexVectorStore("./idx")
    store.add_texts(["Rivers carry sediment."], [{"year": 2020}], ids=["river"])
    store.similarity_search("what moves sand", k=1, filter={"year": {"$gte": 2019}})

A search ranks by all channels of the index unless given `mode="dense"` or another one; all keywords of `Index.search`
are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field

from actors.extras import require_extra
from actors.spec import EmbedderSpec
from pipelines.config import DEFAULT_MODEL, ConfigError
from pipelines.integrations import filters as sql
from pipelines.integrations import models
from pipelines.integrations.documents import DocumentIndex, StoredDocument
from pipelines.integrations.metadata import column_of, from_columns, of_hit
from pipelines.retrieval.hits import Hit, Hits

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun, Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ModuleNotFoundError:
    require_extra("langchain", __name__)
    raise

Filter = str | Mapping[str, Any]
"""A SQL condition over the index's columns, or a mapping such as `{"year": {"$gte": 2019}, "lang": "en"}`."""


class TridexEmbeddings(Embeddings):
    """Embeds texts as dense vectors of a BGE model, or of any other that tridex runs."""

    def __init__(self, model: Any = DEFAULT_MODEL, **options: Any) -> None:
        """Loads a model. model: a name, hub id, folder or loaded embedder. options: fields of `EmbedderSpec`."""
        self.embedder = models.as_embedder(EmbedderSpec(model=model, **options) if options else model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds passages."""
        return models.passage_vectors(self.embedder, texts)

    def embed_query(self, text: str) -> list[float]:
        """Embeds a query, with the model's query instruction."""
        return models.query_vector(self.embedder, text)


class TridexVectorStore(VectorStore):
    """Wraps a tridex index as a LangChain vector store."""

    def __init__(
        self,
        index: str | Path | DocumentIndex,
        *,
        embedder: Mapping[str, Any] | None = None,
        channel_scores: bool = False,
        **options: Any,
    ) -> None:
        """Opens an index, or creates an empty one if there is none.

        index: its folder or URI. embedder: the model of an index that is made, as `embedders.0` in a job's config.
        channel_scores: puts `chunk_id`, `score` and `scores` (by channel) into the metadata of what is found.
        options: of every search, such as `mode`, `weights` or `rerank`.
        """
        self.documents = index if isinstance(index, DocumentIndex) else DocumentIndex.open(index, embedder=embedder)
        self.channel_scores = channel_scores
        self.options = options

    @property
    def embeddings(self) -> TridexEmbeddings:
        """Returns the index's own model."""
        return TridexEmbeddings(self.documents.embedder)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Adds texts; one whose id exists is replaced. Returns the ids."""
        bodies = list(texts)
        names = [i or uuid4().hex for i in (ids or [""] * len(bodies))]
        given = metadatas or [{} for _ in bodies]
        if not len(bodies) == len(names) == len(given):
            raise ValueError(f"{len(bodies)} texts, {len(given)} metadatas and {len(names)} ids were given")
        rows = {i: StoredDocument(i, text, about) for i, text, about in zip(names, bodies, given, strict=True)}
        self.documents.upsert(list(rows.values()))
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Deletes documents by id. Unknown ids are no error; without ids it raises ValueError."""
        if ids is None:
            raise ValueError("delete: name the ids; all documents at once are deleted by removing the index")
        self.documents.delete(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Returns whole documents by id; unknown ids are left out."""
        return [Document(id=d.id, page_content=d.text, metadata=dict(d.metadata)) for d in self.documents.get(ids)]

    def search_hits(self, query: str, k: int = 4, filter: Filter | None = None, **options: Any) -> Hits:
        """Searches the index and returns tridex's own hits, with every channel's score and a notebook view."""
        where = options.pop("where", None) or as_where(filter, self.documents.columns)
        return self.documents.search(query, k, where=where, **{**self.options, **options})

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **options: Any) -> list[Document]:
        """Returns the k best documents."""
        hits = self.search_hits(query, k, filter, **options)
        return [as_document(hit, self.channel_scores) for hit in hits]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """Returns the k best documents with their ranking scores: higher is better; the range depends on `fusion`."""
        hits = self.search_hits(query, k, filter, **options)
        return [(as_document(hit, self.channel_scores), hit.score) for hit in hits]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """Returns the k best documents in ranking order, each with its cosine similarity, clipped to 0 to 1."""
        hits = self.search_hits(query, k, **options)
        return [(as_document(h, self.channel_scores), min(1.0, max(0.0, h.scores["dense"]))) for h in hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **options: Any,
    ) -> list[Document]:
        """Selects k of the `fetch_k` best documents by maximal marginal relevance over dense vectors."""
        hits = self.search_hits(query, fetch_k, filter, **options)
        vectors = self.documents.dense_vectors([hit.chunk_id for hit in hits])
        query_vector = self.documents.dense_query(query)
        rows = [vectors[hit.chunk_id].tolist() for hit in hits]
        chosen = maximal_marginal_relevance(np.asarray(query_vector), rows, lambda_mult, k)
        return [as_document(hits[i], self.channel_scores) for i in chosen]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        index: str | Path = "./idx",
        **kwargs: Any,
    ) -> TridexVectorStore:
        """Opens or creates the index at `index` and adds texts.

        embedding: None or TridexEmbeddings; the index embeds by itself, all outputs in one pass.
        """
        if embedding is not None and not isinstance(embedding, TridexEmbeddings):
            raise ConfigError("embedding: the index embeds by itself; pass embedder={'model': ...} instead")
        if embedding is not None and "embedder" not in kwargs:
            kwargs["embedder"] = {"model": embedding.embedder.spec.model}
        store = cls(index, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store


class TridexRetriever(BaseRetriever):
    """Finds documents by all channels; the metadata of each carries `chunk_id`, `score` and `scores`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: Any
    """An index's folder or URI, a TridexVectorStore or a DocumentIndex."""
    k: int = 4
    filter: Any = None
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords of every search, such as `mode`, `weights` or `rerank`."""

    def model_post_init(self, context: Any, /) -> None:
        """Opens the index; ConfigError if there is none."""
        super().model_post_init(context)
        if isinstance(self.index, (str, Path)):
            self.index = DocumentIndex.open(self.index, create=False)
        elif isinstance(self.index, TridexVectorStore):
            self.index = self.index.documents

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,
        **options: Any,
    ) -> list[Document]:
        where = as_where(self.filter if filter is None else filter, self.index.columns)
        hits = self.index.search(query, self.k if k is None else k, where=where, **{**self.options, **options})
        return [as_document(hit, scores=True) for hit in hits]


class TridexReranker(BaseDocumentCompressor):
    """Orders retrieved documents by a reranker; `relevance_score` in the metadata is its score."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: Any = "BAAI/bge-reranker-v2-m3"
    """A reranker's name, hub id or folder, or any object with `.score(query, passages)`."""
    top_n: int | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Returns the `top_n` best documents (None: all), best first."""
        scores = models.rerank(self.model, query, [document.page_content for document in documents])
        return [
            documents[i].model_copy(update={"metadata": {**documents[i].metadata, "relevance_score": scores[i]}})
            for i in models.best(scores, self.top_n)
        ]


def as_document(hit: Hit, scores: bool) -> Document:
    """Converts a hit to LangChain's Document; its text is the best matching chunk."""
    metadata = of_hit(hit) if scores else from_columns(hit.metadata)
    return Document(id=hit.doc_id, page_content=hit.text, metadata=metadata)


def as_where(filter: Filter | None, columns: Mapping[str, pa.DataType]) -> str | None:
    """Translates a LangChain filter to a SQL condition; a string is kept. ConfigError names an unknown operator.

    >>> as_where({"year": {"$gte": 2019}, "lang": "en"}, {"year": pa.int64(), "lang": pa.string()})
    "((`year` IS NOT NULL AND `year` >= 2019) AND (`lang` IS NOT NULL AND `lang` = 'en'))"
    """
    if filter is None or isinstance(filter, str):
        return filter
    if not isinstance(filter, Mapping):
        raise ConfigError(f"filter: expected a mapping or a SQL condition, got {type(filter).__name__}")
    return sql.all_of(_condition(key, value, columns) for key, value in filter.items())


def _condition(key: str, value: Any, columns: Mapping[str, pa.DataType]) -> str:
    if key in ("$and", "$or"):
        parts = [as_where(part, columns) or sql.ALWAYS for part in value]
        return sql.all_of(parts) if key == "$and" else sql.any_of(parts)
    if key == "$not":
        return sql.negated(as_where(value, columns) or sql.ALWAYS)
    column = column_of(key)
    if isinstance(value, Mapping):
        return sql.all_of(_comparison(column, operator, operand, columns) for operator, operand in value.items())
    return sql.equals(columns, column, value)


def _exists(columns: Mapping[str, pa.DataType], column: str, wanted: bool) -> str:
    missing = sql.equals(columns, column, None)
    return sql.negated(missing) if wanted else missing


_ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def _comparison(column: str, operator: str, value: Any, columns: Mapping[str, pa.DataType]) -> str:
    if operator in _ORDER:
        return sql.ordered(columns, column, _ORDER[operator], value)
    if operator == "$between":
        return sql.all_of(sql.ordered(columns, column, o, v) for o, v in zip((">=", "<="), value, strict=True))
    made = {
        "$eq": lambda: sql.equals(columns, column, value),
        "$ne": lambda: sql.negated(sql.equals(columns, column, value)),
        "$in": lambda: sql.one_of(columns, column, list(value)),
        "$nin": lambda: sql.negated(sql.one_of(columns, column, list(value))),
        "$exists": lambda: _exists(columns, column, bool(value)),
        "$contains": lambda: sql.contains(columns, column, value),
        "$not": lambda: sql.negated(sql.all_of(_comparison(column, o, v, columns) for o, v in dict(value).items())),
    }
    if operator not in made:
        raise ConfigError(f"filter: {operator!r} is unknown; there are {', '.join([*_ORDER, *made])}, $between")
    return made[operator]()
