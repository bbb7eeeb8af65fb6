"""Candidates of a query: the union of what its channels find, each row with every channel's exact score.

ColBERT has no index of its own. On a small table (`candidates.SCANNED_BYTES`) it scores every row; above, its best rows
are looked for among the best of the other channels, which bring FOLLOWED times as many rows for its sake. Where the
fusion is known, those rows are first scored roughly, and only the best KEPT times n of them exactly. What that misses,
and what other factors would miss, is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
FOLLOWED: Mapping[Channel, int] = {"dense": 1, "sparse": 3, "bm25": 2}
FOLLOWED_FAR: Mapping[Channel, int] = {"dense": 8, "sparse": 8, "bm25": 4}
"""The second where ColBERT has most of the weight: its best rows then lie deeper in the other channels' lists. A long
list costs little where the sparse index brings it."""
KEPT = 1


def followed(channel: Channel, rule: Rule | None) -> int:
    """How many times n rows a channel brings for ColBERT's sake; most where the fusion is not known."""
    light = rule is not None and 2 * rule.weights.get("colbert", 0) <= sum(rule.weights.values())
    return (FOLLOWED if light else FOLLOWED_FAR)[channel]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """One query's candidates, ascending by position, with every channel's exact score."""

    positions: IntArray
    scores: Mapping[Channel, Floats]
    tops: Mapping[Channel, Ranking]
    """What each searched channel found by itself."""
    sample: Mapping[Channel, Floats] | None = None
    """Scores of the index's sample of rows, where z-scores are asked for."""


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
        if not self._follows(wanted, exact):
            tops = self._tops(wanted, queries, dict.fromkeys(wanted, n), where, exact)
            return [self.scored(queries, i, {c: t[i] for c, t in tops.items()}, sampled) for i in range(len(queries))]
        leading = self._leading(wanted)
        tops = self._tops(leading, queries, {c: followed(c, rule) * n for c in leading}, where, exact)
        return [
            self._followed(queries, i, {c: t[i] for c, t in tops.items()}, n, sampled, rule)
            for i in range(len(queries))
        ]

    def _tops(
        self,
        searched: tuple[Channel, ...],
        queries: Queries,
        n: Mapping[Channel, int],
        where: Filter | None,
        exact: bool,
    ) -> dict[Channel, list[Ranking]]:
        """Every channel's best, beside each other: Lance and the kernels leave the interpreter's lock."""
        asked = {c: _pool().submit(self.channels[c].top, queries, n[c], where, exact) for c in searched[1:]}
        first = {c: self.channels[c].top(queries, n[c], where, exact) for c in searched[:1]}
        return {**first, **{c: answer.result() for c, answer in asked.items()}}

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

    def _followed(
        self, queries: Queries, i: int, tops: Mapping[Channel, Ranking], n: int, sampled: bool, rule: Rule | None
    ) -> Candidates:
        """Rows that other channels brought, and ColBERT's ranking of them as its own; each channel keeps n."""
        brought = np.unique(np.concatenate([top.positions for top in tops.values()]))
        kept = brought if rule is None else self._promising(queries, i, brought, tops, KEPT * n, rule)
        found = self.scored(queries, i, {"colbert": Ranking(kept, np.zeros(0, np.float32))}, sampled)
        places, best = top_n(found.scores["colbert"], n)
        cut = {c: Ranking(top.positions[:n], top.scores[:n]) for c, top in tops.items()}
        cut["colbert"] = Ranking(found.positions[places], best)
        return Candidates(found.positions, found.scores, cut, found.sample)

    def _promising(
        self, queries: Queries, i: int, rows: IntArray, tops: Mapping[Channel, Ranking], n: int, rule: Rule
    ) -> IntArray:
        """The n best of some rows by the fusion, with ColBERT's rough scores."""
        colbert = self.channels["colbert"]
        if len(rows) <= n or not (isinstance(colbert, Colbert) and colbert.has_rough):
            return rows
        sampled = rule.fusion == "zscore"
        everything = np.concatenate([rows, self.sample]) if sampled else rows
        used: list[Channel] = [c for c, weight in rule.weights.items() if weight > 0 and c != "colbert"]
        asked = {c: _pool().submit(self._filled, c, queries, i, everything, tops.get(c)) for c in used}
        rough = colbert.rough(queries, i, everything)
        scores = {"colbert": rough, **{c: answer.result() for c, answer in asked.items()}}
        sample = {c: s[len(rows) :] for c, s in scores.items()} if sampled else None
        fused = fuse({c: s[: len(rows)] for c, s in scores.items()}, rule, sample)
        return rows[np.sort(top_n(fused.astype(np.float32), n)[0])]

    def _filled(self, channel: Channel, queries: Queries, i: int, rows: IntArray, known: Ranking | None) -> Floats:
        """A channel's scores of some rows; those of its own ranking are not computed again."""
        if known is None:
            return self.channels[channel].scores(queries, i, rows)
        scores, there = known.at(rows)
        scores[~there] = self.channels[channel].scores(queries, i, rows[~there])
        return scores

    def scored(self, queries: Queries, i: int, tops: Mapping[Channel, Ranking], sampled: bool = False) -> Candidates:
        """The union of some rankings of query i; `sampled` scores the index's sample beside it."""
        found = [top.positions for top in tops.values()]
        positions = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
        n = len(positions)
        rows = np.concatenate([positions, self.sample]) if sampled else positions
        scores = {c: channel.scores(queries, i, rows) for c, channel in self.channels.items()}
        sample = {c: s[n:] for c, s in scores.items()} if sampled else None
        return Candidates(positions, {c: s[:n] for c, s in scores.items()}, tops, sample)

    @cached_property
    def sample(self) -> IntArray:
        """Positions of SAMPLED rows drawn at random, the same at every opening of one version."""
        rows = np.random.default_rng(0).choice(self.rows, min(SAMPLED, self.rows), replace=False)
        return np.sort(rows).astype(np.int64)

    def with_rows(self, queries: Queries, found: Candidates, rows: IntArray) -> Candidates:
        """A single query's candidates with these rows among them, found or not."""
        if not len(np.setdiff1d(rows, found.positions)):
            return found
        (channel, top), *_ = found.tops.items()
        wider = Ranking(np.concatenate([top.positions, found.positions, rows]), top.scores)
        whole = self.scored(queries, 0, {**found.tops, channel: wider}, found.sample is not None)
        return Candidates(whole.positions, whole.scores, found.tops, whole.sample)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "channels")
