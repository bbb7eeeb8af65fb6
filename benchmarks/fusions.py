"""Chooses the default hybrid by leave-one-collection-out: each collection is measured with what the others choose.

Every collection's queries are searched once; a grid over weights, strength of smoothing and FALL is then scored on the
candidates. A collection's setting is the one with the best mean nDCG@10 over the other collections, among those that
make none of them worse than the setting of before (`BEFORE`) by more than .003; collections named alike up to a slash
(scifact, scifact/train) are left out together. The p-value is of a paired test over queries. Run:

    python -m benchmarks.fusions NAME INDEX FOLDER [NAME INDEX FOLDER ...] [--queries 600] [--tables FOLDER]

FOLDER holds queries.jsonl and qrels.tsv in BEIR's layout. --tables keeps each collection's figures for the next run.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config import Channel
from pipelines.evaluation.metrics import paired_p
from pipelines.evaluation.qrels import judged, read_qrels, read_queries
from pipelines.evaluation.runs import RankedQuery, rank
from pipelines.evaluation.tune import DISCOUNTS, K
from pipelines.retrieval import smoothing
from pipelines.retrieval.fusion import FusionRule
from pipelines.retrieval.index import open_index

Doubles = npt.NDArray[np.float64]
Setting = tuple[tuple[float, float, float, float], float, float]
CHANNELS: tuple[Channel, ...] = ("dense", "sparse", "colbert", "bm25")
WEIGHTS = (
    (1, 0, 3, 0.5),
    (1, 0, 2, 0.5),
    (1, 0.2, 2.5, 0.5),
    (1, 0.2, 2, 0.4),
    (1, 0.2, 2, 0.8),
    (1, 0.2, 1.6, 0.4),
    (1, 0.1, 1.3, 0.3),
)
STRENGTHS, FALLS = (1.0, 2.0, 3.0), (0.4, 0.5, 0.6, 0.7, 1.0)
BEFORE: Setting = (WEIGHTS[0], 0.0, 1.0)
TOLERANCE = 0.003


def settings() -> list[Setting]:
    """Lists the grid, weights without smoothing first."""
    return [(w, 0.0, 1.0) for w in WEIGHTS] + list(itertools.product(WEIGHTS, STRENGTHS, FALLS))


def measure(name: str, uri: str, folder: Path, most: int) -> dict[Setting, Doubles]:
    """Computes nDCG@10 of each query under each setting, and prints the channels' own."""
    index, qrels = open_index(uri), read_qrels(folder / "qrels.tsv")
    queries = judged(read_queries(folder / "queries.jsonl"), qrels)
    ids = sorted(np.random.default_rng(0).permutation(sorted(queries))[:most].tolist())
    ranked = rank(index, {i: queries[i] for i in ids})
    alone = {c: np.mean([_ndcg(q, q.found.scores[c], qrels[q.query_id]) for q in ranked]) for c in CHANNELS}
    print(f"{name}: {len(ids)} queries; " + ", ".join(f"{c} {v:.4f}" for c, v in alone.items()), flush=True)
    rows: dict[Setting, list[float]] = {setting: [] for setting in settings()}
    for query, weights in itertools.product(ranked, WEIGHTS):
        by_channel = dict(zip(CHANNELS, weights, strict=True))
        found = index.candidate_generator.with_graph(query.found, FusionRule("zscore", by_channel, 1.0))
        for setting in (s for s in settings() if s[0] == weights):
            _, strength, smoothing.FALL = setting
            fused = found.fuse(FusionRule("zscore", by_channel, strength))
            rows[setting].append(_ndcg(query, fused, qrels[query.query_id]))
    return {setting: np.array(values) for setting, values in rows.items()}


def kept_or_measured(kept: Path | None, name: str, uri: str, folder: Path, most: int) -> dict[Setting, Doubles]:
    """Reads a collection's figures if they are kept, else measures them and keeps them."""
    path = None if kept is None else kept / f"{name.replace('/', '-')}.npy"
    if path is not None and path.exists():
        return dict(zip(settings(), np.load(path), strict=True))
    table = measure(name, uri, folder, most)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(list(table.values())))
    return table


def _ndcg(query: RankedQuery, scores: npt.NDArray[Any], grades: Mapping[str, int]) -> float:
    """Computes nDCG@10; a document counts with its best chunk."""
    best = dict.fromkeys(query.documents[np.argsort(-scores, kind="stable")[: 10 * K]].tolist())
    gains = [max(0, grades.get(document, 0)) for document in list(best)[:K]]
    ideal = sorted((g for g in grades.values() if g > 0), reverse=True)[:K]
    return float(np.dot(gains, DISCOUNTS[: len(gains)]) / np.dot(ideal, DISCOUNTS[: len(ideal)]))


def choose(tables: dict[str, dict[Setting, Doubles]], names: list[str]) -> Setting:
    """Returns the setting with the best mean over the named collections, none of them worse by TOLERANCE."""

    def gains(setting: Setting) -> list[float]:
        return [float((tables[n][setting] - tables[n][BEFORE]).mean()) for n in names]

    allowed = [s for s in settings() if min(gains(s)) >= -TOLERANCE]
    return max(allowed, key=lambda s: np.mean(gains(s)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", metavar="NAME INDEX FOLDER")
    parser.add_argument("--queries", type=int, default=600, help="At most so many of each collection, drawn at random.")
    parser.add_argument("--tables", type=Path, help="Folder of figures that are there already, and of new ones.")
    given = parser.parse_args()
    triples = zip(*(given.collections[i::3] for i in range(3)), strict=True)
    tables = {n: kept_or_measured(given.tables, n, uri, Path(f), given.queries) for n, uri, f in triples}
    if len({name.split("/")[0] for name in tables}) < 2:
        parser.exit(message="one collection: nothing can be left out\n")
    everywhere = choose(tables, list(tables))
    print(f"chosen on all: {everywhere}")
    for name, table in tables.items():
        chosen = choose(tables, [n for n in tables if n.split("/")[0] != name.split("/")[0]])
        before, without, on_all = (table[s] for s in (BEFORE, chosen, everywhere))
        gain = f"{without.mean() - before.mean():+.4f}, p {paired_p(without, before):.4f}"
        print(f"{name:16} {before.mean():.4f} -> {without.mean():.4f} ({gain}) by {chosen}; all: {on_all.mean():.4f}")


if __name__ == "__main__":
    main()
