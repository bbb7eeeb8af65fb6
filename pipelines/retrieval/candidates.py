"""Generates a query's candidates: the union of the channels' best rows, each with every channel's exact score.

ColBERT has no index of its own. On a small table (`channels.colbert.COLBERT_SCAN_BYTES`) it scores every row; above,
its best rows are looked for among the best of the other channels, which then contribute `colbert_oversampling` times
as many rows (`pipelines.config.channels`). Where the fusion is known, those rows are first ranked with approximate
ColBERT scores, and only the best of them get exact ones. What that misses, and what other factors would miss, is in
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from actors.outputs import IntArray
from pipelines.config import CHANNELS, Channel
from pipelines.retrieval.channels.base import ChannelSearch, Floats, Ranking
from pipelines.retrieval.channels.colbert import ColbertChannel
from pipelines.retrieval.channels.dense import DenseChannel
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.fusion import Doubles, FusionRule, fuse, parts
from pipelines.retrieval.queries import EncodedQueries
from pipelines.retrieval.scoring.kernels import top_n
from pipelines.retrieval.smoothing import NeighbourGraph, best_places, build_graph
from pipelines.search_indexes.content_sample import sample_by_content
from pipelines.store.table import Snapshot

ZSCORE_SAMPLE_ROWS = 256
"""Rows that z-scores are measured against."""
Scores = Mapping[Channel, Floats]


def colbert_oversampling(channel: Channel, rule: FusionRule | None) -> int:
    """Returns how many rows a channel retrieves per candidate if ColBERT only re-scores; most for an open fusion."""
    light = rule is not None and 2 * rule.weights.get("colbert", 0) <= sum(rule.weights.values())
    spec = CHANNELS[channel]
    return spec.colbert_oversampling_light if light else spec.colbert_oversampling


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Holds one query's candidates, ascending by position, with exact scores.

    Where the fusion is known they have the scores of the channels that it adds up; `CandidateGenerator.all_scores`
    computes the others' for the rows that are shown.
    """

    positions: IntArray
    scores: Mapping[Channel, Floats]
    tops: Mapping[Channel, Ranking]
    """What each searched channel found by itself."""
    sample: Mapping[Channel, Floats] | None = None
    """Scores of the index's sample of rows, where z-scores are wanted."""
    graph: NeighbourGraph | None = None
    """Neighbours among the best rows, where scores are to be smoothed."""

    def fuse(self, rule: FusionRule) -> Doubles:
        """Computes fused scores (n,), smoothed if the rule smooths and the graph exists."""
        return fuse(self.scores, rule, self.sample, self.graph)

    def smooth(self, values: Mapping[Channel, Doubles], rule: FusionRule) -> dict[Channel, Doubles]:
        """Smooths each channel's values (n,) as the rule smooths its parts."""
        if self.graph is None or rule.smoothing == 0:
            return dict(values)
        smooth = self.graph.smoother(fuse(self.scores, rule, self.sample), rule.smoothing)
        return {c: smooth(some) for c, some in values.items()}

    def parts(self, rule: FusionRule) -> Mapping[Channel, Doubles]:
        """Computes what each channel adds to the fused scores."""
        return parts(self.scores, rule, self.sample, self.graph)


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """Holds n rows per channel, the later fusion if it is known, and whether ColBERT only re-scores."""

    n: int
    rule: FusionRule | None
    rescores: bool

    def depth(self, channel: Channel) -> int:
        """Returns how many rows the channel retrieves."""
        return self.n * (colbert_oversampling(channel, self.rule) if self.rescores else 1)

    def uses(self, channel: Channel) -> bool:
        """Returns whether candidates are ranked by the channel's scores."""
        return self.rule is None or self.rule.weights.get(channel, 0) > 0 or (self.rescores and channel == "colbert")


