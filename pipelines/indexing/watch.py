"""Keeps an index up to date with its input (`tridex watch`): lists the input at intervals, and builds when it differs.

A look costs a listing: sizes and modification times, or a Lance table's version. Only a listing that differs from that
of the last complete build starts one, which compares by content as every build does; so a restart, which has no
listing, costs one comparison and embeds nothing again. The job's models stay loaded (`warm`). A build that fails is
tried again at the next look, and the old state of the index goes on being searched.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipelines.config import BuildConfig, ConfigError, WorkFailed, plain_options, resolve_paths, scheme_of
from pipelines.indexing.build import build_resolved
from pipelines.indexing.session import uses_running_ray
from pipelines.indexing.warm import WarmModels
from pipelines.monitor.summary import Summary
from pipelines.reading.units import list_versions
from pipelines.store.datasets import open_dataset
from pipelines.store.interrupt import interruptible
from pipelines.store.maintain import KEEP_VERSIONS, optimize
from pipelines.store.schema import table_uri

logger = logging.getLogger("tridex.watch")

EVERY = 60.0
PRUNE_LIMIT = 0.1
OPTIMIZE_FRAGMENTS = 64
"""Fragments above the number after the last `optimize` at which the table is compacted again."""
OPTIMIZE_VERSIONS = 200
"""Versions since the last `optimize` at which it runs again: new metadata and deletions add no fragments."""


@dataclass(slots=True)
class WatchState:
    """Counts what a watch has done, and how far the index is behind its input."""

    began: float = field(default_factory=time.time)
    looks: int = 0
    builds: int = 0
    failures: int = 0
    optimized: int = 0
    embedded: int = 0
    metadata_only: int = 0
    pruned: int = 0
    current_since: float | None = None
    """Time of the newest listing whose content is all in the index; None before there is one."""
    backlog: int = 0
    """Files that differ from that listing."""
    build_seconds: float = 0.0
    error: str | None = None
    """Why the last look failed; None if it did not."""

    @property
    def staleness(self) -> float:
        """Returns the seconds since the state of the input that the index holds."""
        return time.time() - (self.began if self.current_since is None else self.current_since)

    def count(self, summary: Summary) -> None:
        self.builds += 1
        self.build_seconds = summary.seconds
        self.embedded += summary.new + summary.changed
        self.metadata_only += summary.metadata_only
        self.pruned += summary.pruned

    def to_dict(self) -> dict[str, Any]:
        names = ("looks", "builds", "failures", "optimized", "embedded", "metadata_only", "pruned", "backlog", "error")
        return {name: getattr(self, name) for name in names} | {"staleness_seconds": round(self.staleness, 1)}

    def text(self) -> str:
        return (
            f"watched: {self.looks:,} looks, {self.builds:,} builds, {self.failures:,} failures; {self.embedded:,} "
            f"documents embedded, {self.metadata_only:,} with new metadata, {self.pruned:,} rows pruned; "
            f"{self.optimized:,} times optimized"
        )

    def to_prometheus(self, job: str) -> str:
        """Formats the state as Prometheus text, for node_exporter's textfile collector."""
        counters = ("looks", "builds", "failures", "optimized", "embedded", "metadata_only", "pruned")
        lines = [f'tridex_watch_{name}_total{{tridex_job="{job}"}} {getattr(self, name)}' for name in counters]
        gauges = {
            "staleness_seconds": self.staleness,
            "backlog_files": self.backlog,
            "build_seconds": self.build_seconds,
        }
        lines += [f'tridex_watch_{name}{{tridex_job="{job}"}} {value:g}' for name, value in gauges.items()]
        return "\n".join(lines) + "\n"


