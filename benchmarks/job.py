"""The whole job beside the bare embedder: what reading, tokenising, writing and committing cost.

    python benchmarks/job.py shards/*.parquet

Bare: as many processes of one thread as there are cores, each embedding its share of the texts, nothing stored. Job:
`tridex build` on a local Ray over the same files. Both are timed from the first text to the last: the start of
processes, of Ray and of the models is left out (for the job, up to the first fragment, whose rows are left out too).
Give as many files, of one size, as the cores can share evenly: a process takes whole files.
Ray runs workers at nice 15, which is switched off, or whatever else the machine does would slow the job alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pyarrow.parquet as pq


def bare(paths: list[str]) -> tuple[int, float, float]:
    """Tokens, first and last moment of one process."""
    import torch

    from actors.embedders.registry import load_embedder
    from actors.spec import EmbedderSpec

    torch.set_num_threads(1)
    model = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    model.embed_corpus(["warm"])
    began, tokens = time.time(), 0
    for start in range(0, len(rows), 1000):
        texts = [f"{row['title']} {row['text']}" for row in rows[start : start + 1000]]
        tokens += int(model.embed_corpus(texts).n_tokens.sum())
    return tokens, began, time.time()


def bare_rate(paths: list[str]) -> float:
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(bare, [paths[i::cores] for i in range(cores)]))
    return sum(p[0] for p in parts) / (max(p[2] for p in parts) - min(p[1] for p in parts))


def job_rate(paths: list[str]) -> float:
    from pipelines.config import load_config
    from pipelines.indexing.build import build_index
    from pipelines.monitor.runlog import RunLog

    points: list[tuple[float, int]] = []
    note = RunLog.note

    def noted(self: RunLog, record: dict[str, object], progress: object) -> None:
        note(self, record, progress)  # type: ignore[arg-type]
        points.append((time.time(), self.seen.n_tokens))

    RunLog.note = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        small = ["index.fragment_bytes=8000000", "ray.progress=false"]
        build_index(load_config(None, small, input={"paths": paths}, index={"uri": f"{folder}/index"}))
    (began, before), (ended, after) = points[0], points[-1]
    return (after - before) / (ended - began)


if __name__ == "__main__":
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - spelled so in Ray
    files = sorted(sys.argv[1:])
    alone, whole = bare_rate(files), job_rate(files)
    print(f"bare {alone:,.0f} tokens/s, job {whole:,.0f} tokens/s, job / bare {whole / alone:.2f}")
