"""The GPU's job benchmark at toy size on a CPU: every figure is there, and the actor's waits are its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_toy_job_writes_its_figures(tmp_path: Path) -> None:
    """A process of its own: the job's Ray has a hook in every worker."""
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.job_gpu", "--toy", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(path.read_text())
    assert figures["blocks"] == 16, "one actor gets 3,000 rows in 16 blocks (BLOCKS_PER_ACTOR)"
    assert figures["tokens_per_second"] > 0
    assert figures["job_of_bare"] > 0
    assert 0 <= figures["wait_share"] < 1
