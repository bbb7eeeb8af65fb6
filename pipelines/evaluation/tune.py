"""Chooses fusion and weights on judged queries, and tests whether fusion beats the best channel.

Weights come from coordinate ascent over a coarse grid, because nDCG is a step function of them and finer steps fit
noise. What is reported is cross-validated: each query is scored with weights chosen without it. A hybrid that does not
beat the best single channel that way is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from actors.output_paths import refuse_file
from pipelines.config import Channel, ConfigError, Fusion, SearchOptions
from pipelines.evaluation.metrics import Doubles, interval, paired_p
from pipelines.evaluation.qrels import Qrels, judged
from pipelines.evaluation.runs import RankedQuery, rank
from pipelines.retrieval.fusion import FusionRule, normalised, resolve_fusion
from pipelines.retrieval.index import Index

GRID = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
FUSIONS: tuple[Fusion, ...] = ("zscore", "weighted", "rrf")
K = 10
DISCOUNTS = 1 / np.log2(np.arange(2, K + 2))


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Holds all queries' candidates, padded: values (queries, candidates, channels), gains (queries, candidates)."""

    channels: tuple[Channel, ...]
    values: npt.NDArray[np.float32]
    gains: npt.NDArray[np.float32]
    ideal: Doubles

    def ndcg(self, weights: Doubles, rows: npt.NDArray[np.int64] | None = None) -> Doubles:
        """Computes nDCG@10 of each query under the weights."""
        chosen = slice(None) if rows is None else rows
        scores = self.values[chosen] @ weights.astype(np.float32)
        depth = min(K, scores.shape[1])
        top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable"), 1)
        gains = np.take_along_axis(self.gains[chosen], top, 1)
        result: Doubles = gains @ DISCOUNTS[:depth] / self.ideal[chosen]
        return result


def features(ranked: Sequence[RankedQuery], qrels: Qrels, rule: FusionRule, channels: tuple[Channel, ...]) -> Features:
    """Computes channel parts by the rule's fusion and smoothing, without its weights.

    Keeps a document's best chunk by the sum of the parts, as in a run. Neighbours, and what rises towards them, are
    those under the rule's weights.
    """
    width = max(len(q.documents) for q in ranked)
    values = np.full((len(ranked), width, len(channels)), -1e6, np.float32)
    gains = np.zeros((len(ranked), width), np.float32)
    ideal = np.ones(len(ranked))
    for i, query in enumerate(ranked):
        grades = qrels[query.query_id]
        found = query.found
        scaled = {c: normalised(rule.fusion, c, found.scores, found.sample) for c in channels}
        parts = np.column_stack(list(found.smooth(scaled, rule).values()))
        order = np.argsort(-parts.sum(axis=1), kind="stable")
        kept = order[np.sort(np.unique(query.documents[order], return_index=True)[1])]
        values[i, : len(kept)] = parts[kept]
        gains[i, : len(kept)] = [max(0, grades.get(d, 0)) for d in query.documents[kept]]
        best = sorted((g for g in grades.values() if g > 0), reverse=True)[:K]
        ideal[i] = np.array(best) @ DISCOUNTS[: len(best)]
    return Features(channels, values, gains, ideal)


