"""Expands lexical queries by the nearest tokens in embedding space: `measured` then finds `measure` and `measurement`.

BM25 has a stemmer for this, of one language. Here a word's neighbours are those whose input embeddings point the same
way: the model learnt them, so they hold for its languages, and synonyms are among them. That reads about twice the
postings, and a token that no query had before is compared with the whole vocabulary once (with MiniLM some 4 ms for a
query of new words, .3 ms for one of known ones).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.outputs import Array, IntArray, SparseVectors, offsets_of

MAX_NEIGHBOURS, MIN_COSINE, COSINE_POWER = 4, 0.5, 3
"""At most four for each token, of a cosine of .5 or more, each weighted by its cube."""
MIN_LETTERS = 3
"""Shorter tokens are pieces of words, and the neighbours of a number are other numbers."""
WORD_PIECE_MARKS = ("##", "▁", "Ġ")
"""What tokenizers put before a piece that continues a word, or that begins one."""
TOKENS_PER_PASS = 256
"""Tokens that are compared with the vocabulary together: 25 MB of cosines for MiniLM."""

Found = tuple[IntArray, npt.NDArray[np.float32]]


class QueryExpander:
    """Finds and caches the neighbours of every token of one model. Threads may share it."""

    def __init__(self, embeddings: Tensor, names: Sequence[str]) -> None:
        """Takes the model's input embeddings (vocabulary, h) and the tokenizer's name of each id."""
        self.words = np.array([i for i, name in enumerate(names[: len(embeddings)]) if _is_word(name)], np.int64)
        self.unit = _center_and_normalise(embeddings[torch.from_numpy(self.words).to(embeddings.device)])
        self._place = {int(token): place for place, token in enumerate(self.words)}
        self._found: dict[int, Found] = {}

    def of(self, token_id: int) -> Found:
        """Returns int64 ids and float32 factors: the token itself by 1, then its neighbours, the nearest first."""
        self._find([token_id])
        return self._found[token_id]

    def sources_of(self, token_ids: Sequence[int], neighbour: int) -> list[int]:
        """Returns those of the tokens that have `neighbour` among their neighbours."""
        return [token for token in token_ids if token != neighbour and neighbour in self.of(token)[0]]

    def expand(self, queries: SparseVectors) -> SparseVectors:
        """Adds the neighbours to the queries; a neighbour of several tokens gets the sum of their weights."""
        if not len(queries.token_ids):
            return queries
        self._find(np.unique(queries.token_ids).tolist())
        found = [self._found[token] for token in queries.token_ids.tolist()]
        lengths = np.array([len(ids) for ids, _ in found])
        rows = np.repeat(np.arange(len(queries)), np.diff(queries.offsets))
        keys = np.repeat(rows << 32, lengths) | np.concatenate([ids for ids, _ in found])
        weights = np.repeat(queries.weights, lengths) * np.concatenate([factors for _, factors in found])
        return _sum_by_token(keys, weights, len(queries))

    def _find(self, tokens: Sequence[int]) -> None:
        new = [token for token in tokens if token not in self._found]
        words = [token for token in new if token in self._place]
        self._found |= {token: _alone(token) for token in new if token not in self._place}
        for first in range(0, len(words), TOKENS_PER_PASS):
            part = words[first : first + TOKENS_PER_PASS]
            places = np.array([self._place[token] for token in part])
            self._found |= dict(zip(part, self._nearest(places), strict=True))

    def _nearest(self, places: IntArray) -> list[Found]:
        cosines = (self.unit[places] @ self.unit.T).float().cpu()
        cosines[torch.arange(len(places)), torch.from_numpy(places)] = 2.0  # first, whatever rounding did to others
        values, best = cosines.topk(min(MAX_NEIGHBOURS + 1, cosines.shape[1]))
        values = values.clamp(max=1.0)
        kept = values >= MIN_COSINE
        return [
            (self.words[row[near].numpy()], (value[near] ** COSINE_POWER).numpy())
            for row, value, near in zip(best, values, kept, strict=True)
        ]


def _is_word(name: str) -> bool:
    for mark in WORD_PIECE_MARKS:
        name = name.removeprefix(mark)
    return len(name) >= MIN_LETTERS and name.isalpha()


def _center_and_normalise(vectors: Tensor) -> Tensor:
    """Subtracts the mean embedding, which would make all words alike, and normalises; in the precision of the model's
    pass.
    """
    centred = vectors.float()
    return torch.nn.functional.normalize(centred - centred.mean(0), dim=-1).to(vectors.dtype)


def _alone(token: int) -> Found:
    return np.array([token], np.int64), np.ones(1, np.float32)


def _sum_by_token(keys: IntArray, weights: Array, rows: int) -> SparseVectors:
    """Sums weights of equal (row, token) keys, row in the upper half, to rows of distinct tokens."""
    distinct, place = np.unique(keys, return_inverse=True)
    lengths = np.bincount(distinct >> 32, minlength=rows)
    total = np.bincount(place, weights, len(distinct)).astype(np.float32)
    return SparseVectors(offsets_of(lengths), (distinct & 0xFFFFFFFF).astype(np.uint32), total)
