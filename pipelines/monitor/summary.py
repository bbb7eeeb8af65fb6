"""Summarises a job for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.monitor.progress import format_duration, format_size
from pipelines.store.commit import Totals
from pipelines.store.skipped import Skipped, skipped_lines


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts the results of one run. Documents are source rows; rows are chunks."""

    index: str
    embedded: Totals
    unchanged: int
    """Documents that are in the index as they are in the input."""
    duplicates: int
    pruned: int
    backfilled: int
    """Existing rows that got missing outputs (back-fill)."""
    seconds: float
    embed_seconds: float
    """Without the start of Ray, the comparison with the index and the search indexes."""
    rows_in_index: int
    backfilled_tokens: int = 0
    new: int = 0
    changed: int = 0
    metadata_only: int = 0
    """Documents with only their metadata changed: written without embedding."""
    metadata_rows: int = 0
    """Rows that got new metadata."""
    gone: int = 0
    """Documents of the index that are not in the input; they stay unless pruned."""
    report: str | None = None
    """Where the report of the run is."""
    skipped: tuple[Skipped, ...] = ()
    """Files and values that were left out."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tokens_per_second": round(self.tokens_per_second, 1)}

    @property
    def tokens_per_second(self) -> float:
        return self.embedded.n_tokens / max(1e-9, self.embed_seconds)

    def text(self) -> str:
        e = self.embedded
        lines = [
            f"index       {self.index}: {self.rows_in_index:,} rows",
            f"embedded    {e.documents:,} documents in {e.rows:,} rows, {e.n_tokens:,} tokens, "
            f"{format_size(e.bytes)} written",
            f"documents   {self.new:,} new, {self.changed:,} changed, {self.metadata_only:,} with new metadata only, "
            f"{self.unchanged:,} the same, {self.gone:,} gone from the input",
            f"truncated   {e.rows_truncated:,} rows lost {e.n_truncated:,} tokens",
            f"quarantine  {e.quarantined:,} rows ({self.duplicates:,} duplicate ids)",
            f"time        {format_duration(self.seconds)}, of it embedding {format_duration(self.embed_seconds)}: "
            f"{e.rows / max(1e-9, self.embed_seconds):,.0f} rows/s, {self.tokens_per_second / 1000:,.1f}k tokens/s, "
            f"padding {e.padding:.1%}",
        ]
        if e.n_halvings:
            lines.append(
                f"memory      ran out {e.n_halvings:,} times: batches were halved; a lower compute.budget avoids that"
            )
        if self.backfilled:
            lines.insert(
                2, f"backfilled  {self.backfilled:,} rows got new outputs, from {self.backfilled_tokens:,} tokens"
            )
        lines += skipped_lines(self.skipped)
        if self.pruned:
            lines.insert(3, f"pruned      {self.pruned:,} rows whose documents are gone")
        if self.report:
            lines.append(f"report      {self.report}")
        return "\n".join(lines)
