"""Defines routes that run models on a request's texts: embeddings (OpenAI), rerank (Jina, Cohere), encode (M3)."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
from fastapi import APIRouter, Depends, Request

from actors.outputs import Array, EmbeddingBatch
from actors.spec import Output
from pipelines.serving import schemas
from pipelines.serving.answering import Service
from pipelines.serving.bodies import Json, StrictRoute, vector_json
from pipelines.serving.errors import ApiError, documented
from pipelines.serving.guard import key_for, service_of
from pipelines.serving.keys import Key
from pipelines.serving.models import colbert_scores
from pipelines.serving.waiting import unless_gone

router = APIRouter(tags=["models"], route_class=StrictRoute, responses=documented())
The = Annotated[Service, Depends(service_of)]
Encoder = Annotated[Key, key_for("encode")]


@router.get("/v1/models", response_model=schemas.ModelsAnswer)
async def models(service: The, key: Encoder) -> Json:
    """List the models that embeddings and reranking may name."""
    views = [(view.name, int(view.opened)) for view in service.catalog.views()]
    others = [(name, views[0][1]) for name in (*service.models.rerankers, *service.catalog.aliases)]
    data = [{"id": name, "object": "model", "created": at, "owned_by": "tridex"} for name, at in (*views, *others)]
    return Json({"object": "list", "data": data})


@router.post("/v1/embeddings", response_model=schemas.EmbeddingsAnswer)
async def embeddings(body: schemas.EmbeddingsBody, request: Request, service: The, key: Encoder) -> Json:
    """Embed texts, as OpenAI's API does: the dense output of an index's model."""
    check_count(service, len(body.texts), "input")
    view = service.catalog.view(body.model, "model")
    async with service.admitted():
        batch = await unless_gone(request, service.models.encode(view, body.texts, body.input_type, ["dense"]))
    assert batch.dense is not None
    vectors = shortened(batch.dense.astype(np.float32, copy=False), body.dimensions)
    data = [
        {"object": "embedding", "index": i, "embedding": vector_json(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    return Json({"object": "list", "data": data, "model": body.model, "usage": usage(batch)})


def shortened(vectors: Array, dimensions: int | None) -> Array:
    """Truncates vectors to their first dimensions and normalises them again; 400 if the model has fewer."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        raise ApiError(400, f"dimensions: the model has {vectors.shape[1]}, asked for {dimensions}", "dimensions")
    kept = vectors[:, :dimensions]
    normalised: Array = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
    return normalised


def usage(*batches: EmbeddingBatch) -> dict[str, int]:
    """Counts the tokens that the model read."""
    tokens = int(sum(int(batch.n_tokens.sum()) for batch in batches))
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def check_count(service: Service, count: int, field: str) -> None:
    """Refuses with 400 more texts than the limit per call."""
    if count > service.limits.texts:
        raise ApiError(400, f"{field}: at most {service.limits.texts} at once, got {count}", field)


@router.post("/v1/rerank", response_model=schemas.RerankAnswer, response_model_exclude_none=True)
@router.post("/v2/rerank", response_model=schemas.RerankAnswer, response_model_exclude_none=True)
async def rerank(body: schemas.RerankBody, request: Request, service: The, key: Encoder) -> Json:
    """Rerank documents, as Jina's and Cohere's APIs do: by one of the server's rerankers, or by ColBERT."""
    check_count(service, len(body.texts), "documents")
    service.check_text(body.query, "query")
    async with service.admitted():
        name, scores, used = await unless_gone(request, _scores(service, body))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: body.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
    if body.return_documents or (body.return_documents is None and not request.url.path.startswith("/v2")):
        results = [result | {"document": {"text": body.texts[result["index"]]}} for result in results]
    version = request.url.path.split("/")[1].removeprefix("v")
    meta = {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
    return Json(
        {"id": str(uuid4()), "object": "rerank", "model": name, "results": results, "usage": used, "meta": meta}
    )


async def _scores(service: Service, body: schemas.RerankBody) -> tuple[str, list[float], dict[str, int]]:
    """Scores the documents; returns the model's name, one score per document, and the tokens read."""
    models = service.models
    name = models.reranker_name(body.model)
    if name is not None:
        scores = await service.on_thread(_cross_scores, service, name, body)
        return name, scores, {"prompt_tokens": 0, "total_tokens": 0}
    view = service.catalog.view(None if body.model in (None, "colbert") else body.model, "model")
    embedder = await service.models.embedder(view)
    outputs: list[Output] = ["colbert"] if "colbert" in embedder.outputs else ["dense"]
    query, passages = await asyncio.gather(
        models.encode(view, [body.query], "query", outputs), models.encode(view, body.texts, "passage", outputs)
    )
    return view.name, colbert_scores(query, passages), usage(query, passages)


def _cross_scores(service: Service, name: str, body: schemas.RerankBody) -> list[float]:
    with service.metrics.stage("rerank"):
        reranker = service.models.reranker(name, "model")
        return [float(s) for s in reranker.score(body.query, body.texts, normalize=not body.raw_scores)]


@router.post("/v1/encode", response_model=schemas.EncodeAnswer)
async def encode(body: schemas.EncodeBody, request: Request, service: The, key: Encoder) -> Json:
    """Encode texts into the outputs of one pass: dense vectors, lexical weights by token id, and ColBERT vectors."""
    check_count(service, len(body.texts), "texts")
    view = service.catalog.view(body.model, "model")
    embedder = await service.models.embedder(view)
    outputs = body.outputs or list(embedder.outputs)
    async with service.admitted():
        batch = await unless_gone(request, service.models.encode(view, body.texts, body.input_type, outputs))
    data = await service.on_thread(lambda: [encoded(batch, i, body.encoding_format) for i in range(len(batch))])
    dims = {"dim": embedder.dim, "colbert_dim": embedder.colbert_dim}
    return Json({"model": view.name, "input_type": body.input_type, **dims, "data": data})


def encoded(batch: EmbeddingBatch, i: int, encoding: str) -> dict[str, Any]:
    """Converts one text's outputs to plain values."""
    row: dict[str, Any] = {"index": i, "n_tokens": int(batch.n_tokens[i]), "n_truncated": int(batch.n_truncated[i])}
    if batch.dense is not None:
        row["dense"] = vector_json(batch.dense[i], encoding)
    if batch.sparse is not None:
        ids, weights = batch.sparse.row(i)
        row["sparse"] = {"indices": ids.tolist(), "values": weights.tolist()}
    if batch.colbert is not None:
        row["colbert"] = vector_json(batch.colbert.row(i), encoding)
    return row
