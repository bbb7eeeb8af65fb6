from __future__ import annotations

import io

import pytest

from pipelines.monitor.progress import Progress, format_duration, format_size
from pipelines.monitor.summary import Summary
from pipelines.store.commit import Totals


@pytest.mark.parametrize(("seconds", "text"), [(4.2, "4s"), (190, "3m10s"), (18_120, "5h02m")])
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(812, "812 B"), (4_120_000, "4.1 MB"), (1.2e12, "1.2 TB")])
def test_size(n: float, text: str) -> None:
    assert format_size(n) == text


def test_a_line_says_what_is_done_and_how_long_the_rest_takes() -> None:
    stream = io.StringIO()
    progress = Progress(100, stream=stream)
    progress.started -= 10
    progress.show(Totals(documents=50, n_tokens=20_000, rows_truncated=3, n_padding=500), now=True)
    line = "50 of 100 documents, 2.0k tokens/s, padding 2.4%, truncated 3, quarantined 0, 10s left\n"
    assert stream.getvalue() == line
    progress.show(Totals(documents=50, n_tokens=20_000, rows_truncated=3, n_padding=500), now=True)
    assert stream.getvalue() == line
    progress.show(Totals(documents=51, n_tokens=20_100, rows_truncated=3, n_padding=500), now=True)
    assert stream.getvalue().count("\n") == 2


def test_lines_are_rare_in_a_log_and_absent_when_switched_off() -> None:
    stream = io.StringIO()
    Progress(10, stream=stream).show(Totals())
    Progress(10, enabled=False, stream=stream).show(Totals(), now=True)
    assert stream.getvalue() == ""


def test_a_summary_for_people_and_for_programs() -> None:
    embedded = Totals(rows=10, documents=9, n_tokens=500, n_truncated=7, rows_truncated=1, quarantined=2, bytes=3_000)
    summary = Summary("idx", embedded, 4, 1, 0, 0, 20.0, 10.0, 14)
    assert summary.to_dict()["tokens_per_second"] == 50.0
    assert "9 documents in 10 rows, 500 tokens, 3.0 kB written" in summary.text()
    assert "2 rows (1 duplicate ids)" in summary.text()
    assert "pruned" not in summary.text()
    assert "memory" not in summary.text()


def test_a_summary_says_that_memory_ran_out() -> None:
    summary = Summary("idx", Totals(n_tokens=900, n_padding=100, n_halvings=2), 0, 0, 0, 0, 20.0, 10.0, 14)
    assert "memory      ran out 2 times: batches were halved; a lower compute.budget" in summary.text()
    assert "padding 10.0%" in summary.text()
