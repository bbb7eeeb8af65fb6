"""Candidates of a query: the union of what its channels find, each row with every channel's exact score.

ColBERT has no index of its own. On a small table (`candidates.SCANNED_BYTES`) it scores every row; above, its best rows
are looked for among the best of the other channels, which bring FOLLOWED times as many rows for its sake. Where the
fusion is known, those rows are first scored roughly, and only the best of them exactly. What that misses, and what
other factors would miss, is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from actors.outputs import IntArray
from pipelines.config import Channel
from pipelines.retrieval.channels import ChannelSearch, Colbert, Filter, Floats, Queries, Ranking
from pipelines.retrieval.fusion import Rule, fuse
from pipelines.retrieval.scoring.kernels import top_n

SAMPLED = 256
"""Rows that z-scores are measured against."""
FOLLOWED: Mapping[Channel, int] = {"dense": 1, "sparse": 3, "bm25": 2, "colbert": 1}
FOLLOWED_FAR: Mapping[Channel, int] = {"dense": 12, "sparse": 6, "bm25": 6, "colbert": 2}
"""How many times n rows each channel brings for ColBERT's sake, and how many of all are then scored exactly. The second
where ColBERT has most of the weight: its best rows then lie deeper in the other channels' lists."""
Scores = Mapping[Channel, Floats]


def followed(channel: Channel, rule: Rule | None) -> int:
    """Times n rows, of FOLLOWED or FOLLOWED_FAR; most where the fusion is not known."""
    light = rule is not None and 2 * rule.weights.get("colbert", 0) <= sum(rule.weights.values())
    return (FOLLOWED if light else FOLLOWED_FAR)[channel]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """One query's candidates, ascending by position, with every channel's exact score.

    Where the fusion is known, of the channels that it adds up; `Union.shown` has the others'.
    """

    positions: IntArray
    scores: Mapping[Channel, Floats]
    tops: Mapping[Channel, Ranking]
    """What each searched channel found by itself."""
    sample: Mapping[Channel, Floats] | None = None
    """Scores of the index's sample of rows, where z-scores are asked for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How candidates are looked for: n rows of each channel; the fusion to come, if known; whether ColBERT follows."""

    n: int
    rule: Rule | None
    follows: bool

    def depth(self, channel: Channel) -> int:
        """How many rows the channel brings."""
        return self.n * (followed(channel, self.rule) if self.follows else 1)

    def counts(self, channel: Channel) -> bool:
        """Whether candidates are ranked by the channel's scores."""
        return self.rule is None or self.rule.weights.get(channel, 0) > 0 or (self.follows and channel == "colbert")


