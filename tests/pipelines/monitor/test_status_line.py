"""The line that says what a job is doing: live on a terminal, plain in a log."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from pipelines.config import load_config
from pipelines.monitor import status_line
from pipelines.monitor.runlog import RunLog
from pipelines.monitor.status_line import CLEAR, StatusLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_for_each_phase() -> None:
    stream = io.StringIO()
    line = StatusLine(stream=stream)
    line.show("starting Ray")
    line.show("embedding")
    line.close()
    assert stream.getvalue() == "starting Ray ...\nembedding ...\n"


def test_a_terminal_shows_one_line_and_takes_it_away() -> None:
    stream = Terminal()
    line = StatusLine(stream=stream)
    line.show("starting Ray")
    line.show("embedding")
    line.clear()
    line.clear()
    line.close()
    assert stream.getvalue() == f"{CLEAR}starting Ray ...{CLEAR}embedding ...{CLEAR}"


def test_a_long_phase_counts_its_seconds_and_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    line = StatusLine(stream=Terminal(), waits_for=lambda: "waiting for CPUs: other jobs have all 3")
    now = time.monotonic()
    monkeypatch.setattr(status_line.time, "monotonic", lambda: now)
    line.show("embedding")
    assert line.text() == "embedding ..."
    monkeypatch.setattr(status_line.time, "monotonic", lambda: now + 65)
    assert line.text() == "embedding ... 1m05s (waiting for CPUs: other jobs have all 3)"
    line.close()


def test_switched_off_it_says_nothing() -> None:
    stream = Terminal()
    StatusLine(enabled=False, stream=stream).show("embedding")
    assert stream.getvalue() == ""


def test_a_phase_within_a_phase_counts_once(tmp_path: Path) -> None:
    log = RunLog(load_config(None, ["ray.progress=false"], input={"paths": ["a"]}, index={"uri": str(tmp_path)}))
    with log.phase("embedding"), log.phase("starting Ray"):
        time.sleep(0.05)
    assert log.phases["starting Ray"] >= 0.05
    assert 0 <= log.phases["embedding"] < 0.04
