"""Ensures a single writer by a lease in a table beside the index: only one process can insert a given lease row.

Every taking has its own row `TABLE#EPOCH`; the highest epoch holds. Lance's merge-insert on a primary key lets one of
several racing inserts through, on any store, without a lock service. The holder raises a counter (`beat`). A contender
watches that counter by a monotonic clock of its own: no two clocks are ever compared, so a clock that is set
back changes nothing. That costs a wait of `lease_seconds` before a dead holder's lease can be taken, except on the
holder's own machine, where the process table shows at once that it has ended.

A lease alone does not stop a holder that was frozen and wakes up; `commit.commit_fence` does.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import lance
import pyarrow as pa
from lance.commit import CommitConflictError

from pipelines.config import ConfigError, WorkFailed
from pipelines.store.datasets import create_dataset, open_dataset
from pipelines.store.schema import LEASES, table_uri
from pipelines.store.table import sql_literal

_KEEP_VERSIONS = timedelta(minutes=10)
_CLEAN_EVERY = 100
"""Beats of one holder, and acquisitions, between two removals of old versions."""
_KEEP_ROWS = 100
"""Acquisitions whose rows stay. A process that was stalled for longer may insert an old epoch's row again: it is not
the highest, so `check` refuses its first commit."""
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
        pa.field("table", pa.string()),
        pa.field("epoch", pa.int64()),
        pa.field("holder", pa.string()),
        pa.field("job", pa.string()),
        pa.field("host", pa.string()),
        pa.field("pid", pa.int64()),
        pa.field("process", pa.string()),
        pa.field("beat", pa.int64()),
        pa.field("lease_seconds", pa.float64()),
        pa.field("released", pa.bool_()),
        pa.field("acquired", pa.timestamp("us", "UTC")),
    ]
)


class LeaseHeld(ConfigError):
    """Signals that another driver holds the lease; the message names its job, host, process and age."""


class LeaseLost(WorkFailed):
    """Signals that another driver took the lease over while this one was stalled; it must not commit any more."""


def process_name(pid: int) -> str | None:
    """Returns boot, pid namespace and start time, which identify a process; None if it has ended.

    Linux only. Elsewhere it is None for every process, and `Holder.is_gone` is False for all: the counter decides.
    """
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{machine_name()} {started}"
    except OSError:
        return None


def machine_name() -> str:
    """Returns boot and pid namespace of this machine; empty on other systems than Linux."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {namespace.readlink()}" if boot.exists() else ""


@dataclass(frozen=True, slots=True)
class Holder:
    """Holds one row of the lease table."""

    table: str
    epoch: int
    holder: str
    job: str
    host: str
    pid: int
    process: str
    beat: int
    lease_seconds: float
    released: bool
    acquired: datetime

    @property
    def key(self) -> str:
        return f"{self.table}#{self.epoch}"

    def is_gone(self) -> bool:
        """Returns whether the holder certainly ended: it ran on this machine, since this boot, and runs no more."""
        here = machine_name()
        return bool(here) and self.process.startswith(here) and process_name(self.pid) != self.process

    def __str__(self) -> str:
        age = max(datetime.now(timezone.utc) - self.acquired, timedelta(0))
        return f"job {self.job!r} on {self.host}, process {self.pid}, since {str(age).partition('.')[0]} (h:mm:ss)"


def _open_table(uri: str, options: Mapping[str, str]) -> lance.LanceDataset:
    return lance.dataset(table_uri(uri, LEASES), storage_options=dict(options))


def read_holder(uri: str, table: str, options: Mapping[str, str] | None = None) -> Holder | None:
    """Reads the last acquisition of the lease on `table`, released or not; None if there was none."""
    dataset = open_dataset(table_uri(uri, LEASES), options or {})
    if dataset is None:
        return None
    rows = [r for r in dataset.to_table().to_pylist() if r["table"] == table]
    last = max(rows, key=lambda r: int(r["epoch"]), default=None)
    return None if last is None else Holder(**{k: v for k, v in last.items() if k != "key"})


def _insert_row(uri: str, row: Holder, options: Mapping[str, str]) -> bool:
    values = {name: getattr(row, name) for name in _SCHEMA.names}
    data = pa.Table.from_pylist([values], schema=_SCHEMA)
    result = _open_table(uri, options).merge_insert("key").when_not_matched_insert_all().execute(data)
    return int(result["num_inserted_rows"]) == 1


