"""Runs the served indexes' embedders and the configured rerankers on texts from requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.outputs import EmbeddingBatch, TokenBatch, concat, offsets_of
from actors.spec import Output
from pipelines.config import CHANNELS
from pipelines.serving.batching import MicroBatcher
from pipelines.serving.catalog import Catalog, View
from pipelines.serving.errors import ApiError
from pipelines.serving.settings import ServeConfig, split_name

if TYPE_CHECKING:
    from actors.embedders.base import Embedder
    from actors.rerankers.engine import Reranker

InputType = Literal["query", "passage"]
OnThread = Callable[..., Awaitable[Any]]
MakeBatcher = Callable[[str, Callable[[Any, Sequence[Any]], Sequence[Any]]], MicroBatcher[Any, Any]]


@dataclass(frozen=True, slots=True)
class EncodeCall:
    """Identifies texts that can share a batch: same model, same side (query or passage), same outputs."""

    embedder: Embedder
    input_type: InputType
    outputs: tuple[Output, ...]


class Models:
    """Loads and runs the embedders of the served indexes, and the rerankers, on first use."""

    def __init__(self, config: ServeConfig, catalog: Catalog, batcher: MakeBatcher, on_thread: OnThread) -> None:
        self.catalog, self.on_thread = catalog, on_thread
        self.rerankers = dict(map(split_name, config.rerankers))
        self._loaded: dict[str, Reranker] = {}
        self._lock = Lock()
        self._batcher = batcher("texts", encode_texts)

    async def embedder(self, view: View) -> Embedder:
        """Returns the view's model, loading it on a thread if needed."""
        loaded: Embedder = view.index.encoder.loaded or await self.on_thread(lambda: view.index.encoder.embedder)
        return loaded

    async def encode(
        self, view: View, texts: Sequence[str | Sequence[int]], input_type: InputType, outputs: Sequence[Output]
    ) -> EmbeddingBatch:
        """Encodes texts, or lists of token ids, in batches shared with other requests."""
        embedder = await self.embedder(view)
        has = embedder.outputs
        missing = next((output for output in outputs if output not in has), None)
        if missing is not None:
            raise ApiError(400, f"outputs: {view.name} gives {', '.join(has)}, not {missing}", "outputs")
        for text in texts:
            check_ids(embedder, text)
        wanted = tuple(output for output in has if output in outputs)
        return concat(await self._batcher.submit(EncodeCall(embedder, input_type, wanted), texts))

    def reranker_name(self, name: str | None) -> str | None:
        """Returns the name of a configured reranker by name or alias; None means the ColBERT scores of a view."""
        if name is None:
            return next(iter(self.rerankers), None)
        target = self.catalog.aliases.get(name, name)
        return target if target in self.rerankers else None

    def reranker(self, name: str, argument: str) -> Reranker:
        """Loads a configured reranker; 400 for any other name, which is never searched on disk or a hub."""
        target = self.reranker_name(name)
        if target is None:
            known = ", ".join([*self.rerankers, "colbert"])
            raise ApiError(400, f"{argument}: this server has no reranker {name!r}; there are {known}", argument)
        with self._lock:
            if target not in self._loaded:
                from actors.rerankers.registry import load_reranker

                self._loaded[target] = load_reranker(self.rerankers[target])
            return self._loaded[target]

    def is_loaded(self, name: Any) -> bool:
        """Returns whether a search's reranker is ready without loading: none, a channel, or a model in memory."""
        return name is None or name in CHANNELS or name in self._loaded

    def warm_up(self) -> None:
        """Loads every configured reranker."""
        for name in self.rerankers:
            self.reranker(name, "model").score("warm up", ["warm up"])


def encode_texts(call: EncodeCall, texts: Sequence[str | Sequence[int]]) -> list[EmbeddingBatch]:
    """Encodes the texts of one batch in one forward pass; returns one row per text."""
    tokens = tokenise(call, texts)
    batch = call.embedder.embed_tokens(tokens, call.outputs)
    return [batch.take(np.array([i])) for i in range(len(batch))]


def tokenise(call: EncodeCall, texts: Sequence[str | Sequence[int]]) -> TokenBatch:
    """Tokenises texts with the model's tokenizer; lists of token ids are only truncated to the model's length."""
    if all(isinstance(text, str) for text in texts):
        return call.embedder.tokenise([str(text) for text in texts], call.input_type)
    parts = [
        call.embedder.tokenise([text], call.input_type) if isinstance(text, str) else token_row(call.embedder, text)
        for text in texts
    ]
    lengths = np.array([len(part.ids) for part in parts], np.int64)
    ids = np.concatenate([part.ids for part in parts])
    return TokenBatch(ids, offsets_of(lengths), np.concatenate([part.n_truncated for part in parts]))


def check_ids(embedder: Embedder, text: str | Sequence[int]) -> None:
    """Refuses with 400 a token id outside the model's vocabulary."""
    if not isinstance(text, str):
        wrong = next((i for i in text if not 0 <= i < embedder.vocab_size), None)
        if wrong is not None:
            raise ApiError(400, f"input: token id {wrong} is not in the vocabulary of {embedder.vocab_size}", "input")


def token_row(embedder: Embedder, ids: Sequence[int]) -> TokenBatch:
    """Builds the row of one text from its token ids."""
    kept = np.array(ids[: embedder.spec.passage_max_length], np.int32)
    return TokenBatch(kept, offsets_of(np.array([len(kept)])), np.array([len(ids) - len(kept)], np.int32))


def colbert_scores(queries: EmbeddingBatch, passages: EmbeddingBatch) -> list[float]:
    """Computes M3's ColBERT score of a query with each passage; without ColBERT, the dense dot product."""
    if queries.colbert is None or passages.colbert is None:
        assert queries.dense is not None
        assert passages.dense is not None
        return [float(score) for score in passages.dense.astype(np.float32) @ queries.dense[0].astype(np.float32)]
    from actors.embedders.pair_scores import colbert_score

    return [colbert_score(queries.colbert.row(0), passages.colbert.row(i)) for i in range(len(passages))]
