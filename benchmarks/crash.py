"""Kills real jobs at random moments and counts what was lost or doubled: `python benchmarks/crash.py --seeds 100`.

Every seed is one job of 600 documents on a Ray head of its own making, with up to four SIGKILLs to the driver, the
embedding actor or a write task, and up to two write tasks that die between writing and answering. The fixed faults
(around a commit, two drivers, a full disk, damaged and vanished shards, signals) are in tests/faults.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from checkpoints import build as build_checkpoint
from harness import Cluster, Content, Job, cluster, compare, content_of, torment, write_shards


def undisturbed(folder: Path, running: Cluster) -> Content:
    job = Job(folder / "undisturbed", running).configure(folder / "shards", folder / "model")
    job.finish()
    return content_of(job)


def one_seed(folder: Path, running: Cluster, seed: int, reference: Content) -> dict[str, float]:
    started = time.monotonic()
    job = Job(folder / f"seed-{seed}", running).configure(folder / "shards", folder / "model")
    killed = torment(job, seed)
    outcome = asdict(compare(job, reference))
    return {"seed": seed, **killed, **outcome, "seconds": round(time.monotonic() - started, 1)}


def report(rows: list[dict[str, float]]) -> str:
    total: Counter[str] = Counter()
    for row in rows:
        total.update({key: int(value) for key, value in row.items() if key not in ("seed", "seconds")})
    kills = {key: total.pop(key, 0) for key in ("driver", "actor", "writer", "nothing")}
    victims = f"{kills['driver']} drivers, {kills['actor']} actors, {kills['writer']} write tasks"
    lines = [
        f"runs {len(rows)}; SIGKILLs: {victims}",
        "| " + " | ".join(total) + " |",
        "|" + "---|" * len(total),
        "| " + " | ".join(str(n) for n in total.values()) + " |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards")
        build_checkpoint("m3", folder / "model")
        (folder / "ray").mkdir()
        with cluster(folder / "ray") as running:
            reference = undisturbed(folder, running)
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                rows.append(one_seed(folder, running, seed, reference))
                sys.stderr.write(json.dumps(rows[-1]) + "\n")
                sys.stdout.write(report(rows) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
