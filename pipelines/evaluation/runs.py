"""Ranks judged queries once and derives every run from that: each channel, each fusion, each reranker.

A run ranks documents, not chunks: a document counts with its best chunk. Channels are measured on their own best
`depth` rows; fusions see the union of them with every channel's exact score, as a search does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.outputs import IntArray
from pipelines.config import Channel
from pipelines.evaluation.metrics import Run
from pipelines.retrieval.candidates import Candidates
from pipelines.retrieval.fusion import FusionRule
from pipelines.retrieval.index import Index

BATCH = 256
DEPTH = 1000
"""Rows of one query that a run keeps."""


@dataclass(frozen=True, slots=True, eq=False)
class RankedQuery:
    """Holds one query with its candidates and the document of each candidate."""

    query_id: str
    text: str
    found: Candidates
    documents: npt.NDArray[np.object_]


def rank(index: Index, queries: Mapping[str, str], candidates: int = 200) -> list[RankedQuery]:
    """Retrieves candidates of every channel of the index, for every query."""
    ids, texts = list(queries), list(queries.values())
    judged: list[RankedQuery] = []
    for first in range(0, len(ids), BATCH):
        part = slice(first, first + BATCH)
        found = index.candidates(index.encode(texts[part]), list(index.channels), candidates, sampled=True)
        found = [index.candidate_generator.with_graph(each, index.default_fusion) for each in found]
        documents = _read_document_ids(index, [f.positions for f in found])
        judged += [RankedQuery(*row) for row in zip(ids[part], texts[part], found, documents, strict=True)]
    return judged


def _read_document_ids(index: Index, positions: Sequence[IntArray]) -> list[npt.NDArray[np.object_]]:
    """Reads the document ids for each list of positions, all in one read."""
    needed, inverse = np.unique(np.concatenate(positions), return_inverse=True)
    ids = index.snapshot.take(needed, ["doc_id"])["doc_id"].to_numpy()
    bounds = np.cumsum([len(p) for p in positions])[:-1]
    return np.split(ids[inverse], bounds)


def _best_scores(documents: npt.NDArray[np.object_], scores: npt.NDArray[Any]) -> dict[str, float]:
    """Returns the best score of each document, for the best rows."""
    best: dict[str, float] = {}
    for i in np.argsort(-scores, kind="stable")[:DEPTH]:
        best.setdefault(str(documents[i]), float(scores[i]))
    return best


def channel_run(judged: Sequence[RankedQuery], channel: Channel) -> Run:
    """Returns the run of one channel alone."""
    run: Run = {}
    for query in judged:
        top = query.found.tops[channel]
        places = np.searchsorted(query.found.positions, top.positions)
        run[query.query_id] = _best_scores(query.documents[places], top.scores)
    return run


def fused_run(judged: Sequence[RankedQuery], rule: FusionRule) -> Run:
    return {q.query_id: _best_scores(q.documents, q.found.fuse(rule)) for q in judged}


def reranked_run(index: Index, judged: Sequence[RankedQuery], rule: FusionRule, reranker: Any, depth: int) -> Run:
    """Returns the fused ranking with its first `depth` rows scored again by `.score(query, passages)`."""
    run: Run = {}
    for query in judged:
        order = np.argsort(-query.found.fuse(rule), kind="stable")[:depth]
        texts = index.snapshot.take(query.found.positions[order], ["text"])["text"].to_pylist()
        scores = np.asarray(reranker.score(query.text, texts), np.float64)
        run[query.query_id] = _best_scores(query.documents[order], scores)
    return run
