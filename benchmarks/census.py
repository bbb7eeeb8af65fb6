"""Measures time and memory of change detection at many synthetic ids: `python benchmarks/census.py --rows 10000000`.

Units make ids and content hashes out of numbers, so what is measured is hashing, splitting, moving between tasks,
sorting and joining, not reading. Half of the documents are in the table already, one in a hundred of those has changed,
and one input row in a thousand repeats an id. Peak memory is the most that one process ever held of its own (its
resident set without the pages that it shares with the object store).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lance
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.changes.detect import count_partitions, detect_changes
from pipelines.changes.tasks import InProcess, OnRay

UNIT_ROWS = 200_000
BATCH_ROWS = 20_000


@dataclass(frozen=True)
class Numbers:
    """A unit of documents `first` to before `first + rows`."""

    first: int
    rows: int
    size: int


def ids(numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise("document-", pa.array(numbers).cast(pa.string()), "")


def content(numbers: np.ndarray, version: int = 0) -> pa.Array:
    """16 bytes a number; another version gives others."""
    words = np.stack([numbers.astype(np.uint64), np.full(len(numbers), version, np.uint64)], axis=1)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(numbers), [None, pa.py_buffer(words.copy())])


def read(unit: Numbers) -> Iterator[pa.Table]:
    for first in range(unit.first, unit.first + unit.rows, BATCH_ROWS):
        numbers = np.arange(first, min(first + BATCH_ROWS, unit.first + unit.rows))
        n = len(numbers)
        repeated = np.where(numbers % 1000 == 999, numbers - 999, numbers)
        yield pa.table(
            {
                "doc_id": ids(repeated),
                "source": pa.repeat(pa.scalar("numbers"), n),
                "position": pa.array(numbers),
                "content_hash": content(numbers),
                "metadata_hash": content(numbers, 7),
                "error": pa.nulls(n, pa.string()),
            }
        )


def write_table(path: str, rows: int) -> None:
    """The even documents; every hundredth of them with other content."""

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, UNIT_ROWS):
            numbers = np.arange(first, min(first + UNIT_ROWS, rows), 2)
            changed = np.where(numbers % 200 == 0, numbers + rows, numbers)
            counts = pa.repeat(pa.scalar(1, pa.int32()), len(numbers))
            columns = [ids(numbers), content(changed), content(numbers, 7), counts]
            yield pa.RecordBatch.from_arrays(columns, ["doc_id", "content_hash", "metadata_hash", "chunk_count"])

    first = next(batches())
    lance.write_dataset(pa.RecordBatchReader.from_batches(first.schema, batches()), path, max_rows_per_file=UNIT_ROWS)


class Peaks(threading.Thread):
    """Samples the memory of this process and of all below it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver, self.worker, self.done = 0, 0, threading.Event()

    def run(self) -> None:
        me = psutil.Process(os.getpid())
        while not self.done.wait(0.2):
            self.driver = max(self.driver, _own(me))
            self.worker = max([self.worker, *(_own(p) for p in me.children(recursive=True))])


def _own(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
        return (
            int(memory.rss - memory.shared)
            if "ray::" in "".join(process.cmdline()) or process.pid == os.getpid()
            else 0
        )
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--here", action="store_true", help="in this process, without Ray")
    arguments = parser.parse_args()
    rows = arguments.rows
    units = [Numbers(i, min(UNIT_ROWS, rows - i), 200 * UNIT_ROWS) for i in range(0, rows, UNIT_ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        table = str(Path(folder, "t.lance"))
        write_table(table, rows)
        if not arguments.here:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        peaks = Peaks()
        peaks.start()
        results = {}
        for name, open_table in (("empty", None), ("half", partial(lance.dataset, table))):
            before, started = peaks.driver, time.monotonic()
            changes = detect_changes(units, read, open_table, run=InProcess() if arguments.here else OnRay())
            results[name] = {
                "seconds": round(time.monotonic() - started, 1),
                "new": changes.new,
                "changed": changes.changed,
                "same": changes.same,
                "duplicates": changes.duplicates,
                "driver_mb_before": round(before / 2**20),
            }
        peaks.done.set()
    megabytes = {"driver_mb": round(peaks.driver / 2**20), "worker_mb": round(peaks.worker / 2**20)}
    sys.stdout.write(
        json.dumps({"rows": rows, "partitions": count_partitions(units, 0), **results, **megabytes}) + "\n"
    )


if __name__ == "__main__":
    main()
