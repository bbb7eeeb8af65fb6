"""Loads the model of an index when the first query needs it, and checks it against the index's identity.

This is the only way from retrieval to torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actors.outputs import EmbeddingBatch, IntArray
from actors.spec import EmbedderSpec, Output
from pipelines.config import ConfigError
from pipelines.store.schema import Identity

if TYPE_CHECKING:
    from actors.embedders.base import Embedder
    from actors.vision.preprocess import Picture


def check_identity(uri: str, identity: Identity, name: str, embedder: Any) -> None:
    """Raises ConfigError, naming the first field that differs, if `embedder` did not build the columns NAME_*."""
    difference = describe_difference(identity, name, embedder)
    if difference is not None:
        raise ConfigError(f"{uri}: built with another model: {difference}")


def describe_difference(identity: Identity, name: str, embedder: Any) -> str | None:
    """Describes the first field in which `embedder` differs from the model that built the columns NAME_*."""
    described = {**identity.embedders[name], **embedder.identity()}
    other = Identity(identity.chunk, identity.text, {**identity.embedders, name: described}, identity.format_version)
    return identity.difference(other)


class QueryEncoder:
    """Encodes queries to the outputs that an index stores."""

    def __init__(
        self, uri: str, identity: Identity, name: str, embedder: Embedder | EmbedderSpec | None = None
    ) -> None:
        self.uri = uri
        self.identity = identity
        self.name = name
        self.given = embedder
        """The model or the spec that whoever opened the index named; None for the one that the index names."""
        self._given = None if isinstance(embedder, EmbedderSpec) else embedder
        self._spec = embedder if isinstance(embedder, EmbedderSpec) else None
        self._lock = Lock()

        if self._given is not None:
            check_identity(uri, identity, name, self._given)

    @property
    def loaded(self) -> Embedder | None:
        """Returns the model if it is loaded already, else None."""
        return self._given

    @property
    def embedder(self) -> Embedder:
        """Loads the model on first use; ConfigError if it is not the one that built the index."""
        with self._lock:
            if self._given is None:
                self._given = self._load()
            return self._given

    def _load(self) -> Embedder:
        from actors.embedders.registry import load_embedder

        embedder = load_embedder(self._spec or EmbedderSpec.from_identity(self.identity.embedders[self.name]))
        check_identity(self.uri, self.identity, self.name, embedder)
        return embedder

    def encode(self, texts: Sequence[str], outputs: Sequence[Output]) -> EmbeddingBatch:
        """Encodes queries; one without a token gets zero vectors and matches nothing by meaning.

        One alone is encoded by one thread: others would spin beside the search that follows (30 ms for 45 in all).
        """
        embedder = self.embedder
        from actors.compute.resolve import single_torch_thread

        with single_torch_thread() if len(texts) == 1 else nullcontext():
            return embedder.embed_queries(list(texts), list(outputs))

    def encode_picture(self, picture: Picture, text: str) -> EmbeddingBatch:
        """Encodes a picture and a text as one query; ConfigError if the model takes no pictures."""
        from actors.embedders.visualized import VisualizedBGE

        if not isinstance(self.embedder, VisualizedBGE):
            raise ConfigError(f"{self.uri}: its model ({self.embedder.spec.model}) sees no pictures")
        return self.embedder.embed_images([picture], [text], "query")

    def words(self, texts: Sequence[str]) -> tuple[IntArray, IntArray]:
        """Returns the token ids behind the queries' ColBERT vectors, and the number of pieces in the word of each."""
        ids, offsets = self.token_ids(texts)
        return ids, pieces(self.embedder.tokenizer.continuing[ids], offsets)

    def token_ids(self, texts: Sequence[str]) -> tuple[IntArray, IntArray]:
        """Returns (ids, offsets) of the tokens behind the queries' ColBERT vectors."""
        tokens = self.embedder.tokenise(list(texts), "query")
        keep = self.embedder.scored_tokens(tokens, "query")
        before: IntArray = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])
        return tokens.ids[keep].astype(np.int64), before[tokens.offsets]


def pieces(continuing: npt.NDArray[np.bool_], offsets: IntArray) -> IntArray:
    """Counts, int64 (tokens,), the tokens of each token's word; no word continues from one text to the next.

    >>> pieces(np.array([False, True, True, False, True]), np.array([0, 4, 5])).tolist()
    [3, 3, 3, 1, 1]
    """
    begins = ~continuing
    begins[offsets[:-1][np.diff(offsets) > 0]] = True
    word = begins.cumsum() - 1
    counts: IntArray = np.bincount(word)[word]
    return counts
