"""Checks a plan for problems, one function per check; each warning names the setting to change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.config import BuildConfig, scheme_of
from pipelines.monitor.progress import format_duration, format_size
from pipelines.plan.figures import Plan

BLOCKS_PER_ACTOR = 6
"""Blocks in Ray's object store for each actor: two waiting, one in work, two done, one being written."""
OBJECT_STORE_SHARE = 0.3 * 0.5
"""Share of memory for Ray's object store by default, times the share of it that Ray Data uses."""
REDO_SECONDS = 300
"""Seconds of work lost in a crash above which the plan warns."""


def warnings_of(plan: Plan, config: BuildConfig) -> tuple[str, ...]:
    """Returns one warning per check that found a problem."""
    found = (check(plan, config) for check in CHECKS)
    return tuple(line for lines in found for line in lines)


def _nothing_read(plan: Plan, config: BuildConfig) -> list[str]:
    return [] if plan.chunks else ["not one document of the sample can be used: see the reasons above"]


def _bad_rows(plan: Plan, config: BuildConfig) -> list[str]:
    limit = config.job.quarantine_limit
    if plan.bad_share <= limit or not plan.sampled:
        return []
    return [
        f"{plan.bad_share:.1%} of the sampled rows are bad, more than job.quarantine_limit ({limit:.0%}): it will stop"
    ]


def _truncation(plan: Plan, config: BuildConfig) -> list[str]:
    cure = "set chunk.mode=tokens" if config.chunking.mode == "whole" else "lower chunk.size"
    return [
        f"{e.name}: {e.rows_truncated:.0%} of the rows are truncated and lose {e.tokens_truncated:.0%} of all tokens; "
        f"{cure} or raise max_length"
        for e in plan.embedders
        if e.rows_truncated > 0.05
    ]


def _colbert(plan: Plan, config: BuildConfig) -> list[str]:
    lines = []
    for e in plan.embedders:
        rest = plan.index_bytes - e.bytes.get("colbert", 0.0)
        if e.bytes.get("colbert", 0.0) > rest:
            least = min(e.colbert_bytes, key=lambda codec: e.colbert_bytes[codec])
            lines.append(
                f"{e.name}: ColBERT takes {format_size(e.bytes['colbert'])} as {e.codec}, all else "
                f"{format_size(rest)}; {least} would take {format_size(e.colbert_bytes[least])}"
            )
    return lines


def _object_store(plan: Plan, config: BuildConfig) -> list[str]:
    """Warns if a local Ray's object store would spill; a cluster's memory is unknown."""
    if config.ray.address or os.environ.get("RAY_ADDRESS"):
        return []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need = plan.block_bytes * BLOCKS_PER_ACTOR * sum(e.actors for e in plan.embedders)
    if need <= memory * OBJECT_STORE_SHARE:
        return []
    return [
        f"blocks of {format_size(plan.block_bytes)} need about {format_size(need)} of Ray's object store, which gives "
        f"{format_size(memory * OBJECT_STORE_SHARE)} here and will spill; lower pool.batch_rows or index.fragment_bytes"
    ]


def _disk(plan: Plan, config: BuildConfig) -> list[str]:
    """Warns if the disk lacks twice the index's size, which a rewrite (compaction, a new column) needs."""
    if scheme_of(config.index.uri):
        return []
    folder = Path(config.index.uri).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free >= 2 * plan.index_bytes:
        return []
    return [
        f"{folder} has {format_size(free)} free, the index takes about {format_size(plan.index_bytes)} and twice that "
        "to compact"
    ]


def _idle_gpu(plan: Plan, config: BuildConfig) -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [
        f"embedders.{i}.pool.num_gpus is 0 but this machine has a GPU: Ray hides it from the actors"
        for i, e in enumerate(config.embedders)
        if e.pool.num_gpus == 0
    ]


def _int8_on_card(plan: Plan, config: BuildConfig) -> list[str]:
    """Warns that int8 was requested and a card's speed predicted: the formula is that of half precision."""
    return [
        f"embedders.{i}.compute.dtype int8 runs on CPUs only: a build on a {planned.prediction.card} refuses it, and "
        "its speed is predicted for half precision; set compute.dtype to auto"
        for i, (e, planned) in enumerate(zip(config.embedders, plan.embedders, strict=True))
        if planned.prediction is not None and e.compute.dtype == "int8"
    ]


def _few_units(plan: Plan, config: BuildConfig) -> list[str]:
    actors = max((e.actors for e in plan.embedders), default=0)
    if plan.units >= actors or plan.input_bytes < 64 * 2**20:
        return []
    return [f"the input can be read in {plan.units} pieces only, for {actors} actors: one big compressed file?"]


def _much_to_redo(plan: Plan, config: BuildConfig) -> list[str]:
    if plan.redo_seconds is None or plan.redo_seconds <= REDO_SECONDS:
        return []
    return [
        f"a crash may cost {format_duration(plan.redo_seconds)} of work, which is what a fragment takes; "
        "lower index.fragment_bytes and pool.batch_rows"
    ]


CHECKS: tuple[Callable[[Plan, BuildConfig], list[str]], ...] = (
    _nothing_read,
    _bad_rows,
    _truncation,
    _colbert,
    _object_store,
    _disk,
    _idle_gpu,
    _int8_on_card,
    _few_units,
    _much_to_redo,
)
