"""A rerank job that is killed goes on where it stopped, and ends with the file of a job that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PATIENCE, Cluster, cluster, wait_for

from pipelines.evaluation.run_file import write_run
from tests.checkpoints_rerankers import build
from tests.indexes import make_index

pytestmark = [pytest.mark.slow, pytest.mark.ray]

QUERIES = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_index(tmp_path / "index", {f"d{i}": f"the panda {i} is a bear of the river" for i in range(60)})
    build("bert", tmp_path / "model")
    rows = [json.dumps({"_id": f"q{i}", "text": f"what is panda {i}?"}) + "\n" for i in range(QUERIES)]
    (tmp_path / "queries.jsonl").write_text("".join(rows))
    ranking = {f"d{j}": 60.0 - j for j in range(60)}
    write_run(tmp_path / "run.trec", ((f"q{i}", ranking) for i in range(QUERIES)))
    return tmp_path


def rerank(folder: Path, running: Cluster, name: str) -> subprocess.Popen[str]:
    files = [str(folder / "index"), str(folder / "run.trec"), "--queries", str(folder / "queries.jsonl")]
    options = ["--model", str(folder / "model"), "--output", str(folder / name), "--json"]
    settings = ["--set", "compute.dtype=fp32", "--set", "ray.progress=false", "--set", "pool.max_size=1"]
    command = [sys.executable, "-m", "pipelines.cli", "rerank", *files, *options, *settings]
    with (folder / f"{name}.json").open("w") as out, (folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(command, env=running.environment, stdout=out, stderr=log, text=True)


def scored(folder: Path, name: str) -> int:
    """Queries in the unfinished file."""
    partial = folder / f"{name}.partial"
    return partial.read_bytes().count(b"\n") - 1 if partial.exists() else 0


def kill_when_more_than(queries: int, job: subprocess.Popen[str], folder: Path) -> None:
    wait_for(lambda: scored(folder, "killed.trec") > queries or job.poll() is not None, PATIENCE, "a batch")
    assert job.poll() is None, (folder / "killed.trec.log").read_text()
    os.kill(job.pid, signal.SIGKILL)
    job.wait()


def test_a_killed_rerank_job_resumes_to_the_same_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    # a folder with a short name: the path of Ray's sockets may not be longer than 107 characters
    with cluster(tmp_path_factory.mktemp("ray")) as running:
        assert rerank(folder, running, "whole.trec").wait(PATIENCE) == 0
        kept = [0]
        for _ in range(2):
            kill_when_more_than(kept[-1], rerank(folder, running, "killed.trec"), folder)
            kept.append(scored(folder, "killed.trec"))
            assert kept[-2] < kept[-1] < QUERIES
        assert not (folder / "killed.trec").exists()
        assert rerank(folder, running, "killed.trec").wait(PATIENCE) == 0
    summary = json.loads((folder / "killed.trec.json").read_text())
    assert (summary["queries"], summary["resumed"]) == (QUERIES, kept[-1])
    assert (folder / "killed.trec").read_text() == (folder / "whole.trec").read_text()
    assert scored(folder, "killed.trec") == 0
