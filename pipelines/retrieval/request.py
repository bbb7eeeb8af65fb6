"""Checks the options of a search against one index: whatever they name must exist there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipelines.config import CHANNELS, Channel, InvalidRequest, Mode, Reranker, SearchOptions
from pipelines.retrieval.filters import Filter
from pipelines.retrieval.fusion import FusionRule, resolve_fusion
from pipelines.retrieval.grouping import Grouping
from pipelines.retrieval.rerank import ByChannel, as_reranker
from pipelines.store.table import Snapshot


@dataclass(frozen=True, slots=True)
class Request:
    """Holds a search that is checked against an index. See `pipelines.config.search.SearchOptions` for the fields."""

    k: int
    mode: Mode
    rule: FusionRule
    where: Filter | None
    candidates: int
    columns: tuple[str, ...]
    grouping: Grouping | None
    offset: int
    reranker: Reranker | ByChannel | None
    rerank_k: int
    exact: bool
    scores: Literal["all", "used"]

    @property
    def takes_text_alone(self) -> bool:
        """Returns whether none of its channels needs an encoded query."""
        reranks = (self.reranker.channel,) if isinstance(self.reranker, ByChannel) else ()
        return self.scores == "used" and not any(CHANNELS[c].output for c in (*self.searched, *reranks))

    @property
    def searched(self) -> tuple[Channel, ...]:
        """Returns the channels that retrieve candidates."""
        if self.mode != "hybrid":
            return (self.mode,)
        return tuple(c for c, w in self.rule.weights.items() if w > 0)

    @property
    def effective_rule(self) -> FusionRule:
        """Returns the rule as a fusion; a single channel is ranked by its raw score."""
        return self.rule if self.mode == "hybrid" else FusionRule("weighted", {self.searched[0]: 1.0})

    @property
    def depth(self) -> int:
        """Returns how many rows must be ranked before paging."""
        wanted = self.offset + self.k
        return max(wanted, self.rerank_k) if self.reranker else wanted


def check_request(
    options: SearchOptions,
    snapshot: Snapshot,
    channels: Mapping[Channel, object],
    default: FusionRule,
    evaluate_filter: Callable[[str], Filter],
) -> Request:
    """Checks what the options name (mode, weights, columns, reranker, condition) against an index.

    InvalidRequest names the option at fault. evaluate_filter: turns a SQL condition into the rows that it allows.
    """
    available = tuple(channels)
    _check_mode(options.mode, available)
    columns = snapshot.metadata_columns if options.columns is None else options.columns
    snapshot.check_columns(columns, "columns")
    rows = [options.candidates, options.offset + options.k, options.rerank_k if options.rerank is not None else 0]
    return Request(
        k=options.k,
        mode=options.mode,
        rule=resolve_fusion(default, available, options.fusion, options.weights, options.smoothing),
        where=None if options.where is None else evaluate_filter(options.where),
        candidates=max(rows),
        columns=tuple(columns),
        grouping=_check_grouping(options, snapshot),
        offset=options.offset,
        reranker=None if options.rerank is None else as_reranker(options.rerank, available),
        rerank_k=options.rerank_k,
        exact=options.exact,
        scores=options.scores,
    )


def _check_mode(mode: Mode, available: tuple[Channel, ...]) -> None:
    if mode == "hybrid" or mode in available:
        return
    if CHANNELS[mode].needs:
        raise InvalidRequest(f"mode: the index has no {CHANNELS[mode].needs}")
    raise InvalidRequest(f"mode: the index has no {mode} output; it has {', '.join(available)}")


def _check_grouping(options: SearchOptions, snapshot: Snapshot) -> Grouping | None:
    """Returns the grouping; None if every row would be a group of its own."""
    column = options.group_by
    if column is None or (column == "doc_id" and not snapshot.has_chunks):
        return None
    snapshot.check_columns([column], "group_by")
    return Grouping(column, options.group_size)
