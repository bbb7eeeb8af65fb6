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
from pipelines.retrieval.candidates import ChannelSearch, Colbert, Filter, Floats, Queries, Ranking
from pipelines.retrieval.fusion import LEXICAL, Rule, fuse
from pipelines.retrieval.kernels import top_n

SAMPLED = 256
"""Rows that z-scores are measured against."""
FOLLOWED: Mapping[Channel, int] = {"dense": 1, "sparse": 3, "bm25": 2, "colbert": 1}
FOLLOWED_FAR: Mapping[Channel, int] = {"dense": 12, "sparse": 8, "bm25": 8, "colbert": 2}
"""How many times n rows each channel brings for ColBERT's sake, and how many of all are then scored exactly. The second
where ColBERT has most of the weight: its best rows then lie deeper in the other channels' lists."""
COSTLY: Channel = "bm25"
"""Asking Lance for the scores of some rows takes longer than asking for the best of all: 12 ms for 1,800 of a million,
6 ms for the best 800."""
GUESSED = 0.5
Scores = Mapping[Channel, Floats]


def followed(channel: Channel, rule: Rule | None) -> int:
    """Times n rows, of FOLLOWED or FOLLOWED_FAR; most where the fusion is not known."""
    light = rule is not None and 2 * rule.weights.get("colbert", 0) <= sum(rule.weights.values())
    return (FOLLOWED if light else FOLLOWED_FAR)[channel]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """One query's candidates, ascending by position, with every channel's exact score.

    Where the fusion is known and has no use for full text, its scores are left out (`Union.shown`).
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
        """The channels that bring rows for ColBERT: those of the search, and always one that matches words."""
        others = tuple(c for c in wanted if c != "colbert")
        if not others:
            return tuple(c for c in self.channels if c != "colbert")
        lexical = {*LEXICAL} & {*others}
        return others if lexical or "sparse" not in self.channels else (*others, "sparse")

    def _one(
        self, queries: Queries, i: int, tops: Mapping[Channel, Ranking], sample: Scores | None, plan: Plan
    ) -> Candidates:
        """One query's candidates out of what channels brought. What ColBERT then finds best is its own ranking."""
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(top.positions for top in tops.values())]))
        if plan.follows and plan.rule is not None:
            rows = self._promising(queries, i, rows, tops, sample, plan)
        scores = self._exact(queries, i, rows, tops, plan.rule)
        if plan.follows:
            places, best = top_n(scores["colbert"], plan.n)
            tops = {c: Ranking(top.positions[: plan.n], top.scores[: plan.n]) for c, top in tops.items()}
            tops["colbert"] = Ranking(rows[places], best)
        return Candidates(rows, scores, tops, sample)

    def _promising(
        self,
        queries: Queries,
        i: int,
        rows: IntArray,
        tops: Mapping[Channel, Ranking],
        sample: Scores | None,
        plan: Plan,
    ) -> IntArray:
        """The best of some rows by the fusion, with rough scores."""
        n, rule = plan.depth("colbert"), plan.rule
        assert rule is not None
        colbert = self.channels["colbert"]
        if len(rows) <= n or not (isinstance(colbert, Colbert) and colbert.has_rough):
            return rows
        used: list[Channel] = [c for c, weight in rule.weights.items() if weight > 0 and c not in ("colbert", COSTLY)]
        scores = {c: self.channels[c].scores(queries, i, rows) for c in used}
        scores["colbert"] = colbert.rough(queries, i, rows)
        if rule.weights.get(COSTLY):
            scores[COSTLY] = _guessed(tops.get(COSTLY), rows, plan.depth(COSTLY))
        if sample is not None:
            sample = {**sample, "colbert": colbert.rough(queries, i, self.sample)}
        return rows[np.sort(top_n(fuse(scores, rule, sample).astype(np.float32), n)[0])]

    def scored(self, queries: Queries, i: int, tops: Mapping[Channel, Ranking]) -> Candidates:
        """The union of some rankings of query i, scored by every channel."""
        return self._one(queries, i, tops, None, Plan(0, None, False))

    def shown(self, queries: Queries, i: int, found: Candidates, places: IntArray) -> Future[Scores]:
        """Every channel's scores of some of the candidates: those that the fusion had no use for are asked for now."""
        return _pool().submit(self._shown, queries, i, found, places)

    def _shown(self, queries: Queries, i: int, found: Candidates, places: IntArray) -> Scores:
        missing = self.channels.keys() - found.scores.keys()
        late = {c: self.channels[c].scores(queries, i, found.positions[places]) for c in missing}
        known = {c: scores[places] for c, scores in found.scores.items()}
        return {c: {**known, **late}[c] for c in self.channels}

    def _exact(
        self, queries: Queries, i: int, rows: IntArray, tops: Mapping[Channel, Ranking], rule: Rule | None
    ) -> Scores:
        """Exact scores by every channel, full text's beside the others'; those only where they have a say."""
        wanted = COSTLY in self.channels and (rule is None or rule.weights.get(COSTLY, 0) > 0)
        costly = _pool().submit(self._filled, queries, i, rows, tops.get(COSTLY)) if wanted else None
        scores = {c: channel.scores(queries, i, rows) for c, channel in self.channels.items() if c != COSTLY}
        return scores if costly is None else {**scores, COSTLY: costly.result()}

    def _filled(self, queries: Queries, i: int, rows: IntArray, known: Ranking | None) -> Floats:
        """Full text's scores of some rows; those of its own ranking are not asked for again."""
        if known is None:
            return self.channels[COSTLY].scores(queries, i, rows)
        scores, there = known.at(rows)
        scores[~there] = self.channels[COSTLY].scores(queries, i, rows[~there])
        return scores

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
        return Candidates(both, self._exact(queries, 0, both, {}, None), found.tops, found.sample)


def _results(sample: Mapping[Channel, Future[Floats]] | None) -> Scores | None:
    return None if sample is None else {c: scores.result() for c, scores in sample.items()}


def _guessed(known: Ranking | None, rows: IntArray, asked: int) -> Floats:
    """A ranking's scores; a row that is not among the best that were asked for gets half of what the last one has."""
    if known is None:
        return np.zeros(len(rows), np.float32)
    scores, there = known.at(rows)
    if len(known.scores) >= asked:
        scores[~there] = GUESSED * known.scores[-1]
    return scores


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "channels")
