"""Records a run: its current phase, the seconds of each, totals over time, and the final report.

The report is written whether the run ends well or not, but never turns a good end into a bad one: a store that refuses
the report has already taken the data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import lance

from pipelines.config import BuildConfig, ConfigError
from pipelines.monitor import metrics
from pipelines.monitor.lengths import histogram
from pipelines.monitor.progress import Progress
from pipelines.monitor.report import Facts, Timeline, write_report
from pipelines.monitor.status_line import StatusLine
from pipelines.monitor.summary import Summary
from pipelines.store.commit import Committer, Totals
from pipelines.store.schema import Target

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RunLog:
    """Collects a run's record; the driver fills it in."""

    config: BuildConfig
    started: float = field(default_factory=time.monotonic)
    began: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    phases: dict[str, float] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    seen: Totals = field(default_factory=Totals)
    """Of everything that workers have written, committed or not."""
    summary: dict[str, Any] = field(default_factory=dict)
    status: StatusLine = field(default_factory=StatusLine)
    report: str | None = None
    """Address of the report, once it is written."""
    _nested: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.status.enabled = self.config.ray.progress

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows the phase and adds the block's time to it; time of a nested phase counts for the nested one only."""
        began = time.monotonic()
        self.status.show(name)
        self._nested.append(0.0)
        try:
            yield
        finally:
            took, inner = time.monotonic() - began, self._nested.pop()
            self.phases[name] = self.phases.get(name, 0.0) + took - inner
            if self._nested:
                self._nested[-1] += took

    def note(self, record: dict[str, Any], progress: Progress) -> None:
        """Counts a fragment that a worker has written."""
        self.seen = self.seen.plus([record])
        self.status.clear()
        self.timeline.note(self.seen.rows, self.seen.n_tokens, self.seen.quarantined)
        progress.show(self.seen)

    def finish(self, summary: Summary) -> Summary:
        self.summary = summary.to_dict()
        return summary

    def commit(self, committer: Committer) -> None:
        before, began = committer.totals, time.monotonic()
        after = committer.commit()
        rows, failed = after.rows - before.rows, after.quarantined - before.quarantined
        if rows or failed:
            metrics.record_commit(self.config.job.id, time.monotonic() - began, rows, failed)

    @contextmanager
    def reported(self, target: Target) -> Iterator[None]:
        """Writes the report when the block ends, except after a wrong request."""
        state, error = "done", None
        try:
            yield
        except ConfigError:
            state = "refused"
            raise
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        except BaseException as failure:
            state, error = "failed", f"{type(failure).__name__}: {failure}"
            raise
        finally:
            self.status.close()
            if state != "refused":
                self._write(target, state, error)

    def _write(self, target: Target, state: str, error: str | None) -> None:
        facts = Facts(
            job=self.config.job.id,
            state=state,
            error=error,
            started=self.began,
            summary=self.summary or asdict(self.seen),
            config=self.config.model_dump(mode="json"),
            phases=self.phases,
            timeline=self.timeline.points,
            lengths=lengths(target),
        )
        try:
            self.report = write_report(target.uri, facts, self.config.index.storage_options)
        except OSError as failure:
            logger.warning("no report of this run: %s", failure)


def lengths(target: Target) -> dict[str, int]:
    """Returns the histogram of the token counts of all rows in the index."""
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    return histogram(batch.column("n_tokens") for batch in dataset.scanner(columns=["n_tokens"]).to_batches())
