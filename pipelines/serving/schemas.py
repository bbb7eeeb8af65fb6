"""Defines the bodies of requests and responses; the search options are the fields of `SearchOptions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipelines.config import SearchOptions

Text = Annotated[str, StringConstraints(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """Forbids unknown fields in request bodies; the error names the field."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(BaseModel):
    """Serves as the base of response bodies."""

    model_config = ConfigDict(frozen=True)


def _no_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


class IndexOptions(SearchOptions):
    """Accepts the options of `Index.search`; a reranker must be one configured on the server, or a channel."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rerank: str | None = Field(None, description="Second stage: colbert, or a reranker that this server offers.")
    index: str | None = Field(None, description="Name or alias of an index; by default the first one.")

    @field_validator("columns", mode="before")
    @classmethod
    def _json_has_no_tuples(cls, columns: Any) -> Any:
        return tuple(columns) if isinstance(columns, list) else columns


class SearchBody(IndexOptions):
    """Requests a search of one query, or of several in one batch."""

    query: Text | list[Text] = Field(description="One query or a list of them.")
    normalised: bool = Field(
        False,
        description="Give the scores of every channel on the fusion's scale, so that a client can weigh them anew.",
    )

    @field_validator("query")
    @classmethod
    def _queries_say_something(cls, query: str | list[str]) -> str | list[str]:
        queries = [query] if isinstance(query, str) else query
        if not queries:
            raise ValueError("at least one is needed")
        for text in queries:
            _no_blank(text)
        return query

    @property
    def queries(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else self.query


class ExplainBody(IndexOptions):
    """Requests the explanation of a document's or a chunk's score."""

    query: Text
    id: Text = Field(description="A chunk's id, or a document's, which stands for its best chunk.")

    @field_validator("query")
    @classmethod
    def _query_says_something(cls, query: str) -> str:
        return _no_blank(query)


class PassageAnswer(Answer):
    """Holds the window of the text that matched; `marks` are the matching spans, by their characters in `text`."""

    text: str
    start: int
    end: int
    marks: list[tuple[int, int]]


class HitAnswer(Answer):
    """Holds one row. `score` is what hits are sorted by; `scores` are the channels' own."""

    rank: int
    doc_id: str
    chunk_id: str
    score: float
    scores: dict[str, float]
    passage: PassageAnswer
    source: str | None
    line: int | None
    text: str
    metadata: dict[str, Any]
    normalised: dict[str, float] | None = Field(
        None, description="Each channel's score on the fusion's scale: the score is their sum, weighed."
    )


class QueryAnswer(Answer):
    """Holds the hits of one query, best first."""

    query: str
    mode: str
    fusion: str | None
    weights: dict[str, float]
    n_truncated: int
    hits: list[HitAnswer]


class SearchAnswer(Answer):
    """Holds the results of all queries of a search, from one version of one index."""

    index: str
    version: int
    results: list[QueryAnswer]


class ExplainAnswer(Answer):
    """Explains the score of a row, down to single tokens."""

    index: str
    version: int
    explanation: dict[str, Any]


class Chunk(Answer):
    chunk_id: str
    start: int | None
    end: int | None
    text: str | None


class Document(Answer):
    """Holds a document with its chunks."""

    doc_id: str
    source: str | None
    metadata: dict[str, Any]
    chunks: list[Chunk]


class DocumentAnswer(Answer):
    index: str
    version: int
    document: Document


