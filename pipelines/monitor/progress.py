"""Prints a running job's progress to stderr: a live line on a terminal, a line every ten seconds in a log file.

It counts what the writers have reported, so it never runs ahead of the data; the price is that it moves a fragment at a
time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import TextIO

from pipelines.store.commit import Totals


def format_duration(seconds: float) -> str:
    """Formats seconds as `42s`, `3m10s` or `5h02m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_size(n: float) -> str:
    """Formats bytes as `812 B`, `4.1 MB`, `1.2 TB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


@dataclass
class Progress:
    """Prints the state of a job of `total` documents; None if the total is unknown."""

    total: int | None
    enabled: bool = True
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = 10.0
    started: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)
    _said: Totals | None = None

    def show(self, counts: Totals, now: bool = False) -> None:
        """Prints a line if one is due or `now`; in a log, the last line is not repeated."""
        live = self.stream.isatty()
        now = now and (live or counts != self._said)
        passed = time.monotonic() - self._last
        if self.enabled and (now or passed >= (0.2 if live else self.every)):
            self._last += passed
            self._said = replace(counts)
            start, end = ("\r\x1b[K", "\n" if now else "") if live else ("", "\n")
            print(f"{start}{self.line(counts)}", end=end, file=self.stream, flush=True)

    def line(self, counts: Totals) -> str:
        """Formats `12,000 of 55,232 documents, 9.8k tokens/s, padding 0.0%, truncated 4, quarantined 0, 4m10s left`."""
        elapsed = max(1e-9, time.monotonic() - self.started)
        done = counts.documents
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [
            f"{done:,}{of} documents",
            f"{counts.n_tokens / elapsed / 1000:.1f}k tokens/s",
            f"padding {counts.padding:.1%}",
            f"truncated {counts.rows_truncated:,}",
            f"quarantined {counts.quarantined:,}",
        ]
        if self.total is not None and 0 < done < self.total:
            parts.append(f"{format_duration(elapsed / done * (self.total - done))} left")
        return ", ".join(parts)
