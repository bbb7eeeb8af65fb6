"""The GPU's run sheet at toy size on a CPU: it checks itself against fp32 before it measures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.outputs import EmbeddingBatch, MultiVectors

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "encode_gpu.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("encode_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["encode_gpu"] = module
    spec.loader.exec_module(module)
    return module


def test_the_toy_run_prints_one_table_and_writes_the_same_figures(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["--toy", "--device", "cpu", "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    ways = ["bf16, budget 512", "bf16, budget 2048"]
    assert rows == [
        "model", *(f"bert: {way}" for way in ways), *(f"m3: {way}" for way in ways), "m3: bf16, shrink, budget 2048",
        "m3: FlagEmbedding's loop, torch.float32", *(f"qwen3: {way}" for way in ways),
        *(f"cross-encoder: {way}" for way in ways),
    ]  # fmt: skip
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["model"] for row in figures["rows"]] == [row.split(":")[0] for row in rows[1:]]
    assert all(row["tokens_per_second"] > 0 for row in figures["rows"])
    assert set(figures["cosines"]) == {"bert", "m3", "qwen3", "cross-encoder"}


def test_vectors_that_are_not_those_of_fp32_stop_the_benchmark(bench: Any) -> None:
    tokens = bench.sample(3)
    n, m = len(tokens), int(tokens.lengths.sum()) - 3
    dense, vectors = (np.eye(1, 64).repeat(rows, 0).astype(np.float32) for rows in (n, m))
    offsets = tokens.offsets - np.arange(n + 1)
    found = EmbeddingBatch(dense, None, MultiVectors(offsets, vectors), tokens.lengths, tokens.n_truncated)
    assert bench.check(found, dense, vectors) == {"dense": 1.0, "colbert": 1.0}
    with pytest.raises(AssertionError, match="not close to fp32"):
        bench.check(found, dense, -vectors)