class NewDocument(BaseModel):
    """Holds a document to write: its id, its text, and values of the index's columns (null if left out)."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    doc_id: Text
    text: Text


class UpsertBody(Body):
    """Lists documents to write; one whose id exists replaces that document and all its chunks."""

    documents: list[NewDocument] = Field(min_length=1)
    index: str | None = Field(None, description="Name or alias of an index; by default the first one.")


class DeleteBody(Body):
    ids: list[Text] = Field(min_length=1)
    index: str | None = Field(None, description="Name or alias of an index; by default the first one.")


class UpsertAnswer(Answer):
    index: str
    version: int = Field(description="The version that has the documents; later requests see it.")
    upserted: int


class DeleteAnswer(Answer):
    index: str
    version: int
    deleted_rows: int


class IndexDescription(Answer):
    name: str
    aliases: list[str]
    embedder: str
    model: str
    version: int
    rows: int
    channels: list[str]
    fusion: str
    weights: dict[str, float]
    columns: list[str]


class IndexesAnswer(Answer):
    indexes: list[IndexDescription]
    rerankers: list[str]
    scopes: list[str] = Field(description="What the key of this request may do.")


InputType = Annotated[
    Literal["query", "passage"],
    Field(description="Which instruction and length of the model the texts get; OpenAI has no such field."),
]


class EmbeddingsBody(Body):
    """Accepts OpenAI's `POST /v1/embeddings` request, extended by `input_type`."""

    input: Text | list[Text] | list[int] | list[list[int]] = Field(
        description="A text, texts, or token ids of the model's own tokenizer, special tokens included."
    )
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Keep the first of the vector's dimensions, normalised again."
    )
    user: str | None = None
    input_type: InputType = "passage"

    @field_validator("input")
    @classmethod
    def _some_input(cls, given: Any) -> Any:
        if not given or (isinstance(given, list) and not all(isinstance(i, int) or i for i in given)):
            raise ValueError("is empty")
        return given

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """Returns the input as a list of texts, or of lists of token ids."""
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class Embedding(Answer):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Answer):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class RerankDocument(Body):
    text: Text


class RerankBody(Body):
    """Accepts Jina's and Cohere's rerank requests; fields without a meaning here are accepted and ignored."""

    query: Text
    documents: list[Text | RerankDocument] = Field(min_length=1)
    model: str | None = None
    top_n: Annotated[int, Field(gt=0)] | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = Field(None, description="Cohere v1; ignored: a document is its text.")
    max_chunks_per_doc: int | None = Field(
        None, description="Cohere v1; ignored: documents are cut at the model's length."
    )
    max_tokens_per_doc: int | None = Field(None, description="Cohere v2; ignored, too.")
    priority: int | None = Field(None, description="Cohere v2; ignored.")
    raw_scores: bool = Field(False, description="Infinity's: a reranker's logits instead of their logistic function.")

    @field_validator("query")
    @classmethod
    def _query_says_something(cls, query: str) -> str:
        return _no_blank(query)

    @property
    def texts(self) -> list[str]:
        return [d if isinstance(d, str) else d.text for d in self.documents]


class RerankedDocument(Answer):
    text: str


class RerankResult(Answer):
    index: int
    relevance_score: float
    document: RerankedDocument | None = None


class RerankAnswer(Answer):
    """Lists results by descending score, in the fields of Jina (`model`, `usage`) and Cohere (`id`, `meta`)."""

    id: str
    object: Literal["rerank"] = "rerank"
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: dict[str, Any]


class EncodeBody(Body):
    """Requests the outputs of one forward pass of an M3 model."""

    texts: list[Text] = Field(min_length=1)
    model: str | None = Field(None, description="Name or alias of an index or its model; by default the first one.")
    input_type: InputType = "passage"
    outputs: list[Literal["dense", "sparse", "colbert"]] | None = Field(
        None, min_length=1, description="By default every output that the model has."
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: vectors as little-endian float32, for `colbert` row by row."
    )


class SparseOutput(Answer):
    indices: list[int]
    values: list[float]


class Encoded(Answer):
    index: int
    dense: list[float] | str | None = None
    sparse: SparseOutput | None = None
    colbert: list[list[float]] | str | None = None
    n_tokens: int
    n_truncated: int


class EncodeAnswer(Answer):
    model: str
    input_type: str
    dim: int
    colbert_dim: int | None
    data: list[Encoded]


class ModelDescription(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tridex"


class ModelsAnswer(Answer):
    object: Literal["list"] = "list"
    data: list[ModelDescription]
