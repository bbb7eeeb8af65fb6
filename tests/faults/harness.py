"""A Ray cluster of processes that can be killed, jobs on it, and the question that each of them must answer with yes:

is every document in the table once, with the vectors of an undisturbed run, and does nothing lie about that no version
refers to?
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines.store.lease import LeaseHeld
from pipelines.store.maintain import optimize, orphans

DRIVER = Path(__file__).with_name("driver.py")
WORDS = [a + b + c for a in "bdgklmnprst" for b in "aeiou" for c in ("", "n", "rt", "ll")]
WRITER, ACTOR = "MapBatches(write", "MapWorker(MapBatches(Embed"
PATIENCE = 900
"""Seconds that a job may take on a machine that does other work as well."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Cluster:
    """A Ray head started as a process, which drivers attach to and outlive or not."""

    head: subprocess.Popen[bytes]
    address: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"}

    def workers(self, title: str) -> list[psutil.Process]:
        """Worker processes of this cluster that run something with this in its name."""
        found = []
        for process in psutil.Process(self.head.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    port = free_port()
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=3", "--include-dashboard=false"]
    command += ["--object-store-memory=300000000", "--disable-usage-stats", f"--temp-dir={folder}"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    program = str(Path(sys.executable).with_name("ray"))
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen([program, *command[1:]], env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "head.log").read_text(), 180, "the Ray head")
        yield Cluster(head, f"127.0.0.1:{port}")
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            with_luck(process.terminate)
        _, alive = psutil.wait_procs(family, timeout=15)
        for process in alive:
            with_luck(process.kill)
        head.wait(10)


def with_luck(act: Any) -> None:
    """Signals a process that may be gone by now."""
    try:
        act()
    except (psutil.NoSuchProcess, ProcessLookupError):
        return


def wait_for(condition: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds} seconds")
        time.sleep(0.1)


def write_shards(folder: Path, documents: int = 600, shards: int = 4) -> None:
    """Parquet shards; in each, one empty text and, from the second on, one id of the first shard."""
    rng = random.Random(1)
    folder.mkdir(parents=True)
    for s in range(shards):
        rows = [
            {"id": f"s{s}d{i}", "text": " ".join(rng.choices(WORDS, k=rng.randint(4, 30)))}
            for i in range(documents // shards)
        ]
        rows[3]["text"] = " "
        if s:
            rows[5]["id"] = "s0d1"
        pq.write_table(pa.Table.from_pylist(rows), folder / f"shard-{s}.parquet", row_group_size=50)


@dataclass
class Job:
    """A build of one folder's shards into one index, run by as many drivers as it takes."""

    folder: Path
    cluster: Cluster
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def index(self) -> str:
        return str(self.settings.get("index", {}).get("uri", self.folder / "index"))

    @property
    def documents(self) -> lance.LanceDataset:
        return lance.dataset(f"{self.index}/documents.lance")

    def configure(self, shards: Path, model: Path) -> Job:
        index = {"uri": self.index, "commit_fragments": 2, "fragment_bytes": 65536, "full_text": False}
        tree = {
            "input": {"paths": [str(shards / "*.parquet")]},
            "index": index | self.settings.get("index", {}),
            "job": {"lease_seconds": 3, "quarantine_limit": 0.5} | self.settings.get("job", {}),
            "embedders": [
                {
                    "name": "m",
                    "model": str(model),
                    "pool": {"max_size": 1},
                    "compute": {"dtype": "fp32", "threads": 1},
                }
            ],
            "ray": {"progress": False},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "job.yaml").write_text(yaml.safe_dump(tree))
        return self

    def start(self, **faults: Any) -> subprocess.Popen[str]:
        """A driver; its output goes to files in the folder, its exit status is what it comes to."""
        command = [sys.executable, str(DRIVER), str(self.folder / "job.yaml"), json.dumps(faults)]
        with (self.folder / "out").open("w") as out, (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, env=self.cluster.environment, stdout=out, stderr=log, text=True)

    def finish(self, **faults: Any) -> dict[str, Any]:
        """Runs a driver to its end, which must be a good one; returns its summary."""
        status = self.start(**faults).wait(PATIENCE)
        assert status == 0, f"driver ended with {status}:\n{(self.folder / 'log').read_text()[-3000:]}"
        summary: dict[str, Any] = json.loads((self.folder / "out").read_text().splitlines()[-1])
        return summary

    def committed(self) -> int:
        """Rows in the table now; 0 before there is one."""
        return int(self.documents.count_rows()) if Path(self.index, "documents.lance/_versions").exists() else 0


@dataclass(frozen=True)
class Content:
    """What a table holds: vectors by chunk id, how often each is there, and what went to quarantine."""

    vectors: dict[str, np.ndarray[Any, Any]]
    counts: Counter[str]
    failed: frozenset[tuple[str, int]]


def content_of(job: Job) -> Content:
    table = job.documents.to_table(columns=["chunk_id", "m_dense"])
    ids = table.column("chunk_id").to_pylist()
    vectors = table.column("m_dense").combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    bad = lance.dataset(f"{job.index}/quarantine.lance").to_table(columns=["source", "position"]).to_pylist()
    failed = frozenset((Path(row["source"]).name, row["position"]) for row in bad)
    return Content(dict(zip(ids, vectors, strict=True)), Counter(ids), failed)


@dataclass(frozen=True)
class Outcome:
    """What a fault did. All zero is what the job promises."""

    lost: int
    doubled: int
    foreign: int
    wrong_vectors: int
    quarantine_differs: int
    unreferenced: int

    @property
    def ok(self) -> bool:
        return self == Outcome(0, 0, 0, 0, 0, 0)


def compare(job: Job, reference: Content, tolerance: float = 1e-6) -> Outcome:
    """Optimizes the index and compares it with that of an undisturbed run."""
    wait_for(lambda: try_optimize(job.index), 60, "the lease")
    got = content_of(job)
    common = got.vectors.keys() & reference.vectors.keys()
    return Outcome(
        lost=len(reference.vectors.keys() - got.vectors.keys()),
        doubled=sum(n - 1 for n in got.counts.values()),
        foreign=len(got.vectors.keys() - reference.vectors.keys()),
        wrong_vectors=sum(bool(np.abs(got.vectors[i] - reference.vectors[i]).max() > tolerance) for i in common),
        quarantine_differs=len(got.failed ^ reference.failed),
        unreferenced=len(orphans(job.documents)),
    )


def try_optimize(uri: str) -> bool:
    try:
        optimize(uri, keep_versions=timedelta(0), orphan_age=timedelta(0))
    except LeaseHeld:
        return False
    return True


def torment(job: Job, seed: int, kills: int = 4) -> Counter[str]:
    """Runs the job to its end and kills a random one of its processes at a random moment, `kills` times over.

    A driver that was killed is started again. Returns what was killed, and how often.
    """
    rng = random.Random(seed)
    killed: Counter[str] = Counter()
    driver = job.start(slow=0.1, write_deaths=rng.randint(0, 2))
    end = time.monotonic() + 4 * PATIENCE
    while (status := driver.poll()) != 0:
        if time.monotonic() > end:
            raise TimeoutError(f"seed {seed}: not done after {kills} kills: {killed}")
        if status is not None:
            driver = job.start(slow=0.1)
        time.sleep(rng.uniform(0.2, 6))
        if sum(killed.values()) < kills:
            killed[kill_one(job.cluster, driver, rng)] += 1
    return killed


def kill_one(cluster: Cluster, driver: subprocess.Popen[str], rng: random.Random) -> str:
    """SIGKILL to the driver, an embedding actor or a writing task; says which, or `nothing` where it was not there."""
    victim = rng.choice(["driver", "actor", "writer"])
    if victim == "driver":
        if driver.poll() is not None:
            return "nothing"
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        return victim
    found = cluster.workers(ACTOR if victim == "actor" else WRITER)
    if not found:
        return "nothing"
    with_luck(rng.choice(found).kill)
    return victim
