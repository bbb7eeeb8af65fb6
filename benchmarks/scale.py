"""Does a job cost as much for the millionth passage as for the first? `python benchmarks/scale.py`

Builds indexes of growing size with a tiny random model, so that what is measured is the job around the model: reading,
change detection, tokenising, moving blocks, writing, committing. Prints two tables: time by size (and by number of
actors), and the most
memory that any process of a kind ever held of its own (resident without shared pages), by size. Each build has a Ray of
its own in a process of its own.

A worker process of Ray runs one kind of task after another; its memory counts for the kind that it runs when it is
looked at, every 0.2 seconds. The object store is what of it was ever touched.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

TESTS = Path(__file__).resolve().parent.parent / "tests"
WORDS = [a + b + c for a in "bdgklmnprst" for b in "aeiou" for c in ("", "n", "rt", "ll", "st", "mp")]
SHARD_ROWS = 5000
FRAGMENT_BYTES = 1_500_000
KINDS = (
    ("change detection", re.compile(r"ray::changes\.")),
    ("embedding actor", re.compile(r"Embed_")),
    ("write task", re.compile(r"write_block")),
    ("read, chunk, tokenise", re.compile(r"select_documents|chunk|tokenise")),
    ("raylet", re.compile(r"raylet/raylet")),
    ("gcs server", re.compile(r"gcs/gcs_server")),
)
ORDER = ("driver", *(kind for kind, _ in KINDS), "object store")


class Peaks(threading.Thread):
    """The most that a process of each kind held, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most: dict[str, int] = {}
        self.done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.2):
            self._note("driver", me)
            for process in me.children(recursive=True):
                self._look(process)

    def _look(self, process: psutil.Process) -> None:
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            return
        kind = next((kind for kind, pattern in KINDS if pattern.search(title)), None)
        if kind is not None:
            self._note(kind, process)

    def _note(self, kind: str, process: psutil.Process) -> None:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            return
        self.most[kind] = max(self.most.get(kind, 0), memory.rss - memory.shared)
        if kind == "raylet":
            self.most["object store"] = max(self.most.get("object store", 0), memory.shared)


def write_shards(folder: Path, passages: int) -> None:
    rng = random.Random(1)
    folder.mkdir()
    for first in range(0, passages, SHARD_ROWS):
        rows = range(first, min(first + SHARD_ROWS, passages))
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(10, 30))) for _ in rows]
        table = pa.table({"id": [f"p{i}" for i in rows], "text": texts})
        pq.write_table(table, folder / f"{first:09d}.parquet")


def one(folder: Path, passages: int, actors: int) -> dict[str, Any]:
    """Builds one index in this process and says what that took."""
    from pipelines.config import load_config
    from pipelines.indexing.build import build_index

    peaks = Peaks()
    peaks.start()
    embedder = {"name": "m", "model": str(folder / "model"), "outputs": ["dense", "sparse"]}
    settings = {"pool": {"max_size": actors}, "compute": {"dtype": "fp32", "threads": 1}}
    config = load_config(
        None,
        ["ray.progress=false", f"index.fragment_bytes={FRAGMENT_BYTES}", "ray.num_cpus=4"],
        input={"paths": [str(folder / f"corpus-{passages}" / "*.parquet")]},
        index={"uri": str(folder / f"index-{passages}-{actors}")},
        embedders=[embedder | settings],
    )
    summary = build_index(config)
    peaks.done.set()
    (report,) = Path(config.index.uri, "reports").glob("*.json")
    told = json.loads(report.read_text())
    return {
        "passages": passages,
        "actors": actors,
        "rows": summary.rows_in_index,
        "seconds": summary.seconds,
        "phases": told["phases"],
        "rate": rate(told["timeline"]),
        "memory": peaks.most,
    }


def rate(timeline: Sequence[dict[str, float]]) -> float | None:
    """Passages a second between the first and the last fragment that was written; None for a handful of them."""
    first, last = timeline[0], timeline[-1]
    return None if len(timeline) < 3 else (last["rows"] - first["rows"]) / (last["seconds"] - first["seconds"])


def in_a_process(folder: Path, passages: int, actors: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(folder), str(passages), str(actors)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["rows"] == passages, result
    return result


def times(runs: Sequence[dict[str, Any]]) -> str:
    head = [
        "passages",
        "actors",
        "whole job, s",
        "reading the models' settings",
        "comparing the input with the index",
        "embedding",
        "updating search indexes",
        "passages/s",
        "ms each",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for run in runs:
        phases = [f"{run['phases'].get(name, 0.0):.1f}" for name in head[3:7]]
        steady = ["", ""] if run["rate"] is None else [f"{run['rate']:,.0f}", f"{1000 / run['rate']:.3f}"]
        cells = [f"{run['passages']:,}", str(run["actors"]), f"{run['seconds']:.1f}", *phases, *steady]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory(runs: Sequence[dict[str, Any]]) -> str:
    """MiB of the largest process of a kind."""
    lines = ["| MiB | " + " | ".join(f"{run['passages']:,}" for run in runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for kind in ORDER:
        cells = [f"{run['memory'].get(kind, 0) / 2**20:.0f}" for run in runs]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 55_000, 300_000])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2], help="All of them at the middle size.")
    arguments = parser.parse_args()
    sys.path[:0] = [str(TESTS)]
    from checkpoints import build as build_checkpoint

    middle = sorted(arguments.sizes)[len(arguments.sizes) // 2]
    todo = [
        (size, n) for size in arguments.sizes for n in arguments.actors if n == arguments.actors[0] or size == middle
    ]
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_checkpoint("m3", folder / "model")
        for size, n in todo:
            if not (folder / f"corpus-{size}").exists():
                write_shards(folder / f"corpus-{size}", size)
            runs.append(in_a_process(folder, size, n))
            sys.stderr.write(json.dumps(runs[-1]) + "\n")
            time.sleep(2)
    alone = [run for run in runs if run["actors"] == arguments.actors[0]]
    sys.stdout.write(f"{times(runs)}\n\n{memory(alone)}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
