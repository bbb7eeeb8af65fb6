"""Exports Prometheus metrics of a running job through Ray's agents: each process counts, Prometheus sums.

Rates (tokens a second) are counters that Prometheus differentiates, so a lost scrape loses nothing. An update takes a
few microseconds and happens once a block, not once a row. Without a Ray they count into nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ray.util.metrics import Counter, Gauge, Histogram

from actors.arrow.blocks import tokens_from_table
from actors.compute.batching import plan_batches, round_up_tokens
from actors.pool import EmbedActor
from pipelines.store.writer import COSTS

COUNTERS = {
    "rows": "Rows embedded",
    "tokens": "Tokens that a model saw, special tokens included",
    "truncated_tokens": "Tokens dropped to fit the model's length",
    "batches": "Forward passes",
    "halvings": "Batches halved and run again after the device ran out of memory",
    "failed_rows": "Rows that a model could not take",
    "busy_seconds": "Time that actors spent on blocks",
    "quarantined_rows": "Rows committed to the quarantine",
    "committed_rows": "Rows committed to the table",
    "commits": "Commits",
}
SECONDS = {
    "block_seconds": "Time that an actor took for a block",
    "wait_seconds": "Time that an actor waited for its next block",
    "commit_seconds": "Time that a commit took",
}
BOUNDARIES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
TAGS = ("tridex_job", "embedder")
"""Prometheus gives every sample of its own a label `job`."""


@cache
def _counter(name: str) -> Counter:
    return Counter(f"tridex_{name}", description=COUNTERS[name], tag_keys=TAGS)


@cache
def _seconds(name: str) -> Histogram:
    return Histogram(f"tridex_{name}", description=SECONDS[name], boundaries=BOUNDARIES, tag_keys=TAGS)


@cache
def _padding() -> Gauge:
    return Gauge("tridex_padding_share", description="Share of computed tokens that were padding", tag_keys=TAGS)


def increment(name: str, n: float, job: str, embedder: str = "") -> None:
    """Increments one of COUNTERS."""
    if n > 0:
        _counter(name).inc(n, {"tridex_job": job, "embedder": embedder})


def observe_seconds(name: str, seconds: float, job: str, embedder: str = "") -> None:
    """Adds an observation to one of SECONDS. Ray sums the middles of buckets, so their `_sum` is not exact."""
    _seconds(name).observe(seconds, {"tridex_job": job, "embedder": embedder})


def record_commit(job: str, seconds: float, rows: int, quarantined: int) -> None:
    """Records one commit of the driver."""
    observe_seconds("commit_seconds", seconds, job)
    for name, n in (("commits", 1), ("committed_rows", rows), ("quarantined_rows", quarantined)):
        increment(name, n, job)


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Holds what one block cost an actor: rows, tokens, padding, failures and seconds."""

    rows: int
    tokens: int
    truncated: int
    failed: int
    batches: int
    padding: int
    """Padding tokens computed."""
    halvings: int
    seconds: float


def record_block(block: BlockCost, job: str, embedder: str) -> None:
    """Records one block of an embedder's actor."""
    numbers = {
        "rows": block.rows,
        "tokens": block.tokens,
        "truncated_tokens": block.truncated,
        "failed_rows": block.failed,
        "batches": block.batches,
        "halvings": block.halvings,
        "busy_seconds": block.seconds,
    }
    for name, n in numbers.items():
        increment(name, n, job, embedder)
    observe_seconds("block_seconds", block.seconds, job, embedder)
    share = block.padding / max(1, block.tokens + block.padding)
    _padding().set(share, {"tridex_job": job, "embedder": embedder})


class MeteredActor(EmbedActor):
    """Times an EmbedActor's blocks; a block's cost goes to Prometheus, and with the block to the driver."""

    def __init__(self, job: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.job = job
        self.idle_since: float | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        began, halvings = time.monotonic(), self.embedder.engine.executor.halvings
        if self.idle_since is not None:
            observe_seconds("wait_seconds", began - self.idle_since, self.job, self.name)
        result = super().__call__(table)
        self.idle_since = time.monotonic()
        halvings = self.embedder.engine.executor.halvings - halvings
        block = self._measure(table, result, halvings, self.idle_since - began)
        record_block(block, self.job, self.name)
        return add_costs(result, block)

    def _measure(self, before: pa.Table, after: pa.Table, halvings: int, seconds: float) -> BlockCost:
        tokens, _ = tokens_from_table(before, self.name)
        filled: npt.NDArray[np.int64] = tokens.lengths[tokens.lengths > 0]
        batches = plan_batches(filled, self.embedder.engine.executor.budget)
        return BlockCost(
            rows=len(tokens),
            tokens=int(filled.sum()),
            truncated=int(tokens.n_truncated.sum()),
            failed=before["error"].null_count - after["error"].null_count,
            batches=len(batches),
            padding=sum(count_computed_tokens(self.embedder.engine.backbone, filled[rows]) for rows in batches)
            - int(filled.sum()),
            halvings=halvings,
            seconds=seconds,
        )


def count_computed_tokens(backbone: Any, lengths: npt.NDArray[np.int64]) -> int:
    """Counts the tokens that one forward pass computes, padding included, for texts of these lengths.

    Backbones state their kind: naming their classes here would import transformers, 2 CPU seconds in every actor.
    """
    if getattr(backbone, "padded", False):
        return int(lengths.max()) * len(lengths)
    return round_up_tokens(int(lengths.sum())) if getattr(backbone, "packed", False) else int(lengths.sum())


def add_costs(table: pa.Table, block: BlockCost) -> pa.Table:
    """Adds a block's cost to COSTS on its first row: blocks are split and concatenated later, sums stay right."""
    for name, n in zip(COSTS, (block.padding, block.halvings), strict=True):
        values = np.zeros(len(table), np.int64)
        values[:1] = n
        if name in table.column_names:
            values += table[name].to_numpy()
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values))
    return table


def actor_class_for(embedder: str) -> type[MeteredActor]:
    """Creates a MeteredActor subclass named after the embedder, the name of its operator in Ray's dashboard."""
    return type(f"Embed_{embedder}", (MeteredActor,), {})
