"""When a job has had enough of bad rows."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.changes.detect import Changes
from pipelines.config import load_config
from pipelines.indexing.driver import JobFailed, check_quarantine, commit_records
from pipelines.store.commit import Totals

CONFIG = load_config(input={"paths": ["a"]}, index={"uri": "b"}, job={"quarantine_limit": 0.1})


def changes(new: int = 0, same: int = 0, bad: int = 0) -> Changes:
    return Changes([], new, 0, 0, same, 0, 0, bad, np.zeros(0, np.uint64), ())


def test_a_job_stops_where_too_many_rows_fail() -> None:
    with pytest.raises(JobFailed, match="30 of the first 100 rows went to quarantine"):
        check_quarantine(Totals(rows=70, quarantined=30), CONFIG, changes(new=70, bad=30))


def test_a_few_rows_at_the_beginning_do_not_stop_it() -> None:
    check_quarantine(Totals(rows=1, quarantined=4), CONFIG, changes(new=5000, bad=4))


def test_a_second_run_with_nothing_but_bad_rows_to_do_goes_on() -> None:
    check_quarantine(Totals(quarantined=4), CONFIG, changes(same=96, bad=4))
    with pytest.raises(JobFailed, match="40 of the first 100 rows"):
        check_quarantine(Totals(quarantined=40), CONFIG, changes(same=60, bad=40))


def test_a_job_that_stops_commits_what_it_has_and_closes_what_it_reads() -> None:
    """Ray Data prints a traceback where its iterator outlives Ray."""
    seen: list[str] = []

    def finished() -> Generator[dict[str, Any]]:
        try:
            yield {"kind": "quarantine"}
            seen.append("a second record was asked for")
        finally:
            seen.append("closed")

    log = SimpleNamespace(config=CONFIG, seen=Totals(rows=1, quarantined=9), note=lambda *_: None)
    log.commit = lambda _: seen.append("committed")
    committer = SimpleNamespace(add=lambda _: None, commit_due=lambda: False, incomplete=[])
    with pytest.raises(JobFailed, match="9 of the first 10 rows"):
        commit_records(finished(), committer, changes(new=1, bad=9), log)  # type: ignore[arg-type]
    assert seen == ["committed", "closed"]
