"""Holds queries as all channels take them: their texts and, encoded once, their vectors and lexical weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.outputs import EmbeddingBatch, concat

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedQueries:
    """Holds texts and their encoded outputs. token_weights: one per ColBERT vector, None if all weigh the same."""

    texts: tuple[str, ...]
    encoded: EmbeddingBatch | None = None
    token_weights: Floats | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def joined(cls, parts: Sequence[EncodedQueries]) -> EncodedQueries:
        """Joins queries that were encoded by the same index to one batch."""
        if len(parts) == 1:
            return parts[0]
        texts = tuple(text for part in parts for text in part.texts)
        encoded = [part.encoded for part in parts if part.encoded is not None]
        weights = [part.token_weights for part in parts if part.token_weights is not None]
        return cls(texts, concat(encoded) if encoded else None, np.concatenate(weights) if weights else None)

    def one(self, i: int) -> EncodedQueries:
        """Returns query i as a batch of one."""
        encoded, weights = self.encoded, self.token_weights
        if encoded is None:
            return EncodedQueries((self.texts[i],))
        if weights is not None and encoded.colbert is not None:
            weights = weights[encoded.colbert.offsets[i] : encoded.colbert.offsets[i + 1]]
        return EncodedQueries((self.texts[i],), encoded.take(np.array([i])), weights)

    def dense(self) -> Floats:
        """Returns the dense vectors of all queries, float32 (queries, dim)."""
        assert self.encoded is not None
        assert self.encoded.dense is not None
        return self.encoded.dense.astype(np.float32, copy=False)

    def sparse(self, i: int) -> tuple[npt.NDArray[np.uint32], Floats]:
        """Returns the token ids of query i and their weights."""
        assert self.encoded is not None
        assert self.encoded.sparse is not None
        return self.encoded.sparse.row(i)

    def colbert(self, i: int) -> tuple[Floats, Floats | None]:
        """Returns the token vectors of query i, float32 (tokens, dim), and their weights."""
        assert self.encoded is not None
        assert self.encoded.colbert is not None
        vectors = self.encoded.colbert
        part = slice(vectors.offsets[i], vectors.offsets[i + 1])
        weights = None if self.token_weights is None else self.token_weights[part]
        return vectors.vectors[part].astype(np.float32, copy=False), weights

    def n_truncated(self, i: int) -> int:
        """Returns how many tokens of query i the model did not read."""
        return 0 if self.encoded is None else int(self.encoded.n_truncated[i])
