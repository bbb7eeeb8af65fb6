"""The lease: one driver at a time, a dead one replaced, a living one left alone, whatever the clocks say."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import lance
import pytest
from lance.commit import CommitConflictError

from pipelines.config import ConfigError
from pipelines.store import lease as lease_module
from pipelines.store.lease import Lease, LeaseHeld, LeaseLost, acquire, read_holder
from pipelines.store.schema import LEASES, table_uri

DIE_HOLDING = """
import os, sys
from pipelines.store.lease import acquire
acquire(sys.argv[1], "documents", "died", lease_seconds=600)
os.kill(os.getpid(), 9)
"""

RACE = """
import sys
from pipelines.store.lease import LeaseHeld, acquire
print("ready", flush=True)
sys.stdin.readline()
try:
    lease = acquire(sys.argv[1], "documents", "race", lease_seconds=20)
except LeaseHeld:
    print("refused", flush=True)
else:
    print("held", flush=True)
    sys.stdin.readline()
    lease.release()
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "index")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders do not beat, as if frozen or on a machine that was lost."""
    monkeypatch.setattr(Lease, "_keep", lambda self: None)


def test_a_lease_is_taken_released_and_taken_again(uri: str) -> None:
    assert read_holder(uri, "documents") is None
    with acquire(uri, "documents", "one") as first:
        first.check()
        assert (first.row.epoch, first.took_over) == (1, False)
    started = time.monotonic()
    with acquire(uri, "documents", "two", lease_seconds=60) as second:
        assert (second.row.epoch, second.took_over) == (2, False)
    assert time.monotonic() - started < 5


def test_a_second_driver_is_refused_and_told_who_holds_it(uri: str) -> None:
    with (
        acquire(uri, "documents", "nightly", lease_seconds=1.2) as first,
        pytest.raises(LeaseHeld, match=rf"written by job 'nightly' on \S+, process {first.row.pid}, since 0:00:0\d"),
    ):
        acquire(uri, "documents", "second")
    assert issubclass(LeaseHeld, ConfigError)


def test_tables_have_leases_of_their_own(uri: str) -> None:
    with acquire(uri, "documents", "a"), acquire(uri, "other", "b") as other:
        assert other.row.epoch == 1


def test_a_process_that_died_on_this_machine_is_replaced_at_once(uri: str) -> None:
    subprocess.run([sys.executable, "-c", DIE_HOLDING, uri], check=False, timeout=60)
    held = read_holder(uri, "documents")
    assert held is not None
    assert (held.job, held.is_gone(), held.released) == ("died", True, False)
    started = time.monotonic()
    with acquire(uri, "documents", "next") as lease:
        assert (lease.row.epoch, lease.took_over) == (2, True)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("silent")
def test_a_silent_holder_is_replaced_after_its_lease_time(uri: str) -> None:
    first = acquire(uri, "documents", "silent", lease_seconds=1)
    started = time.monotonic()
    with acquire(uri, "documents", "next", lease_seconds=30) as second:
        assert time.monotonic() - started >= 1
        assert second.took_over
        with pytest.raises(LeaseLost, match="was taken for dead; now writing: job 'next'"):
            first.check()
        first.release()
        second.check()


@pytest.mark.parametrize("hours", [-48, 48])
def test_a_clock_that_is_set_wrong_changes_nothing(uri: str, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    now = datetime.now(timezone.utc) + timedelta(hours=hours)
    with acquire(uri, "documents", "alive", lease_seconds=1.2):
        monkeypatch.setattr(lease_module, "datetime", SimpleNamespace(now=lambda zone: now))
        monkeypatch.setattr(time, "time", now.timestamp)
        with pytest.raises(LeaseHeld, match="written by job 'alive'"):
            acquire(uri, "documents", "second")


@pytest.mark.parametrize("before", [0, 1])
def test_of_racing_processes_one_wins(uri: str, before: int) -> None:
    """On a database without a lease table, and on one where the lease is free."""
    for _ in range(before):
        acquire(uri, "documents", "before").release()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    racers = [subprocess.Popen([sys.executable, "-c", RACE, uri], **pipes) for _ in range(4)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 4
    for racer in racers:
        racer.stdin.write("go\n")
    assert sorted(racer.stdout.readline() for racer in racers) == ["held\n"] + ["refused\n"] * 3
    for racer in racers:
        racer.communicate("end\n", timeout=60)
    rows = lance.dataset(table_uri(uri, LEASES)).to_table().to_pylist()
    assert [row["epoch"] for row in rows] == list(range(1, before + 2))


def wait_for_beat(uri: str, beat: int) -> None:
    end = time.monotonic() + 120
    while (held := read_holder(uri, "documents")) is None or held.beat < beat:
        assert time.monotonic() < end, held
        time.sleep(0.05)


def test_beats_do_not_pile_up_rows(uri: str) -> None:
    with acquire(uri, "documents", "alive", lease_seconds=0.3):
        wait_for_beat(uri, 5)
    assert lance.dataset(table_uri(uri, LEASES)).count_rows() == 1


def test_acquisitions_do_not_pile_up(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a row of an epoch that was removed is no lease."""
    monkeypatch.setattr(lease_module, "_CLEAN_EVERY", 5)
    monkeypatch.setattr(lease_module, "_KEEP_ROWS", 2)
    monkeypatch.setattr(lease_module, "_KEEP_VERSIONS", timedelta(0))
    first = acquire(uri, "documents", "first")
    first.release()
    for _ in range(14):
        acquire(uri, "documents", "again").release()
    dataset = lance.dataset(table_uri(uri, LEASES))
    assert sorted(dataset.to_table()["epoch"].to_pylist()) == [13, 14, 15]
    assert len(dataset.versions()) <= 3
    assert lease_module._insert_row(uri, first.row, {})
    with pytest.raises(LeaseLost):
        first.check()
    with acquire(uri, "documents", "next") as held:
        held.check()
        assert held.row.epoch == 16


def test_a_store_that_is_away_for_a_while_does_not_end_the_beat(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [OSError("timed out"), CommitConflictError("preempted")]
    real = Lease._set

    def shaky(self: Lease, column: str, value: str) -> None:
        if faults:
            raise faults.pop()
        real(self, column, value)

    with acquire(uri, "documents", "alive", lease_seconds=0.3) as lease:
        monkeypatch.setattr(Lease, "_set", shaky)
        wait_for_beat(uri, 3)
        assert lease.failures == 2
