"""A large index out of a small real one: passages recombined from real sentences, so that score gaps are realistic.

A passage joins a part of a real text with parts of its nearest neighbours until it has some hundred tokens. Its sparse
row is the largest weight of each token among them, jittered; its ColBERT vectors are theirs, with some bits flipped;
its dense vector is the first one's, pulled towards the others, with noise. The channels so agree about as much as they
do on real text, and no two passages are alike: neither holds for vectors drawn around topics. What it flatters: every
sentence occurs in several passages, as in a corpus with quotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from actors.outputs import Array, EmbeddingBatch, IntArray, MultiVectors, SparseVectors, offsets_of, ranges
from pipelines.retrieval import Index

TOKENS = 112
"""A passage is full when it has this many ColBERT vectors."""
PART = 40
"""At most so many neighbouring vectors of one text join a passage, with about that share of its sparse tokens."""
NEIGHBOURS = 16
MEMBERS = 8


@dataclass(frozen=True)
class Sentences:
    """All stored outputs of real texts; neighbours (n, NEIGHBOURS): texts near each one."""

    dense: Array
    sparse: SparseVectors
    colbert: MultiVectors
    neighbours: IntArray

    @classmethod
    def of(cls, indexes: Sequence[Index]) -> Sentences:
        dense = np.concatenate([np.asarray(i.column_cache.whole("dense"), np.float32) for i in indexes])
        sparse = SparseVectors.join([_sparse(i) for i in indexes])
        parts = [_colbert(i) for i in indexes]
        lengths = np.concatenate([np.diff(p.offsets) for p in parts])
        colbert = MultiVectors(offsets_of(lengths), np.concatenate([p.vectors for p in parts]))
        return cls(dense, sparse, colbert, _neighbours(dense))


def _sparse(index: Index) -> SparseVectors:
    rows = index.column_cache.whole("sparse")
    assert isinstance(rows, SparseVectors)
    return rows


def _colbert(index: Index) -> MultiVectors:
    rows = index.column_cache.whole("colbert")
    assert isinstance(rows, MultiVectors)
    return rows


def _neighbours(dense: Array) -> IntArray:
    """Nearest texts among those that share the nearest of some hundred random centres."""
    rng = np.random.default_rng(1)
    centres = dense[rng.choice(len(dense), max(1, len(dense) // 400), replace=False)]
    owner = np.concatenate(
        [(part @ centres.T).argmax(axis=1) for part in np.array_split(dense, len(dense) // 4096 + 1)]
    )
    found = np.empty((len(dense), NEIGHBOURS), np.int64)
    for centre in range(len(centres)):
        members = np.flatnonzero(owner == centre)
        if len(members) <= NEIGHBOURS:
            found[members] = rng.integers(0, len(dense), (len(members), NEIGHBOURS))
            continue
        for part in np.array_split(members, len(members) // 2048 + 1):
            nearest = np.argpartition(-(dense[part] @ dense[members].T), NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
            found[part] = members[nearest]
    return found


class Recombined:
    """Draws passages out of sentences; the same seed draws the same ones."""

    def __init__(self, sentences: Sentences, seed: int = 0) -> None:
        self.real = sentences
        self.rng = np.random.default_rng(seed)
        self.all = np.diff(sentences.colbert.offsets)
        self.lengths = np.minimum(self.all, PART)

    def passages(self, n: int) -> EmbeddingBatch:
        first = self.rng.integers(0, len(self.real.dense), n)
        picked = self.real.neighbours[first[:, None], self.rng.integers(0, NEIGHBOURS, (n, MEMBERS - 1))]
        members = np.concatenate([first[:, None], picked], axis=1)
        before = np.cumsum(self.lengths[members], axis=1) - self.lengths[members]
        kept = before < TOKENS
        rows, owners = members[kept], np.repeat(np.arange(n), kept.sum(axis=1))
        dense, sparse, colbert = (
            self._dense(members, kept),
            self._sparse(rows, owners, n),
            self._colbert(rows, owners, n),
        )
        return EmbeddingBatch(dense, sparse, colbert, np.diff(colbert.offsets).astype(np.int32), np.zeros(n, np.int32))

    def _dense(self, members: IntArray, kept: Array) -> Array:
        share = kept / np.sqrt(np.maximum(kept[:, 1:].sum(axis=1, keepdims=True), 1)) * 0.5
        share[:, 0] = 1
        total = 0.3 * self.rng.standard_normal((len(members), self.real.dense.shape[1]), np.float32) / np.sqrt(384)
        for j in range(members.shape[1]):
            total += share[:, j : j + 1].astype(np.float32) * self.real.dense[members[:, j]]
        vectors: Array = total / np.linalg.norm(total, axis=1, keepdims=True)
        return vectors.astype(np.float32)

    def _sparse(self, rows: IntArray, owners: IntArray, n: int) -> SparseVectors:
        found = self.real.sparse.take(rows)
        keys = np.repeat(owners, np.diff(found.offsets)) << 32 | found.token_ids
        weights = found.weights * self.rng.lognormal(0, 0.2, len(found.weights)).astype(np.float32)
        share = np.repeat(PART / np.maximum(self.all[rows], PART), np.diff(found.offsets))
        kept = self.rng.random(len(keys)) < share
        keys, weights, tokens = keys[kept], weights[kept], found.token_ids[kept]
        order = np.lexsort((-weights, keys))
        new = np.ones(len(keys), bool)
        new[1:] = np.diff(keys[order]) > 0
        best = order[new]
        lengths = np.bincount(keys[best] >> 32, minlength=n)
        return SparseVectors(offsets_of(lengths), tokens[best], weights[best])

    def _colbert(self, rows: IntArray, owners: IntArray, n: int) -> MultiVectors:
        skipped = self.rng.integers(0, self.all[rows] - self.lengths[rows] + 1)
        where = ranges(self.real.colbert.offsets[:-1][rows] + skipped, self.lengths[rows])
        codes = self.real.colbert.vectors[where]
        flips = np.full(codes.size, 255, np.uint8)
        for _ in range(4):
            flips &= np.frombuffer(self.rng.bytes(codes.size), np.uint8)
        lengths = np.bincount(owners, self.lengths[rows], minlength=n).astype(np.int64)
        return MultiVectors(offsets_of(lengths), codes ^ flips.reshape(codes.shape))


def draw(sentences: Sentences, rows: int, step: int = 5000) -> Iterator[EmbeddingBatch]:
    source = Recombined(sentences)
    for first in range(0, rows, step):
        yield source.passages(min(step, rows - first))