def _wait_until_silent(uri: str, held: Holder, options: Mapping[str, str]) -> None:
    """Waits until the heartbeat counter is still for the holder's lease time; LeaseHeld as soon as it moves."""
    end = time.monotonic() + held.lease_seconds
    while time.monotonic() < end:
        if held.is_gone():
            return
        time.sleep(min(1.0, held.lease_seconds / 20))
        now = read_holder(uri, held.table, options)
        if now is None or now.released:
            return
        if (now.epoch, now.beat) != (held.epoch, held.beat):
            raise LeaseHeld(f"{uri}: the index is being written by {now}")


def _remove_old(uri: str, row: Holder, options: Mapping[str, str]) -> None:
    """Removes rows of old acquisitions and old versions: each acquisition is two commits and leaves a fragment."""
    table = _open_table(uri, options)
    table.delete(f"`table` = {sql_literal(row.table)} AND epoch < {row.epoch - _KEEP_ROWS}")
    table.cleanup_old_versions(_KEEP_VERSIONS)


@dataclass(slots=True)
class Lease:
    """Holds an acquired lease; a thread sends its heartbeat. Use it as a context manager, or call `release`."""

    uri: str
    row: Holder
    options: Mapping[str, str] = field(repr=False)
    took_over: bool
    """The holder before did not release it: what it may still commit has to be fenced off."""
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)
    failures: int = 0

    def start(self) -> Lease:
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def _keep(self) -> None:
        beats = 0
        while not self._stop.wait(min(5.0, self.row.lease_seconds / 6)):
            beats += 1
            try:
                self._set("beat", str(beats))
                if beats % _CLEAN_EVERY == 0:
                    _remove_old(self.uri, self.row, self.options)
            except (OSError, CommitConflictError):
                # The store did not answer, or another process wrote; the next beat tries again, and `check` refuses
                # if somebody took over.
                self.failures += 1

    def _set(self, column: str, value: str) -> None:
        _open_table(self.uri, self.options).update({column: value}, where=f"holder = '{self.row.holder}'")

    def check(self) -> None:
        """Raises LeaseLost if a later epoch exists. Call it after reading the version that a commit is based on."""
        now = read_holder(self.uri, self.row.table, self.options)
        if now is None or now.epoch != self.row.epoch:
            raise LeaseLost(f"{self.uri}: this driver (process {self.row.pid}) was taken for dead; now writing: {now}")

    def release(self) -> None:
        """Stops the heartbeat and marks the row released; harmless if the lease was lost."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._set("released", "true")

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _next_holder(table: str, job: str, lease_seconds: float, before: Holder | None) -> Holder:
    return Holder(
        table=table,
        epoch=1 if before is None else before.epoch + 1,
        holder=uuid.uuid4().hex,
        job=job,
        host=socket.gethostname(),
        pid=os.getpid(),
        process=process_name(os.getpid()) or "",
        beat=0,
        lease_seconds=lease_seconds,
        released=False,
        acquired=datetime.now(timezone.utc),
    )


def acquire(
    uri: str, table: str, job: str, *, lease_seconds: float = 60, storage_options: Mapping[str, str] | None = None
) -> Lease:
    """Acquires the lease on a table of the index at `uri`; waits at most the lease time of a possibly dead holder.

    LeaseHeld (a ConfigError) where another driver lives or was quicker.
    """
    options: dict[str, Any] = dict(storage_options or {})
    before = read_holder(uri, table, options)
    if before is None:
        create_dataset(table_uri(uri, LEASES), _SCHEMA, options)
    elif not before.released:
        _wait_until_silent(uri, before, options)
    row = _next_holder(table, job, lease_seconds, before)
    if not _insert_row(uri, row, options):
        raise LeaseHeld(f"{uri}: another driver was quicker: {read_holder(uri, table, options)}")
    if row.epoch % _CLEAN_EVERY == 0:
        with suppress(OSError, CommitConflictError):  # another process wrote; the next one does it
            _remove_old(uri, row, options)
    return Lease(uri, row, options, took_over=before is not None and not before.released).start()
