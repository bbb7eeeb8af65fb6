"""Mines hard negatives and teacher scores by the encoder's dense vectors and BM25.

Candidates are the best passages by BM25 over token ids and by the dense vectors. The teacher scores them with an
ensemble of BM25, dense and untrained MaxSim, as z-scores within a query's candidates: learning its order, not just
the labels, is what lets a head of a few hundred numbers generalise (labels alone made the sparse head worse out of
domain than its IDF start). The price is one MaxSim over the candidates of every training query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.fitting.data import Rng, Source
from actors.fitting.states import States
from actors.network import heads
from actors.outputs import IntArray, SparseVectors, offsets_of
from actors.spec import Pooling

Floats = npt.NDArray[np.float32]
K1, B = 1.2, 0.75
TEACHER = {"dense": 1.0, "bm25": 0.35, "maxsim": 2.0}
"""Weights of the ensemble: what z-scored hybrids of all-MiniLM-L6-v2 did best with on training queries."""
CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class Mined:
    """Holds the candidates of n queries. rows: (n, c) passage rows, a right passage first; teacher: float32 (n, c)."""

    rows: IntArray
    teacher: Floats


def mine_candidates(
    source: Source, queries: States, passages: States, dense: tuple[Tensor, Tensor], vocab: int, count: int, rng: Rng
) -> Mined:
    """Collects `count` candidates for every query: a right passage, given negatives, mined ones, and random ones to
    fill up."""
    lexical, similar = bm25(queries, passages, vocab), (dense[0] @ dense[1].T).numpy()
    rows = np.stack([_candidates(source, i, lexical[i], similar[i], count, rng) for i in range(len(source))])
    late = maxsim(queries, passages, rows)
    at = np.arange(len(rows))[:, None]
    parts = {"dense": similar[at, rows], "bm25": lexical[at, rows], "maxsim": late}
    total = sum((TEACHER[name] * zscore(scores) for name, scores in parts.items()), np.zeros_like(late))
    return Mined(rows, total / sum(TEACHER.values()))


def _candidates(source: Source, query: int, lexical: Floats, similar: Floats, count: int, rng: Rng) -> IntArray:
    right = source.positives[query]
    best = min(2 * count, len(lexical) - 1)
    near = np.union1d(np.argpartition(-lexical, best)[:best], np.argpartition(-similar, best)[:best])
    near = np.setdiff1d(near, [*right, *source.negatives[query]])
    chosen = [right[0], *source.negatives[query], *rng.permutation(near)][: count - 1]
    others = np.setdiff1d(np.arange(len(lexical)), right)
    return np.array([*chosen, *rng.choice(others, count - len(chosen))], dtype=np.int64)


def zscore(scores: Floats) -> Floats:
    """Standardises each row to mean 0 and deviation 1; rows of equal scores become 0."""
    spread = scores.std(axis=1, keepdims=True)
    scaled = (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 1e-6, spread, 1)
    return np.asarray(scaled, dtype=np.float32)


def document_frequency(texts: States, vocab: int) -> IntArray:
    """Counts the texts that each token id occurs in: int64 (vocab,)."""
    keys = np.unique(texts.rows()[texts.weighted] * vocab + texts.tokens.ids[texts.weighted])
    return np.bincount(keys % vocab, minlength=vocab)


def idf(frequency: IntArray, count: int) -> Floats:
    """Computes Robertson's inverse document frequency with 1 added inside the logarithm, so that it
    is never negative."""
    values: Floats = np.log1p((count - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    return values


def bm25(queries: States, passages: States, vocab: int) -> Floats:
    """Computes float32 (queries, passages): BM25 over token ids, each distinct query token once."""
    keys, counts = np.unique(
        passages.rows()[passages.weighted] * vocab + passages.tokens.ids[passages.weighted], return_counts=True
    )
    rows, ids = np.divmod(keys, vocab)
    lengths = np.bincount(rows, counts, len(passages))
    norm = 1 - B + B * lengths / max(1.0, lengths.mean())
    weights = counts * (K1 + 1) / (counts + K1 * norm[rows])
    weights *= idf(np.bincount(ids, minlength=vocab), len(passages))[ids]
    matrix = SparseVectors(
        offsets_of(np.bincount(rows, minlength=len(passages))), ids.astype(np.uint32), weights.astype(np.float32)
    )
    return sparse_scores(_binary(queries), matrix, vocab)


def _binary(texts: States) -> SparseVectors:
    width = int(texts.tokens.ids.max(initial=0)) + 1
    keys = np.unique(texts.rows()[texts.weighted] * width + texts.tokens.ids[texts.weighted])
    rows, ids = np.divmod(keys, width)
    return SparseVectors(
        offsets_of(np.bincount(rows, minlength=len(texts))), ids.astype(np.uint32), np.ones(len(ids), np.float32)
    )


def sparse_scores(queries: SparseVectors, passages: SparseVectors, vocab: int) -> Floats:
    """Computes float32 (queries, passages): dot products over shared ids."""
    rows = np.repeat(np.arange(len(passages)), np.diff(passages.offsets))
    places = torch.from_numpy(np.stack([rows, passages.token_ids.astype(np.int64)]))
    matrix = torch.sparse_coo_tensor(
        places, torch.from_numpy(passages.weights), (len(passages), vocab), check_invariants=False
    )
    parts = []
    for start in range(0, len(queries), CHUNK):
        block = queries.take(np.arange(start, min(start + CHUNK, len(queries))))
        dense = torch.zeros(vocab, len(block))
        rows = np.repeat(np.arange(len(block)), np.diff(block.offsets))
        dense[torch.from_numpy(block.token_ids.astype(np.int64)), torch.from_numpy(rows)] = torch.from_numpy(
            block.weights
        )
        parts.append((matrix @ dense).T.numpy())
    return np.concatenate(parts)


def dense_vectors(texts: States, pooling: Pooling) -> Tensor:
    """Computes dense vectors, float32 (n, h), of unit length."""
    parts = []
    for start in range(0, len(texts), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(texts)))
        parts.append(heads.dense(texts.at(texts.positions(rows)), offsets_of(texts.tokens.lengths[rows]), pooling))
    return torch.cat(parts)


def token_vectors(texts: States, row: int, linear: torch.nn.Linear | None = None) -> Tensor:
    """Computes float32 (tokens - 1, d): the ColBERT vectors of one text; `linear` None is the identity."""
    span = slice(int(texts.tokens.offsets[row]) + 1, int(texts.tokens.offsets[row + 1]))
    states = torch.from_numpy(texts.hidden[span].astype(np.float32))
    return torch.nn.functional.normalize(states if linear is None else linear(states), dim=-1)


@torch.inference_mode()
def maxsim(queries: States, passages: States, rows: IntArray, linear: torch.nn.Linear | None = None) -> Floats:
    """Computes MaxSim, float32 (n, c): mean over a query's vectors of the maximum over a candidate's, for candidate
    rows (n, c)."""
    scores = np.zeros(rows.shape, np.float32)
    vectors = {int(row): token_vectors(passages, int(row), linear).half() for row in np.unique(rows)}
    for i, candidates in enumerate(rows):
        query = token_vectors(queries, i, linear)
        for j, row in enumerate(candidates):
            found = vectors[int(row)]
            if len(query) and len(found):
                scores[i, j] = float((query @ found.float().T).amax(1).mean())
    return scores
