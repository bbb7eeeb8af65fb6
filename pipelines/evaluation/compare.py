"""Compares the answers of two embedders of one index, before one takes the other's place.

Both are opened at one version, so that every difference is a model's. Rankings are those of each embedder's default
search over documents. Without judgements the comparison measures how much users will notice: the overlap of the first
k, and Kendall's tau-b over the union of both, in which a document that a ranking lacks lies behind its last (Fagin et
al., Comparing top k lists, 2003, with ties). With judgements it decides which is better, by a paired randomisation
test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import ConfigError
from pipelines.evaluation.metrics import Run, paired_p, per_query
from pipelines.evaluation.qrels import Qrels, judged
from pipelines.evaluation.runs import fused_run, rank
from pipelines.retrieval.index import open_index
from pipelines.store.table import Snapshot, open_table

MOST_DIFFERENT = 10
MEASURE = "nDCG@10"


@dataclass(frozen=True, slots=True)
class QueryComparison:
    """Holds both embedders' first k documents for one query. ndcg: of both, if the query is judged."""

    query_id: str
    text: str
    overlap: float
    tau: float
    a: tuple[str, ...]
    b: tuple[str, ...]
    ndcg: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Holds the mean nDCG@10 of both embedders over the judged queries, and the p of a paired randomisation test."""

    a: float
    b: float
    difference: float
    p: float
    queries: int


@dataclass(frozen=True, slots=True)
class EmbedderComparison:
    """Compares embedders `a` and `b`: means over all queries, and the queries that differ most."""

    a: str
    b: str
    version: int
    k: int
    queries: int
    overlap: float
    tau: float
    same_first: float
    """Share of the queries with the same first document."""
    judgement: Judgement | None
    most_different: tuple[QueryComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [
            f"{self.a} (a) and {self.b} (b) at version {self.version}, {self.queries:,} queries",
            f"overlap@{self.k}      {self.overlap:.3f}",
            f"Kendall's tau   {self.tau:.3f}, over the union of both first {self.k}",
            f"same first hit  {self.same_first:.1%}",
        ]
        if (j := self.judgement) is not None:
            lines.append(
                f"{MEASURE}         a {j.a:.4f}, b {j.b:.4f}, difference {j.difference:+.4f} (p {j.p:.4f}, "
                f"{j.queries:,} judged queries)"
            )
        lines.append("queries that differ most:")
        for query in self.most_different:
            measured = "" if query.ndcg is None else f", {MEASURE} {query.ndcg[0]:.3f} and {query.ndcg[1]:.3f}"
            lines.append(
                f"  {query.query_id}: {query.text!r}: overlap {query.overlap:.2f}, tau {query.tau:.2f}{measured}"
            )
            lines += [f"    {name}: {', '.join(ids[:5])}" for name, ids in (("a", query.a), ("b", query.b))]
        return "\n".join(lines)


def compare_embedders(
    uri: str | Path,
    a: str | None,
    b: str,
    queries: Mapping[str, str],
    qrels: Qrels | None = None,
    *,
    k: int = 10,
    candidates: int = 200,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    embedders: Mapping[str, Any] | None = None,
) -> EmbedderComparison:
    """Compares two embedders of an index on queries, id to text; `a` None is the promoted one.

    embedders: loaded models by name, in place of those that the index names. ConfigError for an embedder
    that the index lacks, for `a` equal to `b`, and without queries.
    """
    if not queries:
        raise ConfigError("queries: at least one is needed")
    snapshot = open_table(uri, table, storage_options)
    names = _choose_pair(snapshot, a, b)
    runs = []
    for name in names:
        embedder = (embedders or {}).get(name, name)
        opened = open_index(
            uri, table=table, storage_options=storage_options, embedder=embedder, version=snapshot.version
        )
        runs.append(fused_run(rank(opened, queries, max(candidates, k)), opened.default_fusion))
    ndcg, judgement = _judge(runs, queries, qrels)
    rows = _compare_queries(runs, queries, ndcg, k)
    return EmbedderComparison(
        a=names[0],
        b=names[1],
        version=snapshot.version,
        k=k,
        queries=len(rows),
        overlap=float(np.mean([row.overlap for row in rows])),
        tau=float(np.mean([row.tau for row in rows])),
        same_first=float(np.mean([row.a[:1] == row.b[:1] for row in rows])),
        judgement=judgement,
        most_different=tuple(sorted(rows, key=lambda row: (row.overlap, row.tau, row.query_id))[:MOST_DIFFERENT]),
    )


def _choose_pair(snapshot: Snapshot, a: str | None, b: str) -> tuple[str, str]:
    """Returns the names of the two embedders; raises ConfigError if there are not two."""
    first = a or snapshot.promoted
    if first is None:
        raise ConfigError("a: no embedder is promoted; name one of " + ", ".join(snapshot.identity.embedders))
    if first == b:
        raise ConfigError(f"b: {b!r} is the embedder that it is compared with")
    return first, b


def _compare_queries(
    runs: Sequence[Run], queries: Mapping[str, str], ndcg: Mapping[str, tuple[float, float]], k: int
) -> list[QueryComparison]:
    """Compares the first k documents of two runs, query by query."""
    rows = []
    for q, text in queries.items():
        a, b = (tuple(sorted(run[q], key=lambda d: (-run[q][d], d))[:k]) for run in runs)
        rows.append(QueryComparison(q, text, overlap(a, b, k), tau(a, b), a, b, ndcg.get(q)))
    return rows


def _judge(
    runs: Sequence[Run], queries: Mapping[str, str], qrels: Qrels | None
) -> tuple[dict[str, tuple[float, float]], Judgement | None]:
    """Returns nDCG@10 of both runs by judged query, and their means with the test; nothing without judgements."""
    if qrels is None:
        return {}, None
    ids = tuple(judged(queries, qrels))
    a, b = (per_query(run, qrels, ids)[MEASURE] for run in runs)
    both = {q: (float(x), float(y)) for q, x, y in zip(ids, a, b, strict=True)}
    return both, Judgement(float(a.mean()), float(b.mean()), float((b - a).mean()), paired_p(b, a), len(ids))


def overlap(a: Sequence[str], b: Sequence[str], k: int) -> float:
    """Returns the share of documents that two rankings of at most k have in common; 1 for two that are empty.

    >>> overlap(["x", "y"], ["y", "z"], 2)
    0.5
    """
    longest = min(k, max(len(a), len(b)))
    return len({*a} & {*b}) / longest if longest else 1.0


def tau(a: Sequence[str], b: Sequence[str]) -> float:
    """Computes Kendall's tau-b over the union; a document that a ranking lacks is tied behind its last.

    >>> tau(["x", "y", "z"], ["x", "y", "z"]), tau(["x", "y", "z"], ["z", "y", "x"])
    (1.0, -1.0)
    """
    union = sorted({*a, *b})
    if len(union) < 2:
        return 1.0
    places = [[ranking.index(d) if d in ranking else len(ranking) for d in union] for ranking in (list(a), list(b))]
    pairs = np.triu_indices(len(union), 1)
    x, y = (np.sign(np.subtract.outer(p, p)[pairs]) for p in map(np.array, places))
    untied = float(np.sqrt((x != 0).sum() * (y != 0).sum()))
    return float((x * y).sum()) / untied if untied else 0.0
