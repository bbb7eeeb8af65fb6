"""Shows a job's current phase on stderr: a live line on a terminal, one line per phase in a log file.

On a terminal the line is there within the second and counts the seconds of its phase, so that a start of Ray that takes
twenty does not look like a hang; a thread rewrites it once a second.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from pipelines.monitor.progress import format_duration

CLEAR = "\r\x1b[K"
QUIET_SECONDS = 3
"""Seconds of waiting for CPUs before the line mentions it."""


@dataclass
class StatusLine:
    """Shows the current phase until it is cleared or a progress bar takes the line."""

    enabled: bool = True
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    waits_for: Callable[[], str | None] = field(default=lambda: None)
    """Returns what the job waits for; called when a phase begins, shown once the phase has lasted some seconds."""
    _phase: str | None = None
    _began: float = 0.0
    _reason: str | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    @property
    def live(self) -> bool:
        return self.enabled and self.stream.isatty()

    def show(self, phase: str) -> None:
        """Shows a phase from its start."""
        if not self.enabled:
            return
        reason = self.waits_for()
        with self._lock:
            self._phase, self._began, self._reason = phase, time.monotonic(), reason
        if not self.live:
            print(f"{phase} ...{f' ({reason})' if reason else ''}", file=self.stream, flush=True)
            return
        self._write()
        if self._thread is None:
            self._thread = threading.Thread(target=self._tick, name="status", daemon=True)
            self._thread.start()

    def clear(self) -> None:
        """Clears the line before other output."""
        with self._lock:
            shown, self._phase = self._phase is not None, None
        if shown and self.live:
            print(CLEAR, end="", file=self.stream, flush=True)

    def close(self) -> None:
        """Clears the line and stops the thread."""
        self.clear()
        self._stop.set()

    def text(self) -> str:
        """Formats the line: `starting Ray ... 12s`, and what the phase waits for."""
        seconds = time.monotonic() - self._began
        waiting = f" ({self._reason})" if self._reason and seconds >= QUIET_SECONDS else ""
        return f"{self._phase} ...{f' {format_duration(seconds)}' if seconds >= 1 else ''}{waiting}"

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            self._write()

    def _write(self) -> None:
        with self._lock:
            if self._phase is not None:
                print(f"{CLEAR}{self.text()}", end="", file=self.stream, flush=True)
