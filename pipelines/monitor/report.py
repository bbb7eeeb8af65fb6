"""Writes the report of a run beside the index: a JSON document for programs and one HTML page for people.

It is written once, at the end, also of a run that failed; while a job runs, metrics and the progress line report. A
report holds what the configuration holds except secrets, which pydantic masks.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from html import escape
from importlib.metadata import version
from typing import Any

from pyarrow.fs import FileType
from pydantic import SecretStr

from pipelines.monitor import charts
from pipelines.monitor.progress import format_duration
from pipelines.reading.files import READ_ERRORS, filesystem, redact

FOLDER = "reports"
MAX_POINTS = 500


@dataclass(frozen=True, slots=True)
class Point:
    """Holds the totals of a run `seconds` after its start."""

    seconds: float
    rows: int
    tokens: int
    quarantined: int


@dataclass(slots=True)
class Timeline:
    """Records totals over time in at most 500 points: when full, drops every second one and doubles the interval."""

    every: float = 1.0
    started: float = field(default_factory=time.monotonic)
    points: list[Point] = field(default_factory=list)

    def note(self, rows: int, tokens: int, quarantined: int) -> None:
        """Records the totals, unless the last point is younger than `every` seconds."""
        seconds = time.monotonic() - self.started
        if self.points and seconds - self.points[-1].seconds < self.every:
            return
        self.points.append(Point(seconds, rows, tokens, quarantined))
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self.every *= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Holds everything that a report contains."""

    job: str
    state: str
    """`done`, `failed` or `interrupted`."""
    error: str | None = None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    summary: Mapping[str, Any]
    """Counts by name, as `Summary.to_dict` gives them."""
    config: Mapping[str, Any]
    """`BuildConfig.model_dump(mode="json")`, which masks secrets."""
    phases: Mapping[str, float]
    """Seconds of each phase of the job, in order."""
    timeline: Sequence[Point] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)
    """See `pipelines.monitor.lengths`."""
    warnings: Sequence[str] = ()
    version: str = field(default_factory=lambda: version("tridex"))
    machine: str = field(default_factory=lambda: describe_machine())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"started": self.started.isoformat()}

    @property
    def stem(self) -> str:
        """Returns a file stem that sorts by time: `20261122T041500Z-build`."""
        return f"{self.started:%Y%m%dT%H%M%SZ}-{re.sub('[^A-Za-z0-9_.-]', '_', self.job)}"


def write_report(uri: str, facts: Facts, storage_options: Mapping[str, SecretStr] | None = None) -> str:
    """Writes `reports/TIME-JOB.json` and `.html` into the folder or URI of an index; returns the HTML's address.

    OSError, without any secret, where it cannot be written.
    """
    options = storage_options or {}
    fs, path = filesystem(uri, options)
    stem = f"{FOLDER}/{facts.stem}"
    pages = {"json": json.dumps(facts.to_dict(), indent=2, default=str, ensure_ascii=False), "html": to_html(facts)}
    try:
        fs.create_dir(f"{path}/{FOLDER}", recursive=True)
        stem = _unused_stem(fs, path, stem)
        for suffix, text in pages.items():
            with fs.open_output_stream(f"{path}/{stem}.{suffix}") as file:
                file.write(text.encode())
    except READ_ERRORS as error:
        raise OSError(f"{uri}/{stem}: {redact(str(error), options)}") from None
    return f"{uri.rstrip('/')}/{stem}.html"


def _unused_stem(fs: Any, path: str, stem: str) -> str:
    """Returns the stem, or `STEM-2` and so on: two runs within a second must not overwrite each other."""
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(c for c in candidates if fs.get_file_info(f"{path}/{c}.json").type == FileType.NotFound)


STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 720px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse } td { padding: 2px 16px 2px 0; vertical-align: top }
td + td { font-variant-numeric: tabular-nums }
svg { width: 100%; font: 11px system-ui, sans-serif } svg text { fill: currentColor }
.axis { fill: none; stroke: currentColor; opacity: .4 }
.failed { color: #c33 } pre { overflow: auto; font-size: 12px }
"""


def to_html(facts: Facts) -> str:
    """Formats the report as one HTML page without scripts, fonts or external links."""
    title = f"{escape(facts.job)}: {escape(facts.state)}"
    plots = [
        ("Throughput", charts.line_chart(*_rates(facts.timeline), "tokens a second over time", "s")),
        ("Length of texts, in tokens", charts.bar_chart(facts.lengths, "rows by number of tokens")),
        ("Where the time went", charts.share_chart(facts.phases, "seconds of each phase", "s")),
    ]
    sections = [f"<h2>{name}</h2>\n{plot}" for name, plot in plots if plot]
    warnings = [f"<p>Warning: {escape(line)}</p>" for line in facts.warnings]
    error = [f'<pre class="failed">{escape(facts.error)}</pre>'] if facts.error else []
    config = f"<h2>Configuration</h2>\n<pre>{escape(json.dumps(dict(facts.config), indent=2, default=str))}</pre>"
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>'
    when = f"<p>started {facts.started:%Y-%m-%d %H:%M:%S} UTC, took {format_duration(sum(facts.phases.values()))}</p>"
    machine = f"<p>tridex {escape(facts.version)} on {escape(facts.machine)}</p>"
    body = [f"<h1>{title}</h1>", when, machine, *error, *warnings, _table(facts.summary), *sections, config]
    return "\n".join([head, *body, "</html>\n"])


def _rates(timeline: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Returns (seconds, tokens per second since the previous point)."""
    pairs = [(a, b) for a, b in itertools.pairwise(timeline) if b.seconds > a.seconds]
    rates = [(b.tokens - a.tokens) / (b.seconds - a.seconds) for a, b in pairs]
    return [b.seconds for _, b in pairs], rates


LABELS = {
    "index": "Index",
    "embedded.rows": "Rows embedded",
    "embedded.documents": "Documents embedded",
    "embedded.quarantined": "Rows in quarantine",
    "embedded.duplicates": "Rows that repeat an id",
    "embedded.reason": "First bad row",
    "embedded.replaced": "Old rows replaced",
    "embedded.n_tokens": "Tokens embedded",
    "embedded.n_truncated": "Tokens cut off",
    "embedded.rows_truncated": "Rows that lost tokens",
    "embedded.n_padding": "Tokens of padding",
    "embedded.n_halvings": "Batches halved for lack of memory",
    "embedded.bytes": "Bytes written",
    "embedded.fragments": "Fragments written",
    "embedded.commits": "Commits",
    "new": "New documents",
    "changed": "Changed documents",
    "metadata_only": "Documents with new metadata only",
    "metadata_rows": "Rows that got new metadata",
    "unchanged": "Documents that were the same",
    "gone": "Documents gone from the input",
    "duplicates": "Duplicate ids in the input",
    "pruned": "Rows removed because their documents are gone",
    "backfilled": "Rows that got new outputs",
    "backfilled_tokens": "Tokens of these rows",
    "seconds": "Seconds",
    "embed_seconds": "Seconds of embedding",
    "rows_in_index": "Rows in the index",
    "tokens_per_second": "Tokens per second",
}
"""Labels of a summary's counts; others are shown by name, without underscores."""


def _table(values: Mapping[str, Any]) -> str:
    """Formats values as an HTML table; zeros and blanks are left out."""
    shown = [(_label(name), _format_value(v)) for name, v in _flatten(values) if v not in (0, None, "")]
    rows = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in shown)
    return f"<table>\n{rows}\n</table>"


def _label(name: str) -> str:
    return LABELS.get(name) or LABELS.get(f"embedded.{name}") or name.replace("_", " ").replace(".", ": ")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yields the values of a tree by dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def describe_machine() -> str:
    """Names the driver's machine: `host, 16 CPUs, Linux x86_64, Python 3.11.7`."""
    system = f"{platform.system()} {platform.machine()}"
    return f"{platform.node()}, {os.cpu_count()} CPUs, {system}, Python {platform.python_version()}"


def _format_value(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