@dataclass(frozen=True)
class Union:
    """Finds and scores candidates over the channels of an index with `rows` rows."""

    channels: Mapping[Channel, ChannelSearch]
    rows: int

    def find(
        self,
        queries: Queries,
        searched: Iterable[Channel],
        n: int,
        where: Filter | None = None,
        exact: bool = False,
        sampled: bool = False,
        rule: Rule | None = None,
    ) -> list[Candidates]:
        """See `Index.candidates`."""
        wanted = tuple(searched)
        plan = Plan(n, rule, self._follows(wanted, exact))
        leading = self._leading(wanted) if plan.follows else wanted
        asked = {c: _pool().submit(self.channels[c].top, queries, plan.depth(c), where, exact) for c in leading}
        samples = [self._sampled(queries, i, rule) if sampled else None for i in range(len(queries))]
        rankings = {c: answer.result() for c, answer in asked.items()}
        return [
            self._one(queries, i, {c: ranking[i] for c, ranking in rankings.items()}, _results(sample), plan)
            for i, sample in enumerate(samples)
        ]

    def _follows(self, wanted: tuple[Channel, ...], exact: bool) -> bool:
        """Whether ColBERT ranks what others bring."""
        colbert = self.channels.get("colbert")
        others = self.channels.keys() - {"colbert"}
        return "colbert" in wanted and isinstance(colbert, Colbert) and not (colbert.scans or exact) and bool(others)

    def _leading(self, wanted: tuple[Channel, ...]) -> tuple[Channel, ...]:
        """The channels that bring rows for ColBERT: those of the search, and always sparse, which finds its words."""
        others = {*wanted} - {"colbert"} or {*self.channels} - {"colbert"}
        return tuple(c for c in self.channels if c == "sparse" or c in others)

    def _one(
        self, queries: Queries, i: int, tops: Mapping[Channel, Ranking], sample: Scores | None, plan: Plan
    ) -> Candidates:
        """One query's candidates out of what channels brought. What ColBERT then finds best is its own ranking."""
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(top.positions for top in tops.values())]))
        scores: Scores = {}
        if plan.rule is not None and plan.follows and len(rows) > plan.depth("colbert"):
            rows, scores = self._promising(queries, i, rows, sample, plan.rule, plan.depth("colbert"))
        counted = [c for c in self.channels if plan.counts(c)]
        scores = {**scores, **self._exact(queries, i, rows, [c for c in counted if c not in scores])}
        if plan.follows:
            places, best = top_n(scores["colbert"], plan.n)
            tops = {c: Ranking(top.positions[: plan.n], top.scores[: plan.n]) for c, top in tops.items()}
            tops["colbert"] = Ranking(rows[places], best)
        return Candidates(rows, {c: scores[c] for c in counted}, tops, sample)

    def _promising(
        self, queries: Queries, i: int, rows: IntArray, sample: Scores | None, rule: Rule, n: int
    ) -> tuple[IntArray, Scores]:
        """The n best rows by the fusion with ColBERT's scores rough, and the scores of theirs that are exact."""
        colbert = self.channels["colbert"]
        if not (isinstance(colbert, Colbert) and colbert.has_rough):
            return rows, {}
        used = [c for c, weight in rule.weights.items() if weight > 0 and c != "colbert"]
        rough = _pool().submit(colbert.rough, queries, i, rows)
        scores = self._exact(queries, i, rows, used)
        fused = fuse({**scores, "colbert": rough.result()}, rule, sample)
        kept = np.sort(top_n(fused.astype(np.float32), n)[0])
        return rows[kept], {c: some[kept] for c, some in scores.items()}

    def scored(self, queries: Queries, i: int, tops: Mapping[Channel, Ranking]) -> Candidates:
        """The union of some rankings of query i, scored by every channel."""
        return self._one(queries, i, tops, None, Plan(0, None, False))

    def shown(self, queries: Queries, i: int, found: Candidates, places: IntArray) -> Scores:
        """Every channel's scores of some of the candidates: those that the fusion has no use for are asked for now."""
        missing = [c for c in self.channels if c not in found.scores]
        scores = {c: some[places] for c, some in found.scores.items()}
        scores |= self._exact(queries, i, found.positions[places], missing)
        return {c: scores[c] for c in self.channels}

    def _exact(self, queries: Queries, i: int, rows: IntArray, wanted: Iterable[Channel]) -> Scores:
        """Exact scores by these channels, side by side."""
        asked = {c: _pool().submit(self.channels[c].scores, queries, i, rows) for c in wanted}
        return {c: scores.result() for c, scores in asked.items()}

    def _sampled(self, queries: Queries, i: int, rule: Rule | None) -> Mapping[Channel, Future[Floats]]:
        """Scores of the index's sample by every channel that may be asked for them, beside all else."""
        used = [c for c in self.channels if rule is None or rule.weights.get(c, 0) > 0]
        return {c: _pool().submit(self.channels[c].scores, queries, i, self.sample) for c in used}

    @cached_property
    def sample(self) -> IntArray:
        """Positions of SAMPLED rows drawn at random, the same at every opening of one version."""
        rows = np.random.default_rng(0).choice(self.rows, min(SAMPLED, self.rows), replace=False)
        return np.sort(rows).astype(np.int64)

    def with_rows(self, queries: Queries, found: Candidates, rows: IntArray) -> Candidates:
        """A single query's candidates with these rows among them, found or not, and with every channel's scores."""
        if not len(np.setdiff1d(rows, found.positions)) and found.scores.keys() == self.channels.keys():
            return found
        both = np.union1d(found.positions, rows)
        return Candidates(both, self._exact(queries, 0, both, self.channels), found.tops, found.sample)


def _results(sample: Mapping[Channel, Future[Floats]] | None) -> Scores | None:
    return None if sample is None else {c: scores.result() for c, scores in sample.items()}


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "channels")