@dataclass(frozen=True)
class CandidateGenerator:
    """Generates and scores candidates over the channels of an index."""

    channels: Mapping[Channel, ChannelSearch]
    snapshot: Snapshot

    def find(
        self,
        queries: EncodedQueries,
        searched: Iterable[Channel],
        n: int,
        where: Filter | None = None,
        exact: bool = False,
        sampled: bool = False,
        rule: FusionRule | None = None,
    ) -> list[Candidates]:
        """Finds the candidates of each query; see `Index.candidates`."""
        wanted = tuple(searched)
        plan = CandidatePlan(n, rule, self._colbert_rescores(wanted, exact))
        finding = self._finding(wanted) if plan.rescores else wanted
        started = {c: _pool().submit(self.channels[c].top, queries, plan.depth(c), where, exact) for c in finding}
        sampling = self._sample_scores(queries, rule) if sampled else None
        rankings = {c: answer.result() for c, answer in started.items()}
        tops = [{c: ranking[i] for c, ranking in rankings.items()} for i in range(len(queries))]
        samples = None if sampling is None else _results(sampling, len(queries))
        return self._join(queries, tops, samples, plan)

    def rank_by_one(
        self, queries: EncodedQueries, channel: Channel, n: int, where: Filter | None, exact: bool
    ) -> list[Ranking]:
        """Ranks the n best rows of each query by a single channel."""
        if self._colbert_rescores((channel,), exact):
            alone = FusionRule("weighted", {channel: 1.0})
            return [found.tops[channel] for found in self.find(queries, [channel], n, where, rule=alone)]
        return self.channels[channel].top(queries, n, where, exact)

    def as_candidates(
        self, queries: EncodedQueries, i: int, channel: Channel, top: Ranking, scored: Iterable[Channel]
    ) -> Candidates:
        """Returns one channel's ranking of query i as candidates, with exact scores of these channels."""
        rows = np.sort(top.positions)
        return Candidates(rows, self._exact(queries, i, rows, scored), {channel: top})

    def all_scores(self, queries: EncodedQueries, i: int, found: Candidates, places: IntArray) -> Scores:
        """Returns every channel's scores of some of the candidates, computing those that the fusion did not need."""
        missing = [c for c in self.channels if c not in found.scores]
        scores = {c: some[places] for c, some in found.scores.items()}
        scores |= self._exact(queries, i, found.positions[places], missing)
        return {c: scores[c] for c in self.channels}

    def with_graph(self, found: Candidates, rule: FusionRule) -> Candidates:
        """Returns the candidates with the neighbours of the best by the rule, if it smooths and there are vectors."""
        dense = self.channels.get("dense")
        if rule.smoothing == 0 or not isinstance(dense, DenseChannel):
            return found
        fused = fuse(found.scores, rule, found.sample)
        places = best_places(fused)
        return replace(found, graph=build_graph(places, fused, dense.vectors(found.positions[places])))

    def with_rows(self, queries: EncodedQueries, found: Candidates, rows: IntArray, rule: FusionRule) -> Candidates:
        """Returns a single query's candidates, these rows added, with every channel's scores and the rule's graph."""
        if not len(np.setdiff1d(rows, found.positions)) and found.scores.keys() == self.channels.keys():
            return found
        both = np.union1d(found.positions, rows)
        scores = self._exact(queries, 0, both, self.channels)
        return self.with_graph(Candidates(both, scores, found.tops, found.sample), rule)

    @cached_property
    def sample(self) -> IntArray:
        """Returns ZSCORE_SAMPLE_ROWS positions, chosen by content hash: equal corpora give equal z-scores."""
        return sample_by_content(self.snapshot, ZSCORE_SAMPLE_ROWS)

    def _colbert_rescores(self, wanted: tuple[Channel, ...], exact: bool) -> bool:
        """Returns whether ColBERT is searched and only re-scores what other channels retrieve."""
        colbert = self.channels.get("colbert")
        others = self.channels.keys() - {"colbert"}
        return (
            "colbert" in wanted
            and isinstance(colbert, ColbertChannel)
            and not (colbert.scans or exact)
            and bool(others)
        )

    def _finding(self, wanted: tuple[Channel, ...]) -> tuple[Channel, ...]:
        """Returns the channels that retrieve rows for ColBERT: the searched ones, and sparse in any case."""
        others = {*wanted} - {"colbert"} or {*self.channels} - {"colbert"}
        return tuple(c for c in self.channels if CHANNELS[c].always_feeds_colbert or c in others)

    def _join(
        self,
        queries: EncodedQueries,
        tops: Sequence[Mapping[Channel, Ranking]],
        samples: Sequence[Scores] | None,
        plan: CandidatePlan,
    ) -> list[Candidates]:
        """Joins every query's rankings into candidates; ColBERT's best scores among them are its own ranking."""
        each = range(len(queries))
        rows = [_union(top) for top in tops]
        known: list[Scores] = [{} for _ in each]
        if plan.rule is not None and plan.rescores:
            for i in (i for i in each if len(rows[i]) > plan.depth("colbert")):
                sample = None if samples is None else samples[i]
                rows[i], known[i] = self._preselect(queries, i, rows[i], sample, plan.rule, plan.depth("colbert"))
        used = [c for c in self.channels if plan.uses(c)]
        exact = self._exact_each(queries, rows, [[c for c in used if c not in known[i]] for i in each])
        found = []
        for i in each:
            scores, top = {**known[i], **exact[i]}, tops[i]
            if plan.rescores:
                places, best = top_n(scores["colbert"], plan.n)
                top = {c: ranking.first(plan.n) for c, ranking in top.items()}
                top["colbert"] = Ranking(rows[i][places], best)
            found.append(
                Candidates(rows[i], {c: scores[c] for c in used}, top, None if samples is None else samples[i])
            )
        return found

    def _preselect(
        self, queries: EncodedQueries, i: int, rows: IntArray, sample: Scores | None, rule: FusionRule, n: int
    ) -> tuple[IntArray, Scores]:
        """Keeps the n best rows by the fusion of approximate ColBERT scores and the other channels' exact ones."""
        colbert = self.channels["colbert"]
        if not (isinstance(colbert, ColbertChannel) and colbert.has_approximate_scores):
            return rows, {}
        used = [c for c, weight in rule.weights.items() if weight > 0 and c != "colbert"]
        approximate = _pool().submit(colbert.approximate_scores, queries, i, rows)
        scores = self._exact(queries, i, rows, used)
        fused = fuse({**scores, "colbert": approximate.result()}, rule, sample)
        kept = np.sort(top_n(fused.astype(np.float32), n)[0])
        return rows[kept], {c: some[kept] for c, some in scores.items()}

    def _exact(self, queries: EncodedQueries, i: int, rows: IntArray, wanted: Iterable[Channel]) -> Scores:
        """Computes query i's exact scores by these channels, one thread per channel."""
        started = {c: _pool().submit(self.channels[c].scores, queries, i, rows) for c in wanted}
        return {c: scores.result() for c, scores in started.items()}

    def _exact_each(
        self, queries: EncodedQueries, rows: Sequence[IntArray], wanted: Sequence[Sequence[Channel]]
    ) -> list[Scores]:
        """Computes exact scores of each query's own rows by each query's wanted channels, one thread per channel."""
        queries_of = {c: [i for i, channels in enumerate(wanted) if c in channels] for c in self.channels}
        started = {
            c: _pool().submit(self._score_each, c, queries, queries_of[c], rows) for c in queries_of if queries_of[c]
        }
        done = {c: dict(zip(queries_of[c], scores.result(), strict=True)) for c, scores in started.items()}
        return [{c: done[c][i] for c in channels} for i, channels in enumerate(wanted)]

    def _score_each(
        self, channel: Channel, queries: EncodedQueries, numbers: Sequence[int], rows: Sequence[IntArray]
    ) -> list[Floats]:
        return [self.channels[channel].scores(queries, i, rows[i]) for i in numbers]

    def _sample_scores(self, queries: EncodedQueries, rule: FusionRule | None) -> dict[Channel, Future[list[Floats]]]:
        """Starts scoring the index's sample by every channel that the fusion may need, in the background."""
        used = [c for c in self.channels if rule is None or rule.weights.get(c, 0) > 0]
        each = range(len(queries))
        rows = [self.sample] * len(queries)
        return {c: _pool().submit(self._score_each, c, queries, each, rows) for c in used}


def _union(tops: Mapping[Channel, Ranking]) -> IntArray:
    """Returns the positions that any channel found, ascending."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(top.positions for top in tops.values())]))


def _results(sampling: Mapping[Channel, Future[list[Floats]]], queries: int) -> list[Scores]:
    """Waits for the sample's scores; returns those of each query."""
    done = {c: scores.result() for c, scores in sampling.items()}
    return [{c: scores[i] for c, scores in done.items()} for i in range(queries)]


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "channels")