def watch(
    config: BuildConfig,
    *,
    every: float = EVERY,
    prune: bool | None = None,
    prune_limit: float | None = None,
    metrics: str | os.PathLike[str] | None = None,
    looks: int | None = None,
    optimize_fragments: int | None = OPTIMIZE_FRAGMENTS,
    keep_versions: timedelta = KEEP_VERSIONS,
    report: Callable[[WatchState], None] | None = None,
) -> WatchState:
    """Builds an index and keeps it up to date until it is interrupted (SIGINT, SIGTERM); returns what it did.

    every: seconds from the end of one look to the next. prune: also remove documents that are gone from the input
    (None: as the config's `job.prune`), but not more than the share `prune_limit` of them (None: the config's, or
    a tenth where it has none). metrics: file that is replaced after every look by metrics in Prometheus' text format.
    looks: stop after so many. optimize_fragments: compact the table when it has so many more fragments than after the
    last time, or OPTIMIZE_VERSIONS more versions; None: never. keep_versions: a search on a version that was replaced
    longer ago may lose its files then. report: is called after every look.

    Raises ConfigError if the first look fails by it: the request is wrong. Later ones are tried again.
    """
    if every <= 0:
        raise ConfigError(f"every: must be more than 0 seconds, got {every:g}")
    state = WatchState()
    watched = _Watch(resolve_paths(_with_prune(config, prune, prune_limit)), state, optimize_fragments, keep_versions)
    try:
        with interruptible(), watched.warm.stack:
            while looks is None or state.looks < looks:
                watched.look()
                if metrics is not None:
                    _replace_file(Path(metrics), state.to_prometheus(config.job.id))
                if report is not None:
                    report(state)
                if looks is None or state.looks < looks:
                    _pause(every)
    except KeyboardInterrupt:
        logger.info("stopped: %s", state.text())
    return state


def _pause(seconds: float) -> None:
    time.sleep(seconds)


def _with_prune(config: BuildConfig, prune: bool | None, limit: float | None) -> BuildConfig:
    """Sets `job.prune` and a limit; where neither the caller nor the config sets one, PRUNE_LIMIT."""
    if limit is None:
        limit = config.job.prune_limit if "prune_limit" in config.job.model_fields_set else PRUNE_LIMIT
    changes = {"prune": config.job.prune if prune is None else prune, "prune_limit": limit}
    return config.model_copy(update={"job": config.job.model_copy(update=changes)})


class _Watch:
    """Holds what one look leaves to the next: the listing that the index reflects, and the loaded models."""

    def __init__(
        self, config: BuildConfig, state: WatchState, optimize_fragments: int | None, keep_versions: timedelta
    ) -> None:
        self.config, self.state, self.optimize_fragments = config, state, optimize_fragments
        self.keep_versions = keep_versions
        self.warm = WarmModels(on_cluster=uses_running_ray(config.ray))
        self.known: Mapping[str, str] | None = None
        self.compacted = 0
        """Fragments after the last `optimize`."""
        self.optimized_version = 0
        coarse = any(scheme_of(path) not in ("", "file") for path in config.input.paths)
        self.repeats = 2 if coarse else 1
        """Builds after a change: object stores count whole seconds, so a file may have changed after it was read."""
        self.to_repeat = 0

    def look(self) -> None:
        """Lists the input and builds if it has changed; a failure is recorded, and is a ConfigError the first time."""
        state = self.state
        first = state.looks == 0
        state.looks += 1
        try:
            listed, at = list_versions(self.config.input), time.time()
            state.backlog = _count_differences(self.known, listed)
            if state.backlog or self.known is None:
                self.to_repeat = self.repeats
            if self.to_repeat:
                state.count(build_resolved(self.config, warm=self.warm))
                self.to_repeat -= 1
                self._compact()
            self.known, state.current_since, state.backlog, state.error = listed, at, 0, None
        except (ConfigError, WorkFailed, OSError) as error:
            if first and isinstance(error, ConfigError):
                raise
            state.failures += 1
            if str(error) != state.error:
                logger.error("%s", error)
            state.error = str(error)

    def _compact(self) -> None:
        """Runs `optimize` when commits have left many small fragments or many versions."""
        index = self.config.index
        options = plain_options(index.storage_options)
        dataset = open_dataset(table_uri(index.uri, index.table), options)
        if self.optimize_fragments is None or dataset is None:
            return
        fragments, version = len(dataset.get_fragments()), dataset.version
        self.compacted, self.optimized_version = self.compacted or fragments, self.optimized_version or version
        many = fragments - self.compacted >= self.optimize_fragments
        if many or version - self.optimized_version >= OPTIMIZE_VERSIONS:
            from pipelines.search_indexes.update import update_indexes

            done = optimize(index.uri, index.table, options, keep_versions=self.keep_versions)
            update_indexes(index.uri, index.table, options)
            self.compacted = done.fragments_after
            dataset.checkout_latest()
            self.optimized_version = dataset.version
            self.state.optimized += 1


def _count_differences(known: Mapping[str, str] | None, listed: Mapping[str, str]) -> int:
    """Counts files that are new, changed or gone."""
    before = known or {}
    return len(before.keys() ^ listed.keys()) + sum(1 for f in before.keys() & listed.keys() if before[f] != listed[f])


def _replace_file(path: Path, text: str) -> None:
    """Writes a file beside and moves it into place, so that nobody reads half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
