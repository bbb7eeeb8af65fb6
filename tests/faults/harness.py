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
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from pipelines.store.maintain import find_orphans, optimize

DRIVER = Path(__file__).with_name("driver.py")
WORDS = [a + b + c for a in "bdgklmnprst" for b in "aeiou" for c in ("", "n", "rt", "ll")]
WRITER, ACTOR = "MapBatches(write", "MapWorker(MapBatches(Embed"
VOCABULARY = 1000
"""The tiny checkpoint has fewer tokens."""
PATIENCE = 900
"""Seconds that a job may take on a machine that does other work as well."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Cluster:
    """A Ray head and a second node, started as processes, which drivers attach to and outlive or not.

    The head always has room for a whole job, so that a job goes on while the second node is gone.
    """

    folder: Path
    address: str
    head: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"}

    def workers(self, title: str) -> list[psutil.Process]:
        """Worker processes of either node that run something with this in its name."""
        return [process for process in self.family() if title in " ".join(_title(process))]

    def family(self) -> list[psutil.Process]:
        """Everything that was started here and still runs, below the two `ray start`."""
        found = []
        for root in filter(None, (self.head, self.second)):
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(root.pid).children(recursive=True)
        return found

    def add_node(self) -> None:
        self.second = ray_start(self.folder / "second.log", f"--address={self.address}", "--num-cpus=3")

    def replace_node(self) -> bool:
        """SIGKILL to the second node's raylet, which takes its workers and its part of the object store along.

        Another node takes its place. False where there was no raylet yet.
        """
        with self.lock:
            assert self.second is not None
            below = psutil.Process(self.second.pid).children(recursive=True)
            raylets = [p for p in below if p.is_running() and "raylet/raylet" in "".join(_title(p)[:1])]
            for raylet in raylets:
                raylet.kill()
            if raylets:
                end(self.second)
                self.add_node()
            return bool(raylets)


def _title(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def ray_start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    program = str(Path(sys.executable).with_name("ray"))
    common = ["--block", "--object-store-memory=150000000", "--disable-usage-stats"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    with log.open("ab") as out:
        return subprocess.Popen([program, "start", *common, *arguments], env=environment, stdout=out, stderr=out)


def end(root: subprocess.Popen[bytes] | None) -> None:
    """Ends a `ray start` and all below it."""
    if root is None:
        return
    family = [*psutil.Process(root.pid).children(recursive=True), psutil.Process(root.pid)]
    for process in family:
        with_luck(process.terminate)
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        with_luck(process.kill)
    root.wait(10)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    port, log = free_port(), folder / "head.log"
    head = ray_start(
        log, "--head", "--num-cpus=5", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"
    )
    running = Cluster(folder, f"127.0.0.1:{port}", head)
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), 180, "the Ray head")
        running.add_node()
        yield running
    finally:
        end(running.second)
        end(running.head)


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


CHUNK_TOKENS = 24
"""About every second document is cut, so that some lie across blocks and fragments."""


def write_shards(folder: Path, documents: int = 600, shards: int = 4, tag: str = "old") -> None:
    """Parquet shards; in each, one empty text and, from the second on, one id of the first shard.

    The column `tag` holds `tag` and the number of the row; texts do not depend on it.
    """
    rng = random.Random(1)
    folder.mkdir(parents=True)
    for s in range(shards):
        rows = [
            {"id": f"s{s}d{i}", "text": " ".join(rng.choices(WORDS, k=rng.randint(4, 30))), "tag": f"{tag} {s} {i}"}
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
            "input": {"paths": [str(shards / "*.parquet")]} | self.settings.get("input", {}),
            "chunk": {"size": CHUNK_TOKENS},
            "index": index | self.settings.get("index", {}),
            "job": {"lease_seconds": 3, "quarantine_limit": 0.5} | self.settings.get("job", {}),
            "embedders": [
                {
                    "name": "m",
                    "model": str(model),
                    "pool": {"max_size": 1},
                    "compute": {"dtype": "fp32", "threads": 1},
                }
                | self.settings.get("embedder", {})
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
        assert status == 0, f"driver ended with {status}:\n{self.tail()}"
        summary: dict[str, Any] = json.loads((self.folder / "out").read_text().splitlines()[-1])
        return summary

    def files(self) -> int:
        """Data files that were written, committed or not."""
        return len(list(Path(self.index, "documents.lance/data").glob("*.lance")))

    def began(self) -> bool:
        """Whether a driver has come so far that it holds the lease."""
        return Path(self.index, "leases.lance").exists()

    def tail(self) -> str:
        """The end of what its drivers said."""
        return (self.folder / "log").read_text()[-3000:]

    def committed(self) -> int:
        """Documents in the table now, all of them with all their chunks; 0 before there is one."""
        if not Path(self.index, "documents.lance/_versions").exists():
            return 0
        rows = self.documents.to_table(columns=["doc_id", "chunk_count"]).to_pylist()
        counts = Counter(row["doc_id"] for row in rows)
        assert all(row["chunk_count"] == counts[row["doc_id"]] for row in rows), "a part of a document was committed"
        return len(counts)


@dataclass(frozen=True)
class Content:
    """What a table holds: vectors by chunk id (dense, then a place for each token of the sparse output), how often each
    is there, and what went to quarantine."""

    vectors: dict[str, np.ndarray[Any, Any]]
    counts: Counter[str]
    failed: frozenset[tuple[str, int]]


def content_of(job: Job) -> Content:
    table = job.documents.to_table(columns=["chunk_id", "m_dense", "m_sparse"])
    ids = table.column("chunk_id").to_pylist()
    dense = table.column("m_dense").combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    sparse = np.zeros((len(ids), VOCABULARY), np.float32)
    for i, row in enumerate(table.column("m_sparse").to_pylist()):
        sparse[i, row["indices"]] = row["values"]
    vectors = np.hstack([dense, sparse])
    bad = lance.dataset(f"{job.index}/quarantine.lance").to_table(columns=["source", "position"]).to_pylist()
    failed = frozenset((Path(row["source"]).name, row["position"]) for row in bad)
    return Content(dict(zip(ids, vectors, strict=True)), Counter(ids), failed)


@dataclass(frozen=True)
class CommitState:
    """What a fault did. All zero is what the job promises."""

    lost: int
    doubled: int
    foreign: int
    wrong_vectors: int
    quarantine_differs: int
    unreferenced: int

    @property
    def ok(self) -> bool:
        return self == CommitState(0, 0, 0, 0, 0, 0)


def compare(job: Job, reference: Content, tolerance: float = 1e-6) -> CommitState:
    """Optimizes the index and compares it with that of an undisturbed run."""
    wait_for(lambda: try_optimize(job.index), 60, "the lease")
    got = content_of(job)
    common = got.vectors.keys() & reference.vectors.keys()
    return CommitState(
        lost=len(reference.vectors.keys() - got.vectors.keys()),
        doubled=sum(n - 1 for n in got.counts.values()),
        foreign=len(got.vectors.keys() - reference.vectors.keys()),
        wrong_vectors=sum(bool(np.abs(got.vectors[i] - reference.vectors[i]).max() > tolerance) for i in common),
        quarantine_differs=len(got.failed ^ reference.failed),
        unreferenced=len(find_orphans(job.documents)),
    )


def try_optimize(uri: str) -> bool:
    try:
        optimize(uri, keep_versions=timedelta(0), orphan_age=timedelta(0))
    except LeaseHeld:
        return False
    return True


def torment(job: Job, seed: int, kills: int = 5) -> Counter[str]:
    """Runs the job to its end and kills a random one of its processes at a random moment, `kills` times over.

    Most moments are after the first file was written, when there is something to lose. In half of the runs the first
    driver dies around a commit, in two thirds write tasks die between writing and answering. A driver that is gone is
    started again, a node that is gone joins again. Returns what died, how often.
    """
    rng = random.Random(seed)
    killed: Counter[str] = Counter()
    faults: dict[str, Any] = {"slow": 0.15, "write_deaths": rng.randint(0, 2)}
    around = f"{rng.choice(['before', 'after'])}:{rng.randint(1, 3)}" if rng.random() < 0.5 else None
    deadline = time.monotonic() + PATIENCE
    driver, files = job.start(**faults, **({"die": around} if around else {})), 0
    while (status := driver.poll()) != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"seed {seed}: not done after {killed}:\n{job.tail()}")
        if status is not None:
            killed["driver around a commit"] += status == -signal.SIGKILL
            killed["driver that gave up"] += status != -signal.SIGKILL
            driver, files = job.start(**faults), job.files()
        time.sleep(rng.uniform(0.05, 1.5))
        early = rng.random() < 0.03
        if killed.total() < kills and (early or job.files() > files) and (victim := kill_one(job, driver, rng)):
            killed[victim] += 1
            if victim in (KILLED, SIGNALLED):
                driver, files = job.start(**faults), job.files()
    killed["write task, before its answer"] = len(list(job.folder.glob("death-*")))
    return +killed


KILLED, SIGNALLED = "driver", "driver, by SIGINT or SIGTERM"
VICTIMS = {KILLED: 2, SIGNALLED: 2, "actor": 3, "write task": 4, "node": 1}
"""Odds. A driver that is signalled commits on its way out; one that is killed does not."""


def kill_one(job: Job, driver: subprocess.Popen[str], rng: random.Random) -> str | None:
    """SIGKILL or a signal to the driver, SIGKILL to an embedding actor, a writing task or the second node; says which,
    if it was there."""
    (victim,) = rng.choices([*VICTIMS], [*VICTIMS.values()])
    if victim == "node":
        return victim if job.cluster.replace_node() else None
    if victim in (KILLED, SIGNALLED):
        if driver.poll() is not None:
            return None
        os.kill(driver.pid, signal.SIGKILL if victim == KILLED else rng.choice([signal.SIGINT, signal.SIGTERM]))
        driver.wait(PATIENCE)
        return victim
    title, end = ACTOR if victim == "actor" else WRITER, time.monotonic() + 2
    while not (found := job.cluster.workers(title)) and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    if not found:
        return None
    with_luck(rng.choice(found).kill)
    return victim
