"""Measures how early a layered reranker may stop: quality on judged queries against the share of its layers that run.

One pass scores every layer, so the whole table costs what the last layer costs. The layer is chosen on the queries that
it is reported on; the p-value against the last layer separates a difference from noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.rerankers.engine import Reranker
from pipelines.config import ConfigError
from pipelines.evaluation.metrics import Run, interval, paired_p, per_query
from pipelines.evaluation.qrels import Qrels, judged
from pipelines.evaluation.runs import RankedQuery, rank
from pipelines.retrieval.fusion import FusionRule
from pipelines.retrieval.index import Index

MEASURE = "nDCG@10"


@dataclass(frozen=True, slots=True)
class CutoffResult:
    """Reports the effect of stopping after `layer`. p: two-sided, against the last layer on the same queries."""

    layer: int
    share: float
    """Of the layers that the deepest cutoff runs."""
    ndcg: float
    low: float
    high: float
    p: float


def choose_cutoff(
    index: Index,
    queries: Mapping[str, str],
    qrels: Qrels,
    reranker: Reranker,
    *,
    layers: Sequence[int] | None = None,
    rule: FusionRule | None = None,
    depth: int = 100,
    tolerance: float = 0.005,
) -> tuple[int, list[CutoffResult]]:
    """Returns the earliest layer whose mean nDCG@10 is within `tolerance` of the last one's, and
    what every layer gives.

    The first `depth` documents of the index's own ranking are scored; layers None: all that have a head. ConfigError
    where the reranker has no layers to choose from.
    """
    if not len(reranker.cutoffs):
        raise ConfigError("this reranker gives one score alone: there is no layer to choose")
    layers = sorted(layers or reranker.cutoffs)
    ranked = rank(index, judged(queries, qrels))
    runs = layer_runs(index, ranked, rule or index.default_fusion, reranker, layers, depth)
    values = [per_query(run, qrels, [query.query_id for query in ranked])[MEASURE] for run in runs]
    table = [
        CutoffResult(layer, layer / layers[-1], float(v.mean()), *interval(v), paired_p(v, values[-1]))
        for layer, v in zip(layers, values, strict=True)
    ]
    return next(row.layer for row in table if row.ndcg >= table[-1].ndcg - tolerance), table


def layer_runs(
    index: Index, ranked: Sequence[RankedQuery], rule: FusionRule, reranker: Reranker, layers: Sequence[int], depth: int
) -> list[Run]:
    """Computes one run per layer, in one pass over the texts."""
    options = reranker.options.changed({"cutoff_layers": tuple(layers)})
    runs: list[Run] = [{} for _ in layers]
    for query in ranked:
        best = np.argsort(-query.found.fuse(rule), kind="stable")[:depth]
        texts = index.snapshot.take(query.found.positions[best], ["text"])["text"].to_pylist()
        scores = reranker.score_pairs([(query.text, text) for text in texts], options)
        for run, column in zip(runs, scores.T, strict=True):
            ranking = run.setdefault(query.query_id, {})
            for document, score in zip(query.documents[best], column.tolist(), strict=True):
                ranking[str(document)] = max(score, ranking.get(str(document), -np.inf))
    return runs
