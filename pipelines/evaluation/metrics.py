"""Computes ir-measures per query, and confidence intervals and significance tests of their means.

Intervals are percentile bootstraps over queries; tests are paired randomisation tests (signs of the differences
flipped), which assume nothing about the distribution. Both draw from a fixed seed, so a report repeats exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np
import numpy.typing as npt

from pipelines.evaluation.qrels import Qrels

Doubles = npt.NDArray[np.float64]
Run = dict[str, dict[str, float]]
"""Query id to document id to score."""

MEASURES = {"nDCG@10": "nDCG@10", "R@100": "R@100", "MRR@10": "RR@10", "MAP": "AP"}
"""Our name to ir-measures' name. The first decides."""
SAMPLES = 2_000
FLIPS = 10_000


def per_query(run: Run, qrels: Qrels, query_ids: Sequence[str]) -> dict[str, Doubles]:
    """Returns for each measure one value per query, in the order given; a query without an answer counts 0."""
    parsed = {ir_measures.parse_measure(theirs): ours for ours, theirs in MEASURES.items()}
    place = {query_id: i for i, query_id in enumerate(query_ids)}
    values = {ours: np.zeros(len(query_ids)) for ours in MEASURES}
    wanted = {query_id: qrels[query_id] for query_id in query_ids}
    for metric in ir_measures.iter_calc(list(parsed), wanted, run):
        if metric.query_id in place:
            values[parsed[metric.measure]][place[metric.query_id]] = metric.value
    return values


def interval(values: Doubles, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Computes the bootstrap confidence interval of the mean."""
    draws = np.random.default_rng(seed).integers(0, len(values), (SAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p(a: Doubles, b: Doubles, seed: int = 0) -> float:
    """Computes the two-sided p of the mean difference under random flips of each query's sign."""
    differences = a - b
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(differences.sum())
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(10):
        signs = rng.integers(0, 2, (FLIPS // 10, len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= observed - 1e-12).sum())
    return (extreme + 1) / (FLIPS + 1)


def means(values: Mapping[str, Doubles]) -> dict[str, float]:
    return {measure: float(v.mean()) for measure, v in values.items()}
