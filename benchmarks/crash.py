"""Kills real jobs at random moments and counts what was lost or doubled: `python benchmarks/crash.py --seeds 100`.

Every seed is one job of 600 documents on a Ray of two nodes, with up to five SIGKILLs to its driver, to an embedding
actor, a write task or the second node, or signals to the driver, until it is done (`tests/faults/harness.py`,
`torment`). The seeds share the Ray, three at once: an actor, a task or a node that one seed kills may be another's.
`--out` keeps a line for each seed, and what is in it already is not run again, so that many seeds can be run in pieces.
The fixed faults (two drivers, a full disk, damaged shards) are in tests/faults.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from checkpoints import build as build_checkpoint
from harness import Cluster, CommitState, Content, Job, cluster, compare, content_of, torment, write_shards

Row = dict[str, Any]
OUTCOMES = tuple(field.name for field in fields(CommitState))


def undisturbed(folder: Path, running: Cluster) -> Content:
    job = Job(folder / "undisturbed", running).configure(folder / "shards", folder / "model")
    job.finish()
    return content_of(job)


def one_seed(folder: Path, running: Cluster, seed: int, reference: Content) -> Row:
    started = time.monotonic()
    job = Job(folder / f"seed-{seed}", running).configure(folder / "shards", folder / "model")
    killed = torment(job, seed)
    outcome = asdict(compare(job, reference))
    return {"seed": seed, "killed": dict(killed), **outcome, "seconds": round(time.monotonic() - started, 1)}


def report(rows: Sequence[Row]) -> str:
    """A row for each kind of victim, over the runs in which it died, and one for all runs."""
    kinds = sorted({kind for row in rows for kind in row["killed"]})
    lines = ["| died | times | runs | " + " | ".join(OUTCOMES) + " |", "|---" * (3 + len(OUTCOMES)) + "|"]
    for kind in kinds:
        lines.append(_line(kind, [row for row in rows if kind in row["killed"]], [kind]))
    lines.append(_line("all", rows, kinds))
    seconds = sorted(row["seconds"] for row in rows)
    return "\n".join([*lines, f"seconds a run: median {seconds[len(seconds) // 2]}, most {seconds[-1]}"])


def _line(name: str, rows: Sequence[Row], kinds: Sequence[str]) -> str:
    times = sum(row["killed"].get(kind, 0) for row in rows for kind in kinds)
    total: Counter[str] = Counter()
    for row in rows:
        total.update({key: row[key] for key in OUTCOMES})
    return f"| {name} | {times} | {len(rows)} | " + " | ".join(str(total[key]) for key in OUTCOMES) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9, help="Start no seed after so many.")
    parser.add_argument("--out", type=Path, help="JSON Lines of the seeds that are done.")
    arguments = parser.parse_args()
    rows = _read(arguments.out)
    done = {row["seed"] for row in rows}
    todo = [seed for seed in range(arguments.first, arguments.first + arguments.seeds) if seed not in done]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards")
        build_checkpoint("m3", folder / "model")
        (folder / "ray").mkdir()
        with cluster(folder / "ray") as running:
            reference = undisturbed(folder, running)

            def run(seed: int) -> None:
                if time.monotonic() - began < 60 * arguments.minutes:
                    rows.append(one_seed(folder, running, seed, reference))
                    _append(arguments.out, rows[-1])

            with ThreadPoolExecutor(arguments.at_once) as pool:
                list(pool.map(run, todo))
    sys.stdout.write(report(rows) + "\n")


def _read(path: Path | None) -> list[Row]:
    return [] if path is None or not path.exists() else [json.loads(line) for line in path.read_text().splitlines()]


def _append(path: Path | None, row: Row) -> None:
    sys.stderr.write(json.dumps(row) + "\n")
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
