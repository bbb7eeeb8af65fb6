"""What a running job says, on stderr: a live line on a terminal, a plain line every ten seconds in a log file.

It counts what the writers have reported, so it never runs ahead of the data; the price is that it moves a fragment at a
time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m10s` or `5h02m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(n: float) -> str:
    """Bytes as `812 B`, `4.1 MB`, `1.2 TB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


@dataclass
class Counts:
    """Sums over what has been written. Documents are source rows, rows are chunks."""

    documents: int = 0
    rows: int = 0
    quarantined: int = 0
    tokens: int = 0
    padding: int = 0
    truncated_rows: int = 0
    truncated_tokens: int = 0

    def add(self, other: Counts) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def padding_share(self) -> float:
        """Padding over all positions that the model computed."""
        return self.padding / max(1, self.tokens + self.padding)


@dataclass
class Progress:
    """Prints the state of a job of `total` documents; None where the total is not known."""

    total: int | None
    enabled: bool = True
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = 10.0
    counts: Counts = field(default_factory=Counts)
    started: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    def add(self, counts: Counts) -> None:
        self.counts.add(counts)
        now = time.monotonic()
        live = self.stream.isatty()
        if self.enabled and (now - self._last >= (0.2 if live else self.every)):
            self._last = now
            print(
                f"\r\x1b[K{self.line()}" if live else self.line(),
                end="" if live else "\n",
                file=self.stream,
                flush=True,
            )

    def close(self) -> None:
        if self.enabled and self.stream.isatty():
            print(f"\r\x1b[K{self.line()}", file=self.stream, flush=True)

    def line(self) -> str:
        """`12,000 of 55,232 documents, 9.8k tokens/s, padding 0.0%, truncated 41, quarantined 0, 4m10s left`."""
        c, elapsed = self.counts, max(1e-9, time.monotonic() - self.started)
        done = c.documents + c.quarantined
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [
            f"{done:,}{of} documents",
            f"{c.tokens / elapsed / 1000:.1f}k tokens/s",
            f"padding {c.padding_share:.1%}",
            f"truncated {c.truncated_rows:,}",
            f"quarantined {c.quarantined:,}",
        ]
        if self.total is not None and 0 < done < self.total:
            parts.append(f"{duration(elapsed / done * (self.total - done))} left")
        return ", ".join(parts)
