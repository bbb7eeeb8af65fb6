"""A report is one JSON document and one self-contained page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config import validate
from pipelines.monitor import charts, report
from pipelines.monitor.lengths import bin_labels, histogram
from pipelines.monitor.report import Facts, Point, Timeline, to_html, write_report

STARTED = datetime(2026, 11, 22, 4, 15, tzinfo=timezone.utc)


def _facts(**rest: Any) -> Facts:
    values: dict[str, Any] = {
        "job": "night/<b>run</b>",
        "state": "done",
        "started": STARTED,
        "summary": {"index": "idx", "embedded": {"rows": 12345, "n_tokens": 1}, "seconds": 61.25},
        "config": {"index": {"uri": "idx"}},
        "phases": {"census": 10.0, "embedding": 50.0},
        "timeline": [Point(0.0, 0, 0, 0), Point(10.0, 5, 1000, 0), Point(20.0, 10, 3000, 1)],
        "lengths": {"0-15": 0, "16-31": 4, "32-63": 8},
    }
    return Facts(**(values | rest))


def test_both_files_are_written_beside_the_index(tmp_path: Path) -> None:
    address = write_report(str(tmp_path / "idx"), _facts())
    assert address == f"{tmp_path}/idx/reports/20261122T041500Z-night__b_run__b_.html"
    page = Path(address)
    data = json.loads(page.with_suffix(".json").read_text())
    assert data["summary"]["embedded"]["rows"] == 12345
    assert data["timeline"][1] == {"seconds": 10.0, "rows": 5, "tokens": 1000, "quarantined": 0}
    assert data["started"] == "2026-11-22T04:15:00+00:00"


def test_the_page_is_self_contained_and_escaped() -> None:
    page = to_html(_facts(state="failed", error="<script>alert(1)</script>"))
    assert "<script" not in page
    assert "http" not in page
    assert "night/&lt;b&gt;run&lt;/b&gt;: failed" in page
    assert "12,345" in page
    assert page.count("<svg") == 3
    HTMLParser().feed(page)


def test_a_report_of_nothing() -> None:
    page = to_html(_facts(phases={}, timeline=[], lengths={}))
    assert "<svg" not in page


def test_throughput_is_the_slope_between_points() -> None:
    assert report._rates(_facts().timeline) == ([10.0, 20.0], [100.0, 200.0])


@pytest.mark.parametrize(
    "chart",
    [
        charts.line_chart([1.0, 2.0], [0.0, 5.0], "a & b", "s"),
        charts.bar_chart({"<1": 0, "1": 5, "2": 0, "3": 1}, "bars"),
        charts.share_chart({"a": 1.0, "b<": 3.0}, "shares", "s"),
    ],
)
def test_charts_are_well_formed(chart: str) -> None:
    root = ET.fromstring(chart)
    assert root.tag == "svg"
    numbers = [float(e.get(k, "0")) for e in root.iter("rect") for k in ("x", "y", "width", "height")]
    assert all(0 <= n <= charts.WIDTH for n in numbers)


def test_the_line_reaches_its_largest_value_at_the_top() -> None:
    root = ET.fromstring(charts.line_chart([1.0, 2.0, 4.0], [0.0, 10.0, 5.0], "l", "s"))
    points = [tuple(map(float, p.split(","))) for p in root.find("polyline").get("points").split()]  # type: ignore[union-attr]
    assert [y for _, y in points] == [176.0, 12.0, 94.0]
    assert points[-1][0] == charts.WIDTH - 8


def test_a_timeline_stays_small_and_keeps_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(5000))
    monkeypatch.setattr(report.time, "monotonic", lambda: float(next(now)))
    timeline = Timeline(started=0.0)
    for i in range(4000):
        timeline.note(i, i * 100, 0)
    assert len(timeline.points) <= report.MAX_POINTS
    assert timeline.points[0].seconds < 2
    assert timeline.points[-1].seconds > 3900


def test_lengths_are_counted_in_bins() -> None:
    found = histogram([pa.array([0, 15, 16, None]), pa.array([8192, 100000])])
    assert {k: n for k, n in found.items() if n} == {"0-15": 2, "16-31": 1, "8192+": 2}
    assert list(found) == bin_labels()


def test_secrets_of_the_configuration_do_not_reach_the_report(tmp_path: Path) -> None:
    options = {"aws_secret_access_key": "hunter2hunter2"}
    tree = {"input": {"paths": ["a"], "storage_options": options}, "index": {"uri": "i", "storage_options": options}}
    config = validate(tree)
    facts = _facts(config=config.model_dump(mode="json"))
    page = Path(write_report(str(tmp_path), facts, config.index.storage_options))
    assert "hunter2" not in page.read_text() + page.with_suffix(".json").read_text()


def test_a_report_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "idx").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"idx/reports/20261122T041500Z-night"):
        write_report(str(tmp_path / "idx"), _facts())
