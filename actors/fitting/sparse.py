"""Trains the sparse head (hidden -> 1 under a ReLU) from an IDF start, and applies it to whole collections.

Only tokens that a query shares with a candidate take part in a score, so their states are gathered once, before
training: a step then reads a few thousand vectors instead of whole passages, and 400 steps take seconds. The price
is that regularisation, which must see the tokens that match nothing, draws its own sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from actors.fitting.mining import CHUNK, Mined, document_frequency, idf
from actors.fitting.states import States
from actors.network import heads
from actors.outputs import IntArray, SparseVectors, offsets_of, ranges

ABSENT = -1
IDF_POWER, IDF_SCALE, RIDGE = 0.75, 0.35, 1.0
"""The start predicts 0.35 x IDF^0.75 (both sides multiply, so a match counts IDF^1.5), by ridge regression."""


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Holds the states of chosen tokens.

    A query's tokens lie side by side (`offsets`); tokens of one slot compete for the largest weight. slot: int64
    (tokens,), numbered from 0 within each query.
    """

    states: Tensor
    slot: IntArray
    offsets: IntArray

    def largest(self, head: nn.Linear, rows: IntArray, sizes: IntArray) -> Tensor:
        """Computes the weight of every slot of the given queries, `sizes` slots each; a slot without a token has 0."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        at = ranges(self.offsets[rows], lengths)
        where = torch.from_numpy(self.slot[at] + np.repeat(offsets_of(sizes)[:-1], lengths))
        weights = torch.relu(head(self.states[torch.from_numpy(at)].float())).flatten()
        return torch.zeros(int(sizes.sum())).scatter_reduce(0, where, weights, "amax", include_self=True)


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Holds the tokens that queries share with their candidates.

    sizes: distinct ids of each query, its slots; a candidate has the same slots again, candidate after candidate.
    """

    query: Gathered
    passage: Gathered
    sizes: IntArray
    candidates: int

    def scores(self, head: nn.Linear, rows: IntArray) -> Tensor:
        """Computes (len(rows), candidates): dot products of the lexical weights, differentiable in the head."""
        sizes, count = self.sizes[rows], self.candidates
        query = self.query.largest(head, rows, sizes)
        passage = self.passage.largest(head, rows, sizes * count)
        every = np.repeat(sizes, count)
        partner = torch.from_numpy(ranges(np.repeat(offsets_of(sizes)[:-1], count), every))
        pair = torch.from_numpy(np.repeat(np.arange(len(every)), every))
        return torch.zeros(len(every)).index_add(0, pair, query[partner] * passage).view(len(rows), count)


def gather_shared_tokens(queries: States, passages: States, mined: Mined, rows: IntArray, vocab: int) -> Shared:
    """Gathers what the given query rows share with their candidates."""
    place = np.full(vocab, ABSENT, np.int64)
    sizes, in_queries, in_passages = [], [], []
    for row in rows:
        own = queries.positions(np.array([row]))
        own = own[queries.weighted[own]]
        distinct, slots = np.unique(queries.tokens.ids[own], return_inverse=True)
        place[distinct] = np.arange(len(distinct))
        in_queries.append((own, slots))
        in_passages.append(_matches(passages, mined.rows[row], place, len(distinct)))
        place[distinct] = ABSENT
        sizes.append(len(distinct))
    return Shared(
        _gather_states(queries, in_queries), _gather_states(passages, in_passages), np.array(sizes), mined.rows.shape[1]
    )


def _gather_states(texts: States, parts: Sequence[tuple[IntArray, IntArray]]) -> Gathered:
    at, slot = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Gathered(torch.from_numpy(texts.hidden[at]), slot, offsets_of(np.array([len(p) for p, _ in parts])))


def _matches(passages: States, candidates: IntArray, place: IntArray, size: int) -> tuple[IntArray, IntArray]:
    """Finds the positions of the candidates' tokens that the query has too, and the slot of each."""
    at = passages.positions(candidates)
    order = np.repeat(np.arange(len(candidates)), passages.tokens.lengths[candidates])
    found = place[passages.tokens.ids[at]]
    kept = (found != ABSENT) & passages.weighted[at]
    return at[kept], order[kept] * size + found[kept]


def idf_start(collections: list[States], vocab: int, sample: int, rng: np.random.Generator) -> nn.Linear:
    """Fits the linear layer nearest to IDF by least squares, over a sample of the collections' tokens."""
    frequency = sum((document_frequency(texts, vocab) for texts in collections), np.zeros(vocab, np.int64))
    values = IDF_SCALE * idf(frequency, sum(map(len, collections))) ** IDF_POWER
    states: list[Tensor] = []
    targets: list[Tensor] = []
    for texts in collections:
        at = rng.permutation(np.flatnonzero(texts.weighted))[: sample // len(collections)]
        states.append(texts.at(np.sort(at)))
        targets.append(torch.from_numpy(values[texts.tokens.ids[np.sort(at)]]))
    design = torch.cat([torch.cat(states), torch.ones(sum(map(len, states)), 1)], dim=1).double()
    gram = design.T @ design + RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
    return _linear(torch.linalg.solve(gram, design.T @ torch.cat(targets).double()))


def _linear(solution: Tensor) -> nn.Linear:
    layer = nn.Linear(len(solution) - 1, 1)
    with torch.no_grad():
        layer.weight.copy_(solution[None, :-1])
        layer.bias.copy_(solution[-1:])
    return layer


def lexical_weights(texts: States, head: nn.Linear, excluded: frozenset[int]) -> SparseVectors:
    """Computes the lexical weights of all texts, by the rule that embedders use."""
    parts = []
    for start in range(0, len(texts), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(texts)))
        at = texts.positions(rows)
        ids = torch.from_numpy(texts.tokens.ids[at].astype(np.int64))
        parts.append(heads.sparse(texts.at(at), ids, offsets_of(texts.tokens.lengths[rows]), head, excluded))
    return SparseVectors(
        offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )
