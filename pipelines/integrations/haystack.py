"""Adapts tridex to Haystack: a document store, a retriever, embedders and a ranker. Extra: `haystack`.

    store = TridexDocumentStore("./idx")
    store.write_documents([Document(content="Rivers carry sediment.", meta={"year": 2020})])
    TridexRetriever(store).run("what moves sand", top_k=3)["documents"][0].meta["scores"]

The index embeds by itself, all outputs in one pass; an `embedding` that a document has is not kept.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.extras import require_extra
from actors.outputs import EmbeddingBatch
from pipelines.config import DEFAULT_MODEL, ConfigError
from pipelines.integrations import filters as sql
from pipelines.integrations import models
from pipelines.integrations.documents import DocumentIndex, StoredDocument
from pipelines.integrations.metadata import column_of, of_hit
from pipelines.retrieval.hits import Hit

try:
    from haystack import component, default_from_dict, default_to_dict
    from haystack.dataclasses import Document, SparseEmbedding
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
    from haystack.errors import FilterError
except ModuleNotFoundError:
    require_extra("haystack", __name__)
    raise

Filters = dict[str, Any]
COMPARISONS = ("==", "!=", *sql.ORDERED, "in", "not in")


class TridexDocumentStore:
    """Wraps a tridex index as a Haystack document store."""

    def __init__(
        self, index: str | Path | DocumentIndex, *, embedder: Mapping[str, Any] | None = None, table: str = "documents"
    ) -> None:
        """Opens an index, or creates an empty one if there is none.

        index: its folder or URI. embedder: the model of an index that is made, as `embedders.0` in a job's config.
        """
        self._given = {"embedder": None if embedder is None else dict(embedder), "table": table}
        if isinstance(index, DocumentIndex):
            self.documents = index
        else:
            self.documents = DocumentIndex.open(index, embedder=embedder, table=table)

    def to_dict(self) -> dict[str, Any]:
        """Serialises the store's settings as plain values; documents are not included."""
        return default_to_dict(self, index=str(self.documents.uri), **self._given)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TridexDocumentStore:
        """Opens the store from the settings that `to_dict` returned."""
        return default_from_dict(cls, data)

    def count_documents(self) -> int:
        """Counts the documents."""
        return self.documents.count()

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Returns whole documents that meet the filters (None: all)."""
        found = self.documents.documents(self.where(filters))
        return [Document(id=d.id, content=d.text, meta=dict(d.metadata)) for d in found]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Writes documents; returns how many. Without a policy, an existing id raises DuplicateDocumentError."""
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise ValueError("write_documents: expected a list of Documents")
        there = self.documents.existing([document.id for document in documents])
        if there and policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
            raise DuplicateDocumentError(f"documents with these ids are there already: {', '.join(sorted(there))}")
        skipped = there if policy is DuplicatePolicy.SKIP else set()
        new = {d.id: d for d in documents if d.id not in skipped}
        return self.documents.upsert([_as_stored(document) for document in new.values()])

    def delete_documents(self, document_ids: list[str]) -> None:
        """Deletes documents by id; unknown ids are no error."""
        self.documents.delete(document_ids)

    def delete_all_documents(self) -> None:
        """Deletes every document; the index and its columns remain."""
        self.documents.delete([document.id for document in self.documents.documents()])

    def delete_by_filter(self, filters: Filters) -> int:
        """Deletes the documents that meet the filters; returns how many."""
        return self.documents.delete([document.id for document in self.documents.documents(self.where(filters))])

    def update_by_filter(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Changes metadata of the documents that meet the filters, without embedding again; returns their number."""
        found = list(self.documents.documents(self.where(filters)))
        return self.documents.upsert([StoredDocument(d.id, d.text, {**d.metadata, **meta}) for d in found])

    def count_documents_by_filter(self, filters: Filters) -> int:
        """Counts documents that meet the filters."""
        return self.documents.count(self.where(filters))

    def count_unique_metadata_by_filter(self, filters: Filters, metadata_fields: list[str]) -> dict[str, int]:
        """Counts the distinct values of each field over the documents that meet the filters."""
        return {name: len(self._unique(name, filters)) for name in map(_strip_prefix, metadata_fields)}

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """Returns the fields that filters can name, each with its type."""
        return {key: {"type": str(kind)} for key, kind in self.documents.metadata_keys.items()}

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """Returns the minimum and the maximum of a field; None if no document has it."""
        values = self.documents.values(_strip_prefix(metadata_field))
        return {"min": min(values, default=None), "max": max(values, default=None)}

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: Filters | None = None,
    ) -> tuple[list[Any], int]:
        """Returns a page of a field's values and their total. search_term: a substring, case-insensitive."""
        values = self._unique(_strip_prefix(metadata_field), filters)
        if search_term is not None:
            values = [value for value in values if search_term.lower() in str(value).lower()]
        return values[from_ : from_ + size], len(values)

    def _unique(self, key: str, filters: Filters | None) -> list[Any]:
        """Sorts the distinct values of a key by type and value; 1, 1.0, True and "1" are four values."""
        values = self.documents.values(key, self.where(filters))
        found = {(type(value).__name__, repr(value)): value for value in values}
        return sorted(found.values(), key=lambda value: (isinstance(value, str), str(type(value)), value))

    def where(self, filters: Filters | None) -> str | None:
        """Translates Haystack's filters to a SQL condition; FilterError names the fault."""
        if not filters:
            return None
        try:
            return as_where(filters, self.documents.columns)
        except ConfigError as error:
            raise FilterError(str(error)) from error

    async def count_documents_async(self) -> int:
        """Runs `count_documents` in a thread."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: Filters | None = None) -> list[Document]:
        """Runs `filter_documents` in a thread."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Runs `write_documents` in a thread."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """Runs `delete_documents` in a thread."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    async def delete_all_documents_async(self) -> None:
        """Runs `delete_all_documents` in a thread."""
        await asyncio.to_thread(self.delete_all_documents)

    async def delete_by_filter_async(self, filters: Filters) -> int:
        """Runs `delete_by_filter` in a thread."""
        return await asyncio.to_thread(self.delete_by_filter, filters)

    async def update_by_filter_async(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Runs `update_by_filter` in a thread."""
        return await asyncio.to_thread(self.update_by_filter, filters, meta)


@component
class TridexRetriever:
    """Finds documents by all channels; `meta` of each has `chunk_id` and `scores`, every channel's own."""

    def __init__(
        self,
        document_store: TridexDocumentStore,
        *,
        filters: Filters | None = None,
        top_k: int = 10,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Creates the retriever. options: keywords of `Index.search` for every query, such as `mode` or `rerank`."""
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.filter_policy = FilterPolicy.from_str(filter_policy) if isinstance(filter_policy, str) else filter_policy
        self.options = options or {}

    def to_dict(self) -> dict[str, Any]:
        """Serialises the component as plain values."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
            options=self.options,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TridexRetriever:
        """Creates the component from the settings that `to_dict` returned."""
        store = data["init_parameters"]["document_store"]
        if isinstance(store, dict):
            data["init_parameters"]["document_store"] = TridexDocumentStore.from_dict(store)
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        filters: Filters | None = None,
        top_k: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> dict[str, list[Document]]:
        """Returns the `top_k` best documents. filters: added to or replacing the component's, by `filter_policy`."""
        wanted = apply_filter_policy(self.filter_policy, self.filters, filters)
        search_options = {**self.options, **(options or {})}
        where = self.document_store.where(wanted)
        hits = self.document_store.documents.search(query, top_k or self.top_k, where=where, **search_options)
        return {"documents": [_found(hit) for hit in hits]}


@component
class TridexTextEmbedder:
    """Embeds a query: a dense vector and, if the model has sparse output, a sparse one."""

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        """Creates the embedder. model: a name, hub id or folder."""
        self.model = model

    def to_dict(self) -> dict[str, Any]:
        """Serialises the component as plain values."""
        return default_to_dict(self, model=self.model)

    @component.output_types(embedding=list[float], sparse_embedding=SparseEmbedding | None)
    def run(self, text: str) -> dict[str, Any]:
        """Embeds a query, with the model's query instruction."""
        if not isinstance(text, str):
            raise TypeError("TridexTextEmbedder embeds one text; TridexDocumentEmbedder embeds documents")
        embedder = models.as_embedder(self.model)
        (embedding, sparse) = _vectors(embedder.embed_queries([text], _outputs(embedder)))[0]
        return {"embedding": embedding, "sparse_embedding": sparse}


@component
class TridexDocumentEmbedder:
    """Embeds documents for other document stores: dense vectors and, if the model has them, sparse ones."""

    def __init__(self, model: str = DEFAULT_MODEL, meta_fields_to_embed: list[str] | None = None) -> None:
        """Creates the embedder. model: a name, hub id or folder. meta_fields_to_embed: prepended, one per line."""
        self.model = model
        self.meta_fields_to_embed = meta_fields_to_embed or []

    def to_dict(self) -> dict[str, Any]:
        """Serialises the component as plain values."""
        return default_to_dict(self, model=self.model, meta_fields_to_embed=self.meta_fields_to_embed)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Embeds documents; returns copies and leaves the given ones unchanged."""
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise TypeError("TridexDocumentEmbedder embeds a list of documents; TridexTextEmbedder embeds a text")
        embedder = models.as_embedder(self.model)
        texts = [self._text(document) for document in documents]
        vectors = _vectors(embedder.embed_corpus(texts, _outputs(embedder))) if texts else []
        made = [
            Document(
                id=document.id,
                content=document.content,
                blob=document.blob,
                meta=document.meta,
                score=document.score,
                embedding=dense,
                sparse_embedding=sparse,
            )
            for document, (dense, sparse) in zip(documents, vectors, strict=True)
        ]
        return {"documents": made}

    def _text(self, document: Document) -> str:
        about = [str(document.meta[f]) for f in self.meta_fields_to_embed if document.meta.get(f) is not None]
        return "\n".join([*about, document.content or ""])


@component
class TridexRanker:
    """Orders documents by a reranker; `score` is its score."""

    def __init__(self, model: Any = "BAAI/bge-reranker-v2-m3", top_k: int | None = None) -> None:
        """Creates the ranker. model: a reranker's name, hub id, folder, or object with `.score(query, passages)`."""
        self.model = model
        self.top_k = top_k

    def to_dict(self) -> dict[str, Any]:
        """Serialises the component as plain values."""
        return default_to_dict(self, model=self.model, top_k=self.top_k)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Returns the `top_k` best documents (None: all), best first."""
        scores = models.rerank(self.model, query, [document.content or "" for document in documents])
        order = models.best(scores, self.top_k if top_k is None else top_k)
        return {"documents": [_scored(documents[i], scores[i]) for i in order]}


def _scored(document: Document, score: float) -> Document:
    return Document(
        id=document.id,
        content=document.content,
        blob=document.blob,
        meta=document.meta,
        score=score,
        embedding=document.embedding,
        sparse_embedding=document.sparse_embedding,
    )


def _as_stored(document: Document) -> StoredDocument:
    return StoredDocument(document.id, document.content or "", document.meta)


def _found(hit: Hit) -> Document:
    return Document(id=hit.doc_id, content=hit.text, meta=of_hit(hit), score=hit.score)


def _outputs(embedder: Any) -> list[Any]:
    return [output for output in ("dense", "sparse") if output in embedder.outputs]


def _vectors(batch: EmbeddingBatch) -> list[tuple[list[float], SparseEmbedding | None]]:
    assert batch.dense is not None, "every model has a dense output"
    dense = [[float(x) for x in vector] for vector in batch.dense]
    if batch.sparse is None:
        return [(vector, None) for vector in dense]
    sparse, offsets = batch.sparse, batch.sparse.offsets.tolist()
    rows = [
        SparseEmbedding([int(t) for t in sparse.token_ids[a:b]], [float(w) for w in sparse.weights[a:b]])
        for a, b in itertools.pairwise(offsets)
    ]
    return list(zip(dense, rows, strict=True))


def _strip_prefix(field: str) -> str:
    """Removes Haystack's prefix from a field's name."""
    return field.removeprefix("meta.")


def as_where(filters: Mapping[str, Any], columns: Mapping[str, pa.DataType]) -> str:
    """Translates Haystack's filters to a SQL condition. ConfigError names the fault."""
    if "field" in filters:
        return _comparison(filters, columns)
    operator, conditions = filters.get("operator"), filters.get("conditions")
    if operator not in ("AND", "OR", "NOT"):
        raise ConfigError(f"filters: 'operator' must be AND, OR or NOT, got {operator!r}")
    if not isinstance(conditions, Sequence) or not all(isinstance(part, Mapping) for part in conditions):
        raise ConfigError("filters: 'conditions' must be a list of filters")
    parts = [as_where(part, columns) for part in conditions]
    if operator == "OR":
        return sql.any_of(parts)
    return sql.all_of(parts) if operator == "AND" else sql.negated(sql.all_of(parts))


def _comparison(filter: Mapping[str, Any], columns: Mapping[str, pa.DataType]) -> str:
    for key in ("field", "operator", "value"):
        if key not in filter:
            raise ConfigError(f"filters: {key!r} is missing in {dict(filter)!r}")
    operator, value = filter["operator"], filter["value"]
    if operator not in COMPARISONS:
        raise ConfigError(f"filters: operator {operator!r} is unknown; there are {', '.join(COMPARISONS)}")
    if operator in ("in", "not in") and not isinstance(value, list):
        raise ConfigError(f"filters: {operator!r} needs a list, got {value!r}")
    if operator in sql.ORDERED:
        return _compare_ordered(filter["field"], operator, value, columns)
    column, known = _column(filter["field"], columns)
    made: dict[str, Callable[[], str]] = {
        "==": lambda: sql.equals(known, column, value),
        "!=": lambda: sql.negated(sql.equals(known, column, value)),
        "in": lambda: sql.one_of(known, column, value),
        "not in": lambda: sql.negated(sql.one_of(known, column, value)),
    }
    return made[operator]()


def _compare_ordered(field: str, operator: str, value: Any, columns: Mapping[str, pa.DataType]) -> str:
    """Compares numbers or datetimes; texts are ordered only as ISO dates, as in Haystack."""
    column, known = _column(field, columns)
    if isinstance(value, str) and sql.moment(value) is None:
        raise ConfigError(f"filters: {operator} compares numbers and ISO dates, got {value!r}")
    kind = known.get(column)
    if isinstance(value, str) and kind is not None and pa.types.is_string(kind):
        return sql.ordered_dates(known, column, operator, value)
    return sql.ordered(known, column, operator, value)


def _column(field: str, columns: Mapping[str, pa.DataType]) -> tuple[str, Mapping[str, pa.DataType]]:
    """Returns the column of a filter's field: `meta.KEY` or `KEY`, `id`, `content`."""
    own = {"id": "doc_id", "content": "text"}
    if field in own:
        return own[field], {own[field]: pa.string()}
    return column_of(_strip_prefix(field)), columns