def ascend(table: Features, rows: npt.NDArray[np.int64]) -> Doubles:
    """Optimises weights on the rows by coordinate ascent from equal weights; scales the largest to 1."""
    weights = np.ones(len(table.channels))
    best = float(table.ndcg(weights, rows).mean())
    for _ in range(4):
        before = best
        for channel in range(len(weights)):
            for value in GRID:
                tried = weights.copy()
                tried[channel] = value
                if tried.sum() > 0 and (score := float(table.ndcg(tried, rows).mean())) > best + 1e-6:
                    best, weights = score, tried
        if best - before < 1e-4:
            break
    largest: Doubles = weights / weights.max()
    return largest


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """Reports what tuning found. `hybrid` is cross-validated; channels need no fitting and are measured as they are."""

    fusion: Fusion
    weights: Mapping[Channel, float]
    hybrid: Doubles
    default: Doubles
    channels: Mapping[Channel, Doubles]

    @property
    def best_channel(self) -> Channel:
        return max(self.channels, key=lambda c: float(self.channels[c].mean()))

    @property
    def p(self) -> float:
        """Returns the p of a paired test of the hybrid against the best single channel."""
        return paired_p(self.hybrid, self.channels[self.best_channel])

    @property
    def beats_best_channel(self) -> bool:
        return float(self.hybrid.mean()) > float(self.channels[self.best_channel].mean())

    def to_dict(self) -> dict[str, Any]:
        return {
            "fusion": self.fusion,
            "weights": dict(self.weights),
            "nDCG@10": float(self.hybrid.mean()),
            "interval": list(interval(self.hybrid)),
            "default": float(self.default.mean()),
            "channels": {c: float(v.mean()) for c, v in self.channels.items()},
            "best_channel": self.best_channel,
            "p_vs_best_channel": self.p,
            "beats_best_channel": self.beats_best_channel,
        }

    def text(self) -> str:
        weights = ", ".join(f"{c} {w:g}" for c, w in self.weights.items())
        low, high = interval(self.hybrid)
        verdict = "beats" if self.beats_best_channel else "DOES NOT BEAT"
        best = self.best_channel
        lines = [f"{c:10} {v.mean():.4f}" for c, v in self.channels.items()]
        return "\n".join(
            [
                *lines,
                f"{'default':10} {self.default.mean():.4f}",
                f"{'tuned':10} {self.hybrid.mean():.4f} ({low:.4f} to {high:.4f}), cross-validated: "
                f"{self.fusion}, {weights}",
                f"the tuned hybrid {verdict} the best single channel, {best} (p {self.p:.4f})",
            ]
        )

    __repr__ = text

    def config(self) -> SearchOptions:
        """Returns the search config; ConfigError if fusion is not better than the best channel."""
        best = self.best_channel
        if not self.beats_best_channel:
            raise ConfigError(
                f"tune: the tuned hybrid ({self.hybrid.mean():.4f}) does not beat {best} alone "
                f"({self.channels[best].mean():.4f}); no config is written, search with mode={best}"
            )
        return SearchOptions(mode="hybrid", fusion=self.fusion, weights=dict(self.weights))

    def write(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the search config as YAML, with what it was measured on in its first line.

        OutputExists (a ValueError) where there is a file and it may not be replaced.
        """
        refuse_file(path, force=force)
        config = self.config().model_dump(exclude_unset=True)
        head = f"# nDCG@10 {self.hybrid.mean():.4f}, cross-validated on {len(self.hybrid)} queries by `tridex tune`\n"
        Path(path).write_text(head + yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def tune(
    index: Index, queries: Mapping[str, str], qrels: Qrels, *, folds: int = 5, candidates: int = 200, seed: int = 0
) -> Tuning:
    """Chooses fusion and weights by `folds`-fold cross-validation over the queries."""
    kept = judged(queries, qrels)
    if folds < 2 or len(kept) < 2 * folds:
        raise ConfigError(
            f"folds: {folds} folds need {2 * max(folds, 2)} judged queries or more, there are {len(kept)}"
        )
    ranked = rank(index, kept, candidates)
    return tune_ranked(index, ranked, qrels, folds, seed)


def tune_ranked(index: Index, ranked: Sequence[RankedQuery], qrels: Qrels, folds: int = 5, seed: int = 0) -> Tuning:
    """Tunes as `tune`, on candidates that are retrieved already."""
    channels: tuple[Channel, ...] = tuple(index.channels)
    fold = np.random.default_rng(seed).permutation(len(ranked)) % folds
    rules = {
        f: resolve_fusion(index.default_fusion, channels, f, None) for f in (*FUSIONS, index.default_fusion.fusion)
    }
    tables = {f: features(ranked, qrels, rule, channels) for f, rule in rules.items()}
    validated = {f: _cross_validate(tables[f], fold, folds) for f in FUSIONS}
    fusion = max(FUSIONS, key=lambda f: float(validated[f].mean()))
    weights = ascend(tables[fusion], np.arange(len(ranked)))
    rule = index.default_fusion
    default = np.array([rule.weights.get(c, 0.0) for c in channels])
    alone = np.eye(len(channels))
    return Tuning(
        fusion,
        {c: float(w) for c, w in zip(channels, weights, strict=True) if w > 0},
        validated[fusion],
        tables[rule.fusion].ndcg(default),
        {c: tables["weighted"].ndcg(alone[i]) for i, c in enumerate(channels)},
    )


def _cross_validate(table: Features, fold: npt.NDArray[np.int64], folds: int) -> Doubles:
    """Computes nDCG@10 of each query under weights chosen on the other folds."""
    result = np.zeros(len(fold))
    for k in range(folds):
        held = np.flatnonzero(fold == k)
        result[held] = table.ndcg(ascend(table, np.flatnonzero(fold != k)), held)
    return result
